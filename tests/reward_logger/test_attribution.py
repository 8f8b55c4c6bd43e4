"""Which list a response belongs to, what it is worth there, and when a list is told."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from gr4ad.reward.v1 import reward_pb2, reward_pb2_grpc
from gr4ad_runtime.db import Database
from gr4ad_runtime.telemetry import context_of
from opentelemetry.context import attach, detach
from reward_logger.settings import RewardLoggerSettings
from sqlalchemy import text

from tests.oracles import attribution_loop
from tests.oracles.reward_messages import feedback, impression, served_list

WINDOW = int(RewardLoggerSettings(database_url="postgresql+psycopg://").attribution_window_seconds)
START = 1_700_000_000
ADS = ("a", "b", "c")


async def store(
    stub: reward_pb2_grpc.RewardServiceAsyncStub,
    lists: list[reward_pb2.ServedList] = [],  # noqa: B006  # never changed
    impressions: list[reward_pb2.Impression] = [],  # noqa: B006
    responses: list[reward_pb2.Feedback] = [],  # noqa: B006
) -> None:
    if lists:
        await stub.BatchCreateServedLists(reward_pb2.BatchCreateServedListsRequest(served_lists=lists))
    if impressions:
        await stub.BatchCreateImpressions(reward_pb2.BatchCreateImpressionsRequest(impressions=impressions))
    if responses:
        await stub.BatchCreateFeedback(reward_pb2.BatchCreateFeedbackRequest(feedback=responses))


async def read(
    stub: reward_pb2_grpc.RewardServiceAsyncStub, cursor: int = 0, min_age_s: int | None = None
) -> list[reward_pb2.RewardedList]:
    age = None if min_age_s is None else Duration(seconds=min_age_s)
    request = reward_pb2.ReadRewardedListsRequest(cursor=cursor, min_age=age)
    return [rewarded async for part in stub.ReadRewardedLists(request) for rewarded in part.rewarded_lists]


@pytest.mark.parametrize("seed", range(6))
async def test_every_response_goes_where_the_loop_form_puts_it(
    stub: reward_pb2_grpc.RewardServiceAsyncStub, seed: int
) -> None:
    dice = random.Random(seed)

    def moment() -> int:
        return START + dice.choice([0, 10, 20, WINDOW - 5, WINDOW, WINDOW + 1, 2 * WINDOW]) + dice.randrange(3)

    lists, impressions, served = [], [], []
    for number in range(12):
        user, time = dice.choice(["", "u1", "u2"]), moment()
        shown = frozenset(ad for ad in ADS if dice.random() < 0.6)
        message = served_list(number, ADS, user_id=user)
        message.serve_time.FromSeconds(time)
        lists.append(message)
        impressions += [impression(f"i-{number}-{ad}", number, ad) for ad in sorted(shown)]
        served.append(attribution_loop.Served(message.request_id, user, time, shown))
    responses, expected = [], Counter[tuple[str, str]]()
    revenue = Counter[tuple[str, str]]()
    unattributed = 0
    for number in range(60):
        named = f"request-{dice.randrange(14)}" if dice.random() < 0.5 else ""
        user = dice.choice(["u1", "u2", "u3"])
        response = attribution_loop.Response(named, user, dice.choice(ADS), moment())
        event = feedback(f"f-{number}", 0, response.ad_id, revenue=number)
        event.request_id, event.user_id = named, user
        event.event_time.FromSeconds(response.time)
        responses.append(event)
        owner = attribution_loop.owner(response, served, WINDOW)
        if owner is None:
            unattributed += 1
        else:
            expected[owner, response.ad_id] += 1
            revenue[owner, response.ad_id] += number
    batches = [
        *({"lists": lists[n : n + 3]} for n in range(0, 12, 3)),
        *({"impressions": impressions[n : n + 4]} for n in range(0, len(impressions), 4)),
        *({"responses": responses[n : n + 9]} for n in range(0, 60, 9)),
    ]
    for batch in dice.sample(batches, len(batches)) + dice.sample(batches, 4):  # some come twice
        await store(stub, **batch)

    found = await read(stub)
    outcomes = {(r.served_list.request_id, o.ad_id): o for r in found for o in r.outcomes}
    assert {key: o.click_count for key, o in outcomes.items() if o.click_count} == dict(expected)
    assert {key: o.revenue_micros for key, o in outcomes.items() if o.revenue_micros} == {
        key: micros for key, micros in revenue.items() if micros
    }
    shown_ads = {(each.request_id, ad) for each in served for ad in each.shown}
    assert {key for key, o in outcomes.items() if o.impression_count} == shown_ads
    summary = await stub.GetRewardSummary(reward_pb2.GetRewardSummaryRequest())
    assert summary.unattributed_feedback == unattributed
    assert summary.clicks == 60
    assert summary.last_cursor == 12


async def test_revenue_is_priced_per_thousand_impressions(stub: reward_pb2_grpc.RewardServiceAsyncStub) -> None:
    await store(
        stub,
        [served_list(1)],
        [impression("i1", 1, "a"), impression("i2", 1, "a", position=1), impression("i3", 1, "b")],
        [feedback("f1", 1, "a", revenue=700), feedback("f2", 1, "c", revenue=3)],
    )
    (rewarded,) = await read(stub)
    assert {o.ad_id: o.ecpm_micros for o in rewarded.outcomes} == {"a": 350_000, "b": 0, "c": 3_000}


async def test_a_list_is_told_once_it_is_old_enough_and_none_is_passed_over(
    stub: reward_pb2_grpc.RewardServiceAsyncStub, database: Database
) -> None:
    for number in range(5):
        await store(stub, [served_list(number)])

    async def age(seq: int, seconds: int) -> None:
        async with database.session() as session:
            await session.execute(
                text("UPDATE list_feed SET store_time = clock_timestamp() - :age WHERE seq = :seq"),
                {"age": timedelta(seconds=seconds), "seq": seq},
            )

    assert await read(stub, min_age_s=60) == []
    for seq, seconds in ((1, 100), (2, 100), (3, 10), (4, 100), (5, 10)):
        await age(seq, seconds)
    assert [r.served_list.request_id for r in await read(stub, min_age_s=60)] == ["request-0", "request-1"]
    assert await read(stub, cursor=2, min_age_s=60) == []
    assert await read(stub, cursor=4, min_age_s=60) == []
    await age(3, 61)
    told = [r.served_list.request_id for r in await read(stub, cursor=2, min_age_s=60)]
    assert told == ["request-2", "request-3"]
    assert len(await read(stub)) == len(await read(stub, min_age_s=0)) == 5


async def test_a_list_names_the_traces_that_reported_its_outcomes(stub: reward_pb2_grpc.RewardServiceAsyncStub) -> None:
    await store(stub, [served_list(1), served_list(2)], [impression("i0", 1, "b")])
    traces = [f"{n:032x}" for n in range(1, 11)]
    for number, trace_id in enumerate(traces):
        token = attach(context_of(f"00-{trace_id}-b7ad6b7169203331-01"))
        try:
            event = feedback(f"f{number}", 1, "a")
            event.event_time.CopyFrom(Timestamp(seconds=3000 + number))
            await store(stub, responses=[event])
        finally:
            detach(token)
    first, second = await read(stub)
    assert [parent.split("-")[1] for parent in first.traceparents] == traces[:1:-1]
    assert list(second.traceparents) == []


async def test_a_response_that_names_nobody_is_refused(stub: reward_pb2_grpc.RewardServiceAsyncStub) -> None:
    event = feedback("f", 1, "a")
    event.request_id = ""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await store(stub, responses=[event])
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "request_id and user_id are empty" in (caught.value.details() or "")
