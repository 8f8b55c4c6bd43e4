"""The log over real gRPC: stored once, joined at reading, refused with a reason."""

from __future__ import annotations

import asyncio
import random

import grpc
import pytest
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad_runtime.channels import open_channel

from tests.oracles.reward_messages import feedback, impression, served_list

Stub = "reward_pb2_grpc.RewardServiceAsyncStub"
CLICK = reward_pb2.FEEDBACK_TYPE_CLICK
CONVERSION = reward_pb2.FEEDBACK_TYPE_CONVERSION


async def put_lists(stub: Stub, *lists: reward_pb2.ServedList) -> tuple[int, int]:
    answer = await stub.BatchCreateServedLists(reward_pb2.BatchCreateServedListsRequest(served_lists=lists))
    return answer.stored_count, answer.duplicate_count


async def put_impressions(stub: Stub, *events: reward_pb2.Impression) -> tuple[int, int]:
    answer = await stub.BatchCreateImpressions(reward_pb2.BatchCreateImpressionsRequest(impressions=events))
    return answer.stored_count, answer.duplicate_count


async def put_feedback(stub: Stub, *events: reward_pb2.Feedback) -> tuple[int, int]:
    answer = await stub.BatchCreateFeedback(reward_pb2.BatchCreateFeedbackRequest(feedback=events))
    return answer.stored_count, answer.duplicate_count


async def read(stub: Stub, cursor: int = 0) -> tuple[list[reward_pb2.RewardedList], int]:
    lists: list[reward_pb2.RewardedList] = []
    async for part in stub.ReadRewardedLists(reward_pb2.ReadRewardedListsRequest(cursor=cursor)):
        lists.extend(part.rewarded_lists)
        cursor = part.cursor
    return lists, cursor


def outcomes(rewarded: reward_pb2.RewardedList) -> list[tuple[str, int, int, int, int]]:
    return [
        (o.ad_id, o.impression_count, o.click_count, o.conversion_count, o.revenue_micros) for o in rewarded.outcomes
    ]


async def test_a_list_comes_back_as_it_was_sent(stub: Stub) -> None:
    sent = served_list(1)
    assert await put_lists(stub, sent) == (1, 0)
    lists, cursor = await read(stub)
    assert [rewarded.served_list for rewarded in lists] == [sent]
    assert outcomes(lists[0]) == []
    assert cursor == 1


async def test_outcomes_are_counted_by_ad_in_the_order_of_the_list(stub: Stub) -> None:
    await put_lists(stub, served_list(1), served_list(2))
    await put_impressions(
        stub, impression("e1", 1, "c"), impression("e2", 1, "a"), impression("e3", 1, "a"), impression("e4", 2, "b")
    )
    await put_feedback(
        stub,
        feedback("e1", 1, "c"),
        feedback("e1", 1, "c", CONVERSION, revenue=700),
        feedback("e5", 1, "c", CONVERSION, revenue=50),
    )
    lists, _ = await read(stub)
    assert outcomes(lists[0]) == [("a", 2, 0, 0, 0), ("c", 1, 1, 2, 750)]
    assert outcomes(lists[1]) == [("b", 1, 0, 0, 0)]


async def test_events_of_an_ad_outside_the_list_are_no_outcome(stub: Stub) -> None:
    await put_lists(stub, served_list(1))
    await put_impressions(stub, impression("e1", 1, "stranger"))
    lists, _ = await read(stub)
    assert outcomes(lists[0]) == []


async def test_feedback_before_its_list_is_joined_once_the_list_is_there(stub: Stub) -> None:
    await put_feedback(stub, feedback("e1", 1, "b", CONVERSION, revenue=9))
    await put_impressions(stub, impression("e1", 1, "b"))
    summary = await stub.GetRewardSummary(reward_pb2.GetRewardSummaryRequest())
    assert (summary.served_lists, summary.unjoined_events) == (0, 2)
    assert await read(stub) == ([], 0)
    await put_lists(stub, served_list(1))
    lists, _ = await read(stub)
    assert outcomes(lists[0]) == [("b", 1, 0, 1, 9)]
    summary = await stub.GetRewardSummary(reward_pb2.GetRewardSummaryRequest())
    assert (summary.served_lists, summary.unjoined_events) == (1, 0)


async def test_duplicates_change_nothing(stub: Stub) -> None:
    first, other = served_list(1), served_list(1, ads=("x",))
    assert await put_lists(stub, first, other) == (1, 1)
    assert await put_lists(stub, other, served_list(2)) == (1, 1)
    assert await put_impressions(stub, impression("e1", 1, "a"), impression("e1", 1, "b")) == (1, 1)
    assert await put_impressions(stub, impression("e1", 2, "c")) == (0, 1)
    click, other_click = feedback("e1", 1, "a", revenue=5), feedback("e1", 1, "a", revenue=6)
    assert await put_feedback(stub, click, other_click, feedback("e1", 1, "a", CONVERSION)) == (2, 1)
    assert await put_feedback(stub, other_click) == (0, 1)
    lists, cursor = await read(stub)
    assert [rewarded.served_list for rewarded in lists] == [first, served_list(2)]
    assert outcomes(lists[0]) == [("a", 1, 1, 1, 5)]
    assert cursor == 2


async def test_reading_resumes_after_the_cursor_in_the_order_stored(stub: Stub) -> None:
    order = [5, 3, 9, 1, 7, 2, 8]  # more than two chunks of three
    await put_lists(stub, *map(served_list, order))
    lists, cursor = await read(stub)
    assert [rewarded.served_list.request_id for rewarded in lists] == [f"request-{n}" for n in order]
    assert cursor == 7
    await put_lists(stub, served_list(100))
    lists, cursor = await read(stub, cursor)
    assert [rewarded.served_list.request_id for rewarded in lists] == ["request-100"]
    assert await read(stub, cursor) == ([], cursor)
    lists, _ = await read(stub, 4)
    assert len(lists) == 4


async def test_summary_counts_everything(stub: Stub) -> None:
    await put_lists(stub, *(served_list(n) for n in range(4)))
    await put_impressions(stub, impression("e1", 0, "a"), impression("e2", 1, "b"), impression("e3", 99, "a"))
    await put_feedback(
        stub,
        feedback("e1", 0, "a", revenue=10),
        feedback("e1", 0, "a", CONVERSION, revenue=20),
        feedback("e4", 2, "b"),
        feedback("e5", 98, "b", CONVERSION, revenue=3),
    )
    summary = await stub.GetRewardSummary(reward_pb2.GetRewardSummaryRequest())
    assert summary == reward_pb2.GetRewardSummaryResponse(
        served_lists=4,
        impressions=3,
        clicks=2,
        conversions=2,
        revenue_micros=33,
        unjoined_events=2,
        lists_without_events=1,
        unattributed_feedback=1,
        last_cursor=4,
    )


async def test_an_empty_log_is_counted_as_such(stub: Stub) -> None:
    summary = await stub.GetRewardSummary(reward_pb2.GetRewardSummaryRequest())
    assert summary == reward_pb2.GetRewardSummaryResponse()


async def test_concurrent_writers_leave_no_gap_for_a_reader_that_follows(address: str) -> None:
    """Readers poll while writers with overlapping batches, in random orders, store; every list is read exactly once."""
    numbers = list(range(120))
    seen: list[str] = []
    writing = True

    async def write(seed: int) -> tuple[int, int]:
        generator = random.Random(seed)
        mine = generator.sample(numbers, len(numbers))
        stored = duplicates = 0
        async with open_channel(address) as channel:
            stub = reward_pb2_grpc.RewardServiceStub(channel)
            for start in range(0, len(mine), 10):
                counts = await put_lists(stub, *map(served_list, mine[start : start + 10]))
                stored, duplicates = stored + counts[0], duplicates + counts[1]
        return stored, duplicates

    async def follow() -> None:
        cursor = 0
        async with open_channel(address) as channel:
            stub = reward_pb2_grpc.RewardServiceStub(channel)
            while True:
                last = not writing
                lists, cursor = await read(stub, cursor)
                seen.extend(rewarded.served_list.request_id for rewarded in lists)
                if last:
                    return

    follower = asyncio.create_task(follow())
    counts = await asyncio.gather(*(write(seed) for seed in range(4)))
    writing = False
    await follower
    assert sum(stored for stored, _ in counts) == 120
    assert sum(duplicates for _, duplicates in counts) == 360
    assert sorted(seen) == sorted(f"request-{n}" for n in numbers)


async def refusal(call: grpc.aio.UnaryUnaryCall) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_a_bad_event_refuses_its_batch_and_is_named(stub: Stub) -> None:
    bad = impression("e2", 1, "a")
    bad.event_id = "nul\0"
    call = stub.BatchCreateImpressions(
        reward_pb2.BatchCreateImpressionsRequest(impressions=[impression("e1", 1, "a"), bad])
    )
    code, details = await refusal(call)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "impressions[1].event_id" in details
    assert "NUL" in details
    late = feedback("e1", 1, "a")
    late.event_time.seconds = 400_000_000_000
    code, details = await refusal(
        stub.BatchCreateFeedback(reward_pb2.BatchCreateFeedbackRequest(feedback=[feedback("e0", 1, "a"), late]))
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "event_time" in details
    listed = served_list(2)
    listed.request_id = "nul\0"
    code, details = await refusal(
        stub.BatchCreateServedLists(reward_pb2.BatchCreateServedListsRequest(served_lists=[served_list(1), listed]))
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "served_lists[1].request_id" in details
    summary = await stub.GetRewardSummary(reward_pb2.GetRewardSummaryRequest())
    assert summary == reward_pb2.GetRewardSummaryResponse()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda event: event.ClearField("event_id"), "event_id"),
        (lambda event: event.ClearField("type"), "type"),
        (lambda event: setattr(event, "revenue_micros", -1), "revenue_micros"),
        (lambda event: event.ClearField("event_time"), "event_time"),
    ],
)
async def test_limits_of_the_contract_hold(stub: Stub, change: object, field: str) -> None:
    event = feedback("e1", 1, "a")
    change(event)  # type: ignore[operator]
    code, details = await refusal(
        stub.BatchCreateFeedback(reward_pb2.BatchCreateFeedbackRequest(feedback=[feedback("e0", 1, "a"), event]))
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert f"feedback[1].{field}" in details


async def test_a_cursor_beyond_the_log_is_refused(stub: Stub) -> None:
    await put_lists(stub, served_list(1))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read(stub, 2)
    assert caught.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert "cursor: 2" in (caught.value.details() or "")
