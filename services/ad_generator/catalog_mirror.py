"""Follows the catalogue of one codebook and keeps an index of its live ads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import replace
from typing import Final

import grpc
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad_runtime import channels
from gr4ad_runtime.channels import reconnect
from gr4ad_runtime.errors import FailedPreconditionError
from gr4ad_runtime.log import get_logger

from ad_generator.ad_table import AdTable
from ad_generator.change_trace import record_applied_changes
from ad_generator.live_index import LiveIndex, build_live_index

log = get_logger(__name__)

COALESCE_S: Final = 0.02
"""How long a change waits for others before the index is built anew."""
CHUNK: Final = 256
"""Entries applied between two turns of the event loop: well under a millisecond."""
LONGEST_SILENCE_S: Final = 15.0
"""The feed sends heartbeats every few seconds; after this the connection counts as dead."""
AFTER_FAILURE_S: Final = 2.0
"""How long to leave a feed alone that cannot be used."""
FINAL: Final = channels.FINAL | {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION}


class CatalogMirror:
    """The ads of one codebook as the catalogue feed tells them, and an index of the live ones.

    The table takes each change at once, so that a paused ad known here is never returned. The index follows
    `COALESCE_S` and one build later; the build runs in a thread and the new index replaces the old one in one step.
    """

    def __init__(
        self,
        stub: sid_pb2_grpc.SidServiceAsyncStub,
        codebook_id: str,
        level_sizes: tuple[int, ...],
        executor: Executor,
    ) -> None:
        """Make a mirror; `run` must be running for it to fill.

        Args:
            stub: Of the service that feeds the catalogue.
            codebook_id: Codebook to follow.
            level_sizes: Codebook size of every level.
            executor: Where indexes are built.
        """
        self.codebook_id = codebook_id
        self.level_sizes = level_sizes
        self._stub = stub
        self._executor = executor
        self._index: LiveIndex | None = None
        self._table = self._incoming = AdTable(len(level_sizes))
        self._cursor = 0
        self._stale = False  # the index lacks a change of the live set
        self._applied: dict[str, int] = {}  # traceparent of a change → when it arrived, in Unix nanoseconds
        self._arrived = asyncio.Event()
        self._ready = asyncio.Event()
        self._failure: FailedPreconditionError | None = None

    @property
    def index(self) -> LiveIndex:
        """The newest index; only after `wait_ready`."""
        if self._index is None:
            raise RuntimeError("the mirror has no index yet: await wait_ready() first")
        return self._index

    @property
    def table(self) -> AdTable:
        """The newest state of every ad, ahead of the index by a few milliseconds."""
        return self._table

    async def wait_ready(self) -> None:
        """Wait for the first index.

        Raises:
            FailedPreconditionError: There never will be one: the codebook is unknown or does not fit the policy.
        """
        await self._ready.wait()
        if self._index is None and self._failure is not None:
            raise self._failure

    async def run(self) -> None:
        """Follow the feed until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._publish())
            tasks.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            parts = reconnect(
                self._read, name="catalogue", silence_s=LONGEST_SILENCE_S, longest_wait_s=2.0, final=FINAL
            )
            try:
                async with aclosing(parts):  # type: ignore[type-var]  # an asynchronous generator
                    async for part in parts:
                        await self._take(part, time.time_ns())
            except ValueError as error:
                self._fail(str(error))
            except grpc.aio.AioRpcError as error:
                self._cursor = 0
                if error.code() is grpc.StatusCode.OUT_OF_RANGE:
                    continue  # not the store that the cursor came from
                self._fail(f"{error.code().name}: {error.details()}")
            await asyncio.sleep(AFTER_FAILURE_S)

    def _read(self) -> AsyncIterable[sid_pb2.ReadCatalogResponse]:
        # A snapshot fills a table of its own, so that requests never see half of one.
        self._incoming = AdTable(len(self.level_sizes)) if self._cursor == 0 else self._table
        return self._stub.ReadCatalog(sid_pb2.ReadCatalogRequest(codebook_id=self.codebook_id, cursor=self._cursor))

    async def _take(self, part: sid_pb2.ReadCatalogResponse, arrived_ns: int) -> None:
        table = self._incoming
        changed = False
        for start in range(0, len(part.entries), CHUNK):
            if start:
                await asyncio.sleep(0)
            changed |= table.apply(part.entries[start : start + CHUNK])
        if not part.snapshot_complete:
            return
        if table is not self._table or self._index is None:
            self._table = table
            changed = True
        self._cursor = part.cursor
        for entry in part.entries:
            if entry.traceparent:
                self._applied.setdefault(entry.traceparent, arrived_ns)
        self._stale |= changed
        self._arrived.set()

    async def _publish(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if self._stale:
                await asyncio.sleep(COALESCE_S)
            self._arrived.clear()
            table, cursor, stale = self._table, self._cursor, self._stale
            applied, self._applied, self._stale = self._applied, {}, False
            if stale:
                try:
                    self._index = await loop.run_in_executor(
                        self._executor, build_live_index, table, table.view(), cursor, self.level_sizes
                    )
                except ValueError as error:
                    self._stale = True
                    self._fail(str(error))
                    continue
            elif self._index is not None:
                self._index = replace(self._index, cursor=cursor)
            self._ready.set()
            record_applied_changes(applied, self.codebook_id, cursor)

    def _fail(self, reason: str) -> None:
        remedy = "activate the policy's codebook in the SID assigner, or publish a policy of the active codebook"
        self._failure = FailedPreconditionError(f"catalogue of codebook {self.codebook_id}", reason, remedy)
        log.error("catalog_unusable", codebook_id=self.codebook_id, reason=reason, remedy=remedy)
        self._ready.set()
