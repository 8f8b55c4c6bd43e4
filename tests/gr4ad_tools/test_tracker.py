"""The tracker: what the log has acknowledged is in it once, whatever happens to calls on the way."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import grpc
import pytest
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad_tools import tracker as tracker_module
from gr4ad_tools.tracker import CLICK, CONVERSION, Tracker

from tests.plain_channel import plain_channel


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gr4ad_tools.tracker.LONGEST_WAIT_S", 0.05)


class FlakyLog(reward_pb2_grpc.RewardServiceServicer):
    """Stores events by key; fails before or after storing, as the dice say."""

    def __init__(self, failing: float, seed: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        self.stored: dict[tuple[str, int], int] = {}
        self.failures = self.calls = 0
        self._failing, self._random, self._code = failing, random.Random(seed), code

    async def _store(self, keys: list[tuple[str, int, int]], context: grpc.aio.ServicerContext) -> tuple[int, int]:
        self.calls += 1
        dice = self._random.random()
        if dice < self._failing / 2:
            self.failures += 1
            await context.abort(self._code, "before")
        new = 0
        for event_id, kind, revenue in keys:
            new += (event_id, kind) not in self.stored
            self.stored.setdefault((event_id, kind), revenue)
        if dice < self._failing:
            self.failures += 1
            await context.abort(self._code, "after")
        return new, len(keys) - new

    async def BatchCreateImpressions(
        self, request: reward_pb2.BatchCreateImpressionsRequest, context: grpc.aio.ServicerContext
    ) -> reward_pb2.BatchCreateImpressionsResponse:
        new, old = await self._store([(event.event_id, 0, 0) for event in request.impressions], context)
        return reward_pb2.BatchCreateImpressionsResponse(stored_count=new, duplicate_count=old)

    async def BatchCreateFeedback(
        self, request: reward_pb2.BatchCreateFeedbackRequest, context: grpc.aio.ServicerContext
    ) -> reward_pb2.BatchCreateFeedbackResponse:
        keys = [(event.event_id, event.type, event.revenue_micros) for event in request.feedback]
        new, old = await self._store(keys, context)
        return reward_pb2.BatchCreateFeedbackResponse(stored_count=new, duplicate_count=old)


@contextlib.asynccontextmanager
async def serving(log: FlakyLog) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    reward_pb2_grpc.add_RewardServiceServicer_to_server(log, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with plain_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "BATCH", 7)
    monkeypatch.setattr(tracker_module, "LINGER_S", 0.001)
    monkeypatch.setattr(tracker_module, "FIRST_WAIT_S", 0.001)


@pytest.mark.parametrize("seed", range(5))
async def test_every_event_is_stored_once_by_a_log_that_fails_at_random(seed: int) -> None:
    log = FlakyLog(0.5, seed)
    async with serving(log) as channel, Tracker(channel).running() as tracker:
        for request in range(20):
            for position in range(3):
                tracker.shown(f"r{request}", "ad", position)
            tracker.responded(f"r{request}", "ad", 0, CLICK, 5)
            tracker.responded(f"r{request}", "ad", 0, CONVERSION, 9)
            if request % 4 == 0:
                await asyncio.sleep(0.005)
        await tracker.drain()
        assert len(log.stored) == tracker.accepted == 20 * 5
    assert log.failures > 0
    assert tracker.stored + tracker.duplicates == tracker.accepted
    assert log.stored[("r3-0", CLICK)] == 5
    assert log.stored[("r3-0", CONVERSION)] == 9


async def test_a_lost_answer_shows_as_duplicates() -> None:
    log = FlakyLog(0.9, 1)
    async with serving(log) as channel, Tracker(channel).running() as tracker:
        for request in range(30):
            tracker.shown(f"r{request}", "ad", 0)
        await tracker.drain()
    assert tracker.duplicates > 0
    assert tracker.stored < tracker.accepted == 30


async def test_what_is_queued_at_the_end_is_still_sent() -> None:
    log = FlakyLog(0.0, 0)
    async with serving(log) as channel:
        async with Tracker(channel).running() as tracker:
            tracker.shown("r", "ad", 0)
        assert tracker.accepted == len(log.stored) == 1


async def test_a_refusal_is_not_repeated() -> None:
    log = FlakyLog(1.0, 0, grpc.StatusCode.INVALID_ARGUMENT)
    with pytest.raises(ExceptionGroup) as caught:
        async with serving(log) as channel, Tracker(channel).running() as tracker:
            tracker.shown("r", "ad", 0)
            await tracker.drain()
    assert caught.group_contains(grpc.aio.AioRpcError)
    assert log.calls == 1
