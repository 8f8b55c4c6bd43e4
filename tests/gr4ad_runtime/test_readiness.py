"""Readiness follows a dependency there and back."""

from __future__ import annotations

import asyncio

from gr4ad_runtime.app import Lifecycle
from gr4ad_runtime.errors import UnavailableError
from gr4ad_runtime.readiness import follow_readiness


async def test_readiness_follows_the_dependency() -> None:
    lifecycle, answers = Lifecycle(), asyncio.Event()

    async def ping() -> None:
        if not answers.is_set():
            raise UnavailableError("database", "away", "start it")

    async def becomes(ready: bool) -> None:
        async with asyncio.timeout(2):
            while lifecycle.ready is not ready:  # there is no event to wait for
                await asyncio.sleep(0.005)

    answers.set()
    task = lifecycle.background(follow_readiness(lifecycle, ping, every_s=0.01), "readiness")
    await becomes(True)
    answers.clear()
    await becomes(False)
    answers.set()
    await becomes(True)
    task.cancel()
    await lifecycle.close()
