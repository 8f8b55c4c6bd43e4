"""Closed-loop users keep their number of requests under way, and what they measure is what happened."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from gr4ad.generation.v1 import generation_pb2
from gr4ad.sid.v1 import sid_pb2
from gr4ad.type.v1 import type_pb2
from gr4ad_tools import live_index
from gr4ad_tools.evaluation import ranking_figures, score
from gr4ad_tools.live_index import dead_ads, probe
from gr4ad_tools.traffic import Answer, run_users

from tests.gr4ad_tools.generation_double import Catalogue, Generator, serving

VISITS = [type_pb2.UserContext(user_id=f"u{n}", cold_start=True) for n in range(10)]


async def test_users_never_have_more_than_one_request_each_under_way() -> None:
    generator = Generator(lambda request: [(request.user_context.user_id, -1.0)], delay_s=0.01)
    stop = asyncio.Event()
    async with serving(generator) as channel:
        asyncio.get_running_loop().call_later(0.4, stop.set)
        traffic = await run_users(channel, VISITS, users=3, candidate_count=5, run_id="t", until=stop)
    assert generator.most_under_way == 3
    assert len(set(generator.request_ids)) == len(generator.request_ids) == len(traffic.answers)
    assert traffic.failed == 0
    assert min(traffic.latencies_ms) >= 10.0
    assert all(answer.ad_ids == (f"u{answer.visit}",) for answer in traffic.answers)
    assert {answer.visit for answer in traffic.answers} == set(range(10))
    assert all(answer.widths == (4, 8) for answer in traffic.answers)


async def test_failed_requests_are_counted_by_status_and_not_as_answers() -> None:
    generator = Generator(lambda _: [], fail=lambda request_id: request_id in {"t-0", "t-1"}, delay_s=0.01)
    stop = asyncio.Event()
    async with serving(generator) as channel:
        asyncio.get_running_loop().call_later(0.2, stop.set)
        traffic = await run_users(channel, VISITS, users=2, candidate_count=5, run_id="t", until=stop)
    assert traffic.failures == {"RESOURCE_EXHAUSTED": 2}
    assert len(traffic.answers) == len(generator.request_ids) - 2


async def test_lists_are_scored_by_log_probability_whatever_order_they_come_in() -> None:
    generator = Generator(lambda _: [("b", -2.0), ("a", -1.0), ("unknown", -3.0)])
    async with serving(generator) as channel:
        scored = await score(channel, VISITS[:2], ["a", "b", "c"], run_id="s")
    assert scored.ranked[:, :4].tolist() == [[0, 1, -1, -1]] * 2
    figures = ranking_figures(scored.ranked, np.array([1, 2]))
    assert figures["recall@5"].value == 0.5
    assert figures["ndcg@5"].value == pytest.approx(0.5 / np.log2(3))
    assert figures["recall@5"].n == 2


async def test_probes_measure_the_delay_of_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_index, "WATCH_PAUSED_S", 0.4)
    monkeypatch.setattr(live_index, "PAUSED_POLL_S", 0.02)
    lamp = sid_pb2.Ad(title="lamp", brand="b", conversion_type=sid_pb2.CONVERSION_TYPE_PURCHASE)
    live = {"one", "two", "three"}
    ads = dict.fromkeys(live, lamp)
    catalogue = Catalogue(live, delay_s=0.15)
    generator = Generator(lambda _: [(ad, -1.0) for ad in sorted(live)], delay_s=0.005)
    async with serving(generator, catalogue) as channel:
        delays = await probe(channel, channel, VISITS, ads, probes=3, run_id="p")
    assert delays.never_generated == 0
    assert all(150.0 <= delay < 400.0 for delay in delays.insert_ms)
    assert all(100.0 <= delay < 400.0 for delay in delays.pause_ms)
    assert [ad.title for ad in catalogue.created] == ["lamp"] * 3
    assert {ad.conversion_type for ad in catalogue.created} == {sid_pb2.CONVERSION_TYPE_PURCHASE}
    assert len({ad.ad_id for ad in catalogue.created}) == 3


async def test_a_probe_takes_the_user_and_the_ad_that_go_together_best_and_none_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(live_index, "WATCH_PAUSED_S", 0.1)
    live: set[str] = set()
    scores = {"u3": [("known", -0.5), ("other", -2.0)], "u5": [("other", -1.0), ("known", -3.0)]}

    def lists(request: generation_pb2.GenerateAdsRequest) -> list[tuple[str, float]]:
        user = request.user_context.user_id
        return scores.get(user, [("other", -9.0), ("stranger", -0.1)]) + [(ad, -7.0) for ad in live if user in scores]

    ads = {ad_id: sid_pb2.Ad(ad_id=ad_id, title=ad_id) for ad_id in ("known", "other")}
    catalogue = Catalogue(live, 0.0)
    async with serving(Generator(lists), catalogue) as channel:
        delays = await probe(channel, channel, VISITS, ads, probes=2, run_id="p")
    assert [ad.title for ad in catalogue.created] == ["known", "other"]
    assert delays.never_generated == 0


async def test_a_probe_that_finds_no_known_ad_counts_as_never_generated() -> None:
    async with serving(Generator(lambda _: [("stranger", -1.0)]), Catalogue(set(), 0.0)) as channel:
        delays = await probe(channel, channel, VISITS, {}, probes=2, run_id="p")
    assert delays.never_generated == 2
    assert delays.insert_ms == [5000.0, 5000.0]


async def test_an_ad_that_never_shows_is_told_and_not_taken_for_a_fast_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_index, "GIVE_UP_S", 0.3)
    monkeypatch.setattr(live_index, "WATCH_PAUSED_S", 0.1)
    ads = {"first": sid_pb2.Ad(ad_id="first")}
    async with serving(Generator(lambda _: [("first", -1.0)]), Catalogue(set(), 0.0)) as channel:
        delays = await probe(channel, channel, VISITS, ads, probes=1, run_id="p")
    assert delays.never_generated == 1
    assert delays.insert_ms == [300.0]


def test_an_ad_is_dead_only_in_answers_asked_for_a_second_after_its_pause() -> None:
    def answer(sent: float) -> Answer:
        return Answer("r", 0, sent, sent + 0.1, ("paused", "other"), (), (), "p")

    assert dead_ads([answer(9.0), answer(10.5), answer(10.99)], {"paused": 10.0}) == 0
    assert dead_ads([answer(11.01), answer(12.0)], {"paused": 10.0}) == 2
