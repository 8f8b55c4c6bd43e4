"""Follows the catalogue of one codebook and keeps a table of its ads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable
from contextlib import aclosing
from typing import Final

import grpc
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad_runtime import channels
from gr4ad_runtime.back_off import back_off
from gr4ad_runtime.channels import reconnect
from gr4ad_runtime.errors import FailedPreconditionError
from gr4ad_runtime.log import get_logger

from ad_generator.ad_table import AdTable
from ad_generator.change_trace import record_applied_changes

log = get_logger(__name__)

CHUNK: Final = 256
"""Entries applied between two turns of the event loop: well under a millisecond."""
LONGEST_SILENCE_S: Final = 15.0
"""The feed sends heartbeats every few seconds; after this the connection counts as dead."""
AFTER_FAILURE_S: Final = 2.0
"""How long to leave a feed alone that cannot be used."""
FINAL: Final = channels.FINAL | {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION}


class CatalogMirror:
    """The ads of one codebook as the catalogue feed tells them.

    The table takes each change at once: a paused ad known here is never returned, and the next model call's process
    hears of it first.
    """

    def __init__(self, stub: sid_pb2_grpc.SidServiceAsyncStub, codebook_id: str, level_sizes: tuple[int, ...]) -> None:
        """Make a mirror; `run` must be running for it to fill.

        Args:
            stub: Of the service that feeds the catalogue.
            codebook_id: Codebook to follow.
            level_sizes: Codebook size of every level.
        """
        self.codebook_id = codebook_id
        self.level_sizes = level_sizes
        self.cursor = 0
        """Position in the catalogue feed up to which the table holds every change."""
        self._stub = stub
        self._table: AdTable | None = None
        self._incoming = AdTable(level_sizes)
        self._resume_at = 0
        self._ready = asyncio.Event()
        self._failure: FailedPreconditionError | None = None

    @property
    def table(self) -> AdTable:
        """The newest state of every ad; only after `wait_ready`."""
        if self._table is None:
            raise RuntimeError("the mirror has no table yet: await wait_ready() first")
        return self._table

    async def wait_ready(self) -> None:
        """Wait for the first whole table.

        Raises:
            FailedPreconditionError: There never will be one: the codebook is unknown or does not fit the policy.
        """
        await self._ready.wait()
        if self._table is None and self._failure is not None:
            raise self._failure

    async def run(self) -> None:
        """Follow the feed until cancelled."""
        while True:
            wait_s = AFTER_FAILURE_S
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
                self._resume_at = 0
                if error.code() is grpc.StatusCode.OUT_OF_RANGE:
                    wait_s = 0.0  # not the store that the cursor came from
                else:
                    self._fail(f"{error.code().name}: {error.details()}")
            await back_off(wait_s)

    def _read(self) -> AsyncIterable[sid_pb2.ReadCatalogResponse]:
        if self._resume_at == 0:
            self._incoming = AdTable(self.level_sizes)  # requests never see half a snapshot
        return self._stub.ReadCatalog(sid_pb2.ReadCatalogRequest(codebook_id=self.codebook_id, cursor=self._resume_at))

    async def _take(self, part: sid_pb2.ReadCatalogResponse, arrived_ns: int) -> None:
        for start in range(0, len(part.entries), CHUNK):
            if start:
                await asyncio.sleep(0)
            self._incoming.apply(part.entries[start : start + CHUNK])
        if not part.snapshot_complete:
            return
        self._table = self._incoming
        self.cursor = self._resume_at = part.cursor
        self._ready.set()
        applied = {entry.traceparent: arrived_ns for entry in part.entries if entry.traceparent}
        record_applied_changes(applied, self.codebook_id, part.cursor)

    def _fail(self, reason: str) -> None:
        remedy = "activate the policy's codebook in the SID assigner, or publish a policy of the active codebook"
        self._failure = FailedPreconditionError(f"catalogue of codebook {self.codebook_id}", reason, remedy)
        log.error("catalog_unusable", codebook_id=self.codebook_id, reason=reason, remedy=remedy)
        self._ready.set()
