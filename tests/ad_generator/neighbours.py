"""The generator's neighbours as small servers with real sockets: a catalogue, a policy channel, a reward log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import grpc
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad.sid.v1 import sid_pb2, sid_pb2_grpc
from gr4ad.training.v1 import training_pb2, training_pb2_grpc
from gr4ad.type.v1 import type_pb2

ACTIVE, PAUSED = sid_pb2.AD_STATE_ACTIVE, sid_pb2.AD_STATE_PAUSED


class Catalogue(sid_pb2_grpc.SidServiceServicer):
    """A catalogue feed over a list of changes; the cursor is the number of changes read."""

    def __init__(self, codebook_id: str) -> None:
        self.codebook_id = codebook_id
        self.changes: list[sid_pb2.CatalogEntry] = []
        self.asked_cursors: list[int] = []
        self._changed = asyncio.Event()

    def put(
        self,
        ad_id: str,
        sid: Sequence[int],
        state: sid_pb2.AdState.ValueType = ACTIVE,
        traceparent: str = "",
        advertiser_id: str = "",
    ) -> int:
        """Create or change an ad; returns the cursor of the change."""
        self.changes.append(
            sid_pb2.CatalogEntry(
                ad_id=ad_id,
                sid=type_pb2.SemanticId(codes=sid),
                state=state,
                bid_micros=1,
                advertiser_id=advertiser_id,
                traceparent=traceparent,
            )
        )
        self._changed.set()
        self._changed = asyncio.Event()
        return len(self.changes)

    def fill(self, sids: Iterable[Sequence[int]], prefix: str = "ad") -> list[str]:
        """Create an active ad per SID, named by the prefix and its codes."""
        ad_ids = []
        for sid in sids:
            ad_ids.append("-".join([prefix, *map(str, sid)]))
            self.put(ad_ids[-1], sid)
        return ad_ids

    async def ReadCatalog(self, request: sid_pb2.ReadCatalogRequest, context: Any) -> AsyncIterator[Any]:
        self.asked_cursors.append(request.cursor)
        if request.codebook_id != self.codebook_id:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"codebook_id: {request.codebook_id}: not registered")
        if request.cursor > len(self.changes):
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, f"cursor: {request.cursor}: read again from cursor 0")
        cursor = request.cursor
        if cursor == 0:
            end = len(self.changes)
            latest = {entry.ad_id: entry for entry in self.changes[:end]}
            entries = [*latest.values()]
            for start in range(0, len(entries), 10):
                yield sid_pb2.ReadCatalogResponse(codebook_id=self.codebook_id, entries=entries[start : start + 10])
            cursor = end
        yield sid_pb2.ReadCatalogResponse(codebook_id=self.codebook_id, cursor=cursor, snapshot_complete=True)
        while True:
            changed = self._changed
            if cursor == len(self.changes):
                await changed.wait()
            entries, cursor = self.changes[cursor:], len(self.changes)
            yield sid_pb2.ReadCatalogResponse(
                codebook_id=self.codebook_id, entries=entries, cursor=cursor, snapshot_complete=True
            )


class Catalogues(sid_pb2_grpc.SidServiceServicer):
    """Several codebooks behind one address."""

    def __init__(self, *catalogues: Catalogue) -> None:
        self.by_codebook = {catalogue.codebook_id: catalogue for catalogue in catalogues}

    async def ReadCatalog(self, request: sid_pb2.ReadCatalogRequest, context: Any) -> AsyncIterator[Any]:
        catalogue = self.by_codebook.get(request.codebook_id)
        if catalogue is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"codebook_id: {request.codebook_id}: not registered")
            return
        async for part in catalogue.ReadCatalog(request, context):
            yield part


class Channel(training_pb2_grpc.TrainingServiceServicer):
    """A policy channel."""

    def __init__(self) -> None:
        self._current = training_pb2.WatchPoliciesResponse()
        self._changed = asyncio.Event()

    def activate(self, policy: training_pb2.Policy, traceparent: str = "") -> None:
        """Announce a policy."""
        self._current = training_pb2.WatchPoliciesResponse(policy=policy, traceparent=traceparent)
        self._changed.set()
        self._changed = asyncio.Event()

    async def WatchPolicies(self, request: training_pb2.WatchPoliciesRequest, context: Any) -> AsyncIterator[Any]:
        while True:
            changed = self._changed
            yield self._current
            await changed.wait()


class RewardLog(reward_pb2_grpc.RewardServiceServicer):
    """A reward log that keeps lists in memory and may refuse some, or fail."""

    def __init__(self) -> None:
        self.lists: dict[str, reward_pb2.ServedList] = {}
        self.refuses: Callable[[reward_pb2.ServedList], bool] = lambda served: False
        self.failures = 0
        self.calls = 0

    async def BatchCreateServedLists(self, request: reward_pb2.BatchCreateServedListsRequest, context: Any) -> Any:
        self.calls += 1
        if self.failures:
            self.failures -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the database is away")
        if any(self.refuses(served) for served in request.served_lists):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "served_lists: a list is refused")
        known = sum(served.request_id in self.lists for served in request.served_lists)
        self.lists.update((served.request_id, served) for served in request.served_lists)
        return reward_pb2.BatchCreateServedListsResponse(
            stored_count=len(request.served_lists) - known, duplicate_count=known
        )


class Neighbour:
    """A server on a loopback port that can be stopped and started again at the same address."""

    def __init__(self, *add: Callable[[grpc.aio.Server], None]) -> None:
        self._add = add
        self._server: grpc.aio.Server | None = None
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        for add in self._add:
            add(self._server)
        self.port = self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None


async def eventually(condition: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: It did not in time.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"after {timeout_s} s not yet: {what}"
        await asyncio.sleep(0.005)
