"""Follows a channel's changes: one watch per process wakes every stream of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from gr4ad_runtime.db import Database

from rspo_trainer.policy_store import NOTIFY_CHANNEL, Activation, PolicyStore


class ActivationWatch:
    """Streams activations. They are read from their table, so none is lost with a notification: it only comes later."""

    def __init__(self, database: Database, store: PolicyStore, heartbeat_s: float) -> None:
        """Read `store` at a notification from `database`, and every `heartbeat_s` seconds."""
        self._database = database
        self._store = store
        self._heartbeat_s = heartbeat_s
        self._changed = asyncio.Event()

    async def listen(self) -> None:
        """Follow the notifications, without end."""
        async for _ in self._database.listen(NOTIFY_CHANNEL):
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def watch(self, channel: str) -> AsyncGenerator[Activation | None, None]:
        """Yield the channel's activation in force, then each later one, without end; None after a silence."""
        seq = 0
        while True:
            changed = self._changed  # taken before the look, so that a change after it is not slept through
            activations = await self._store.activations_after(channel, seq)
            for activation in activations:
                seq = activation.seq
                yield activation
            if activations:
                continue
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    await changed.wait()
            except TimeoutError:
                yield None
