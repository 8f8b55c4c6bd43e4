"""GenerateAds end to end in one process: what comes back, and what never does."""

from __future__ import annotations

import asyncio
import math
import time
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import torch
from ad_generator.ad_table import AdTable
from ad_generator.arrival import Arrival
from ad_generator.batcher import Batched
from ad_generator.engine import Generated, LoadedPolicy
from ad_generator.generation import Generation
from ad_generator.list_sender import Served
from ad_generator.policy_messages import Stages
from ad_generator.ranking import ranking_order
from gr4ad.generation.v1 import generation_pb2
from gr4ad.sid.v1 import sid_pb2
from gr4ad.type.v1 import type_pb2
from gr4ad_core.decoding.beam_schedule import BeamPlan, Constraint
from gr4ad_core.model.context import collate_contexts
from gr4ad_core.model.history import UserHistory
from gr4ad_runtime.app import drain

from tests.ad_generator.neighbours import ACTIVE, PAUSED, eventually
from tests.ad_generator.policies import publish, random_model
from tests.ad_generator.suite import ALL_SIDS, Neighbours, Suite, request, run_generator, run_ready_generator


async def test_candidates_are_those_of_the_model(suite: Suite) -> None:
    history = ["ad-0-1-2", "ad-3-4-5", "ad-1-1-1"]
    answer = await suite.ask(history, count=10)

    model = random_model(seed=1)
    sids = np.array([[int(code) for code in ad_id.split("-")[1:]] for ad_id in history])
    user = UserHistory(sids, np.full(3, 2), np.full(3, np.nan), request_time=1_700_000_000.0)
    every_sid = torch.tensor(ALL_SIDS)[None]
    with torch.inference_mode():
        context = model.encode_context(collate_contexts([user], model.config))
        log_probs = model.sid_log_probs(context, every_sid)[0]
        ecpm = model.expected_value(model.decode_paths(context, every_sid)[:, :, -1])[0]
    assert len(answer.candidates) == 10
    assert list(answer.beam_trace.widths) == [3, 6, 10]
    assert answer.beam_trace.constrained_by == generation_pb2.BeamTrace.CONSTRAINT_SCHEDULE
    assert answer.policy.policy_id == "first"
    places = [ALL_SIDS.index(tuple(ad.sid.codes)) for ad in answer.candidates]
    for ad, place in zip(answer.candidates, places, strict=True):
        assert ad.ad_id == "ad-" + "-".join(map(str, ad.sid.codes))
        assert ad.log_prob == pytest.approx(float(log_probs[place]), abs=1e-5)
        assert ad.predicted_ecpm_micros == pytest.approx(float(ecpm[place]), rel=1e-4)
    scores = [float(log_probs[place]) + math.log(float(ecpm[place])) for place in places]
    assert scores == sorted(scores, reverse=True)


async def test_a_value_weight_of_zero_ranks_by_likelihood(neighbours: Neighbours) -> None:
    async with run_ready_generator(neighbours, value_weight=0.0) as suite:
        log_probs = [ad.log_prob for ad in (await suite.ask(["ad-0-0-0"], count=10)).candidates]
    assert log_probs == sorted(log_probs, reverse=True)
    assert len(set(log_probs)) == 10


def test_ranking_keeps_the_order_of_equals_and_survives_worthless_ads() -> None:
    log_probs = np.array([-1.0, -1.0, -3.0, -1.0])
    ecpm = np.array([100.0, 100.0, 100.0 * math.e**2.5, 0.0])
    assert ranking_order(log_probs, ecpm, 1.0).tolist() == [2, 0, 1, 3]
    assert ranking_order(log_probs, ecpm, 0.0).tolist() == [0, 1, 3, 2]


async def test_only_live_ads_come_back(neighbours: Neighbours) -> None:
    live = set(neighbours.catalogue.fill(ALL_SIDS[::3]))
    for sid in ALL_SIDS[1::3]:
        neighbours.catalogue.put("paused-" + "-".join(map(str, sid)), sid, PAUSED)
    neighbours.channel.activate(publish(neighbours.store_url, "first", seed=1))
    async with run_generator(neighbours) as suite:
        await suite.serves("first")
        assert (await suite.status()).live_ads == len(live)
        for number in range(5):
            answer = await suite.ask([f"paused-{'-'.join(map(str, ALL_SIDS[1 + 3 * number]))}"], count=10)
            assert len(answer.candidates) == 10
            assert {ad.ad_id for ad in answer.candidates} <= live
            assert answer.skipped_history_events == 0  # a paused ad is still a true event


async def test_more_candidates_than_live_ads_are_as_many_as_there_are(neighbours: Neighbours) -> None:
    live = neighbours.catalogue.fill(ALL_SIDS[::20])
    neighbours.channel.activate(publish(neighbours.store_url, "first", seed=1))
    async with run_generator(neighbours) as suite:
        await suite.serves("first")
        answer = await suite.ask(count=512)
        assert {ad.ad_id for ad in answer.candidates} == set(live)
        assert answer.beam_trace.constrained_by == generation_pb2.BeamTrace.CONSTRAINT_LIVE_PREFIXES


async def test_an_empty_catalogue_gives_an_empty_answer_until_an_ad_comes(neighbours: Neighbours) -> None:
    neighbours.channel.activate(publish(neighbours.store_url, "first", seed=1))
    async with run_generator(neighbours) as suite:
        await suite.serves("first")
        assert not (await suite.ask()).candidates
        neighbours.catalogue.put("only", (1, 2, 3))
        await suite.reaches(lambda status: status.live_ads == 1, "the ad is indexed")
        assert [ad.ad_id for ad in (await suite.ask()).candidates] == ["only"]


async def test_pauses_and_new_ads_show_at_once(suite: Suite) -> None:
    catalogue = suite.neighbours.catalogue
    best = (await suite.ask(count=3)).candidates
    for ad in best:
        cursor = catalogue.put(ad.ad_id, ad.sid.codes, PAUSED)
    await suite.reaches(lambda status: status.catalog_cursor >= cursor, "the pauses are indexed")
    gone = {ad.ad_id for ad in best}
    again = await suite.ask(count=10)
    assert len(again.candidates) == 10
    assert not gone & {ad.ad_id for ad in again.candidates}

    cursor = catalogue.put(best[0].ad_id, best[0].sid.codes, ACTIVE)
    await suite.reaches(lambda status: status.catalog_cursor >= cursor, "the ad is indexed again")
    assert best[0].ad_id in {ad.ad_id for ad in (await suite.ask(count=3)).candidates}


async def test_unknown_ads_of_the_history_are_skipped_and_counted(suite: Suite) -> None:
    known = await suite.ask(["ad-0-1-2", "ad-1-1-1"])
    mixed = await suite.ask(["nobody", "ad-0-1-2", "nothing", "ad-1-1-1"])
    assert mixed.skipped_history_events == 2
    assert [ad.ad_id for ad in mixed.candidates] == [ad.ad_id for ad in known.candidates]
    all_unknown = await suite.ask(["nobody"])
    cold = await suite.ask()
    assert [ad.ad_id for ad in all_unknown.candidates] == [ad.ad_id for ad in cold.candidates]


async def test_the_history_matters(suite: Suite) -> None:
    lists = [
        tuple(ad.ad_id for ad in (await suite.ask(history)).candidates) for history in (["ad-0-0-0"], ["ad-3-4-5"])
    ]
    assert lists[0] != lists[1]


async def test_neighbours_in_a_batch_do_not_change_an_answer(suite: Suite) -> None:
    histories = [[], ["ad-0-0-0"], ["ad-3-4-5", "ad-1-1-1"], [f"ad-{i % 4}-{i % 5}-{i % 6}" for i in range(20)]]
    alone = [await suite.ask(history, count) for history, count in zip(histories, (1, 5, 10, 40), strict=True)]
    together = await asyncio.gather(
        *(suite.ask(history, count) for history, count in zip(histories, (1, 5, 10, 40), strict=True))
    )
    for one, other in zip(alone, together, strict=True):
        assert [ad.ad_id for ad in one.candidates] == [ad.ad_id for ad in other.candidates]
        assert [ad.log_prob for ad in one.candidates] == pytest.approx(
            [ad.log_prob for ad in other.candidates], abs=1e-5
        )
    assert [len(answer.candidates) for answer in alone] == [1, 5, 10, 40]


async def test_before_a_policy_requests_are_refused_with_a_remedy(neighbours: Neighbours) -> None:
    neighbours.catalogue.fill(ALL_SIDS)
    async with run_generator(neighbours) as suite:
        assert not suite.lifecycle.ready
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await suite.ask()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "channel stable: publish a policy to the channel" in refused.value.details()
        neighbours.channel.activate(publish(neighbours.store_url, "first", seed=1))
        await eventually(lambda: suite.lifecycle.ready, "the generator is ready")
        assert (await suite.ask()).candidates


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"user_context": type_pb2.UserContext()}, "history is empty"),
        ({"history": ["ad-0-0-0"] * 257}, "user_context.history"),
        ({"count": 513}, "candidate_count"),
        ({"request_id": ""}, "request_id"),
    ],
)
async def test_a_request_against_the_contract_is_refused(suite: Suite, values: dict[str, object], said: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await suite.ask(**values)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert said in refused.value.details()


async def test_a_request_whose_time_is_over_is_not_computed(suite: Suite) -> None:
    answered = (await suite.status()).requests_answered
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await suite.ask(latency_budget_us=1)
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "latency_budget_us" in refused.value.details()
    assert (await suite.status()).requests_answered == answered


async def test_served_lists_reach_the_reward_log(suite: Suite) -> None:
    asked = request(["ad-0-1-2"], 4)
    answer = await suite.stub.GenerateAds(asked)
    rewards = suite.neighbours.rewards
    await eventually(lambda: asked.request_id in rewards.lists, "the list is stored")
    stored = rewards.lists[asked.request_id]
    assert stored.user_context == asked.user_context
    assert list(stored.candidates) == list(answer.candidates)
    assert stored.policy == answer.policy
    assert list(stored.widths) == list(answer.beam_trace.widths)
    await suite.reaches(lambda status: status.lists_sent == 1 and not status.lists_queued, "the list counts as sent")


async def test_a_drain_sends_the_last_lists(neighbours: Neighbours) -> None:
    async with run_ready_generator(neighbours) as suite:
        answers = await asyncio.gather(*(suite.ask() for _ in range(20)))
        await drain(suite.server, suite.lifecycle, 5.0)
    assert len(neighbours.rewards.lists) == len(answers) == 20


async def test_an_answer_from_a_replaced_catalogue_is_checked_against_the_new_one() -> None:
    old, new = AdTable((3,)), AdTable((3,))
    for table, states in ((old, (ACTIVE, ACTIVE, ACTIVE)), (new, (PAUSED, ACTIVE))):
        for number, state in enumerate(states):
            sid = type_pb2.SemanticId(codes=[number])
            table.apply([sid_pb2.CatalogEntry(ad_id=f"ad-{number}", sid=sid, state=state)])
    policy = LoadedPolicy(type_pb2.PolicyRef(policy_id="old"), SimpleNamespace())
    plan, stages = BeamPlan((3,), Constraint.SCHEDULE), Stages(0, 1, (1,), 1)
    found = Generated(policy, old, [0, 1, 2], [[0], [1], [2]], [-1.0, -2.0, -3.0], [3, 2, 1], plan, stages, 0)
    offered: list[Served] = []

    async def submit(query: object, candidate_count: int, deadline: float) -> Batched[Generated]:
        return Batched(found, 0, 0, 0, batch_size=1)

    generation = Generation(
        SimpleNamespace(state=SimpleNamespace(mirror=SimpleNamespace(table=new))),
        SimpleNamespace(submit=submit),
        SimpleNamespace(offer=offered.append),
        channel="stable",
        default_budget_us=1,
    )
    answer = await generation.generate(request(), Arrival(time.monotonic()))
    assert [ad.ad_id for ad in answer.candidates] == ["ad-1"]  # ad-0 was paused, ad-2 is not known there
    assert [list(served.response.candidates) for served in offered] == [list(answer.candidates)]
