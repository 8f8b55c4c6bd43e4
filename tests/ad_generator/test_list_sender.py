"""Served lists on their way to the reward log: never in a request's way, never lost in silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from ad_generator import list_sender
from ad_generator.list_sender import LARGEST_BATCH, ListSender, Served
from gr4ad.generation.v1 import generation_pb2
from gr4ad.reward.v1 import reward_pb2_grpc
from gr4ad.type.v1 import type_pb2

from tests.ad_generator.neighbours import Neighbour, RewardLog, eventually
from tests.ad_generator.suite import Neighbours, request, run_ready_generator
from tests.plain_channel import plain_channel


@pytest.fixture
async def rewards() -> RewardLog:
    return RewardLog()


@pytest.fixture
async def neighbour(rewards: RewardLog) -> AsyncIterator[Neighbour]:
    server = Neighbour(lambda s: reward_pb2_grpc.add_RewardServiceServicer_to_server(rewards, s))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def sender(neighbour: Neighbour) -> AsyncIterator[ListSender]:
    async with plain_channel(neighbour.address) as channel:
        sender = ListSender(reward_pb2_grpc.RewardServiceStub(channel), queue_limit=100)
        task = asyncio.create_task(sender.run())
        yield sender
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def served(request_id: str, bucket: int | None = 7) -> Served:
    ad = type_pb2.ScoredAd(ad_id="ad", sid=type_pb2.SemanticId(codes=[1, 2, 3]))
    response = generation_pb2.GenerateAdsResponse(
        candidates=[ad], beam_trace=generation_pb2.BeamTrace(widths=[1, 2, 3])
    )
    return Served(
        request(request_id=request_id), response, 1_700_000_000_123_456_789, "00-aa-bb-01", "canary", bucket, 1234
    )


async def test_lists_go_in_batches_with_all_they_say(sender: ListSender, rewards: RewardLog) -> None:
    for number in range(90):
        sender.offer(served(f"list-{number}"))
    assert sender.queued == 90
    await eventually(lambda: sender.sent == 90, "all are sent")
    assert rewards.calls == -(-90 // LARGEST_BATCH)
    stored = rewards.lists["list-7"]
    assert stored.user_context.cold_start
    assert [ad.ad_id for ad in stored.candidates] == ["ad"]
    assert list(stored.widths) == [1, 2, 3]
    assert stored.serve_time.ToNanoseconds() == 1_700_000_000_123_456_789
    assert stored.traceparent == "00-aa-bb-01"
    assert (stored.channel, stored.bucket, stored.latency_us) == ("canary", 7, 1234)
    assert (sender.queued, sender.dropped) == (0, 0)


async def test_other_work_gets_its_turn_between_the_lists_of_a_batch(
    sender: ListSender, rewards: RewardLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, at = 0, []
    translate = list_sender.served_list
    monkeypatch.setattr(list_sender, "served_list", lambda served: at.append(turns) or translate(served))
    for number in range(8):
        sender.offer(served(f"list-{number}"))
    while sender.queued:
        turns += 1
        await asyncio.sleep(0)
    assert rewards.calls == 1
    assert len(set(at)) == 8


def test_a_bucket_of_zero_is_sent_and_none_is_absent() -> None:
    assert list_sender.served_list(served("list", bucket=0)).HasField("bucket")
    assert not list_sender.served_list(served("list", bucket=None)).HasField("bucket")


async def test_an_outage_delays_lists_and_loses_none(sender: ListSender, rewards: RewardLog) -> None:
    rewards.failures = 2
    for number in range(5):
        sender.offer(served(f"list-{number}"))
    await eventually(lambda: sender.sent == 5, "all are sent after the outage")
    assert len(rewards.lists) == 5
    assert (rewards.calls, sender.dropped) == (3, 0)


async def test_a_full_queue_drops_the_oldest_and_counts_them(
    sender: ListSender, rewards: RewardLog, neighbour: Neighbour
) -> None:
    await neighbour.stop()
    for number in range(250):
        sender.offer(served(f"list-{number}"))
    assert sender.dropped == 150
    assert sender.queued == 100
    await neighbour.start()
    await eventually(lambda: sender.queued == 0, "the rest is sent")
    assert set(rewards.lists) == {f"list-{number}" for number in range(150, 250)}
    assert (sender.sent, sender.dropped) == (100, 150)


async def test_a_refused_list_does_not_take_its_neighbours_along(sender: ListSender, rewards: RewardLog) -> None:
    rewards.refuses = lambda served: served.request_id == "list-5"
    for number in range(12):
        sender.offer(served(f"list-{number}"))
    await eventually(lambda: sender.queued == 0, "all are decided")
    assert set(rewards.lists) == {f"list-{number}" for number in range(12) if number != 5}
    assert (sender.sent, sender.dropped) == (11, 1)


async def test_a_flush_gives_up_in_time_and_counts(
    sender: ListSender, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    await neighbour.stop()
    for number in range(90):
        sender.offer(served(f"list-{number}"))
    await asyncio.sleep(2 * list_sender.LINGER_S)  # some are in flight, others wait
    await sender.flush(0.1)
    assert (sender.sent, sender.dropped, sender.queued) == (0, 90, 0)


async def test_a_flush_with_nothing_to_send_is_over_at_once(sender: ListSender) -> None:
    await asyncio.wait_for(sender.flush(60.0), 1.0)
    assert sender.dropped == 0


async def test_requests_are_answered_while_the_reward_log_is_down(neighbours: Neighbours) -> None:
    async with run_ready_generator(neighbours, list_queue_limit=10, drain_seconds=0.2) as suite:
        await neighbours.reward_logger.stop()
        for _ in range(30):
            assert (await suite.ask()).candidates
        status = await suite.status()
        assert status.requests_answered == 30
        assert (status.lists_sent, status.lists_dropped + status.lists_queued) == (0, 30)
        assert status.lists_dropped >= 30 - 10 - LARGEST_BATCH
        assert status.lists_queued <= 10 + LARGEST_BATCH
