"""Kills of services in turn, while their callers go on: the supervisor brings each back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import grpc

from gr4ad_tools.demo.arms import GENERATORS, POLL_S, lists_handed_over
from gr4ad_tools.split import CANARY, STABLE
from gr4ad_tools.up import Suite

KILLED = ("reward_logger", "rspo_trainer", "sid_assigner", GENERATORS[CANARY], GENERATORS[STABLE])
"""In this order, one after the other."""
FEW_LISTS = 128
"""Lists that a generator under traffic has on their way at any time."""


async def kill_in_turn(
    suite: Suite, channels: Mapping[str, grpc.aio.Channel], answered: Callable[[], int], requests: int
) -> None:
    """Kill each service once, the next when the one before is back and the lists that piled up meanwhile are logged."""
    for number, name in enumerate(KILLED, start=1):
        await _kill(suite, name, answered, number * requests / (len(KILLED) + 1))
        await lists_handed_over(channels, FEW_LISTS)


async def _kill(suite: Suite, name: str, answered: Callable[[], int], due: float) -> None:
    await _until(lambda: answered() >= due)
    restarts = suite.restarts[name]
    suite.kill(name)
    await _until(lambda: suite.restarts[name] > restarts)
    await suite.wait_ready(name)


async def _until(condition: Callable[[], bool]) -> None:
    while True:
        if condition():
            return
        await asyncio.sleep(POLL_S)
