"""Users while a policy learns: in order of time, each on one arm, and reported as they reacted."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import grpc
import numpy as np
import pytest
from gr4ad.type.v1 import type_pb2
from gr4ad_core.learning.data_folder import Interactions, read_interactions
from gr4ad_core.learning.item_lines import DEFAULT_BID_MICROS
from gr4ad_tools.audience import MarketAudience, ReplayAudience, Visit, seeded_bids
from gr4ad_tools.online_traffic import OnlineTraffic, run_online
from gr4ad_tools.simulate import Market
from gr4ad_tools.split import Split

from tests.gr4ad_tools.generation_double import Generator, serving

SPLIT = Split("test", 50)


@pytest.fixture
def market(tmp_path: Path) -> tuple[Market, Interactions]:
    made = Market("tiny", 5)
    made.write_folder(tmp_path)
    return made, read_interactions(tmp_path)


class Reports:
    """A tracker that only notes."""

    def __init__(self) -> None:
        self.impressions: list[tuple[str, str, int]] = []
        self.feedback: list[tuple[str, str, int, int, int]] = []

    def shown(self, *event: object) -> None:
        self.impressions.append(event)  # type: ignore[arg-type]

    def responded(self, *event: object) -> None:
        self.feedback.append(event)  # type: ignore[arg-type]


class Watched(MarketAudience):
    """A market's users, with what they were shown."""

    def respond(self, visits: Sequence[Visit], pages: Sequence[Sequence[str]]) -> list:  # type: ignore[type-arg]
        reactions = super().respond(visits, pages)
        self.seen = [*getattr(self, "seen", []), *zip(visits, pages, reactions, strict=True)]
        return reactions


async def run(
    audience: MarketAudience | ReplayAudience,
    generator: Generator,
    reports: Reports,
    requests: int,
) -> OnlineTraffic:
    async with serving(generator) as channel:
        return await run_online(
            audience,
            {"stable": channel, "canary": channel},
            SPLIT,
            reports,  # type: ignore[arg-type]
            requests=requests,
            candidate_count=20,
            users=8,
            run_id="run",
        )


async def test_the_market_sees_visits_in_order_and_its_charges_are_reported(
    market: tuple[Market, Interactions],
) -> None:
    made, interactions = market
    audience, reports = Watched(made, interactions, seed=1), Reports()
    live = [made.item_ids[ad] for ad in np.flatnonzero(made.live(made.end))][:15]
    numbers = itertools.count()

    def answer(_: object) -> list[tuple[str, float]]:
        start = next(numbers) % len(live)
        return [("of others", 0.0), *((ad, -float(n)) for n, ad in enumerate(live[start:] + live[:start]))]

    traffic = await run(audience, Generator(answer, delay_s=0.001), reports, 600)
    assert len(traffic.shown) == len(audience.seen) == 600
    times = [visit.time for visit, _, _ in audience.seen]
    assert times == sorted(times)
    assert len(reports.impressions) == 600 * made.config.list_length
    assert all(ad_id != "of others" for _, ad_id, _ in reports.impressions)
    reactions = [reaction for _, _, of_page in audience.seen for reaction in of_page]
    assert sum(r.clicked for r in reactions) > 10
    clicks = [event for event in reports.feedback if event[3] == 1]
    assert len(clicks) == sum(r.clicked for r in reactions)
    charged = sum(r.click_micros + r.conversion_micros for r in reactions)
    assert sum(event[4] for event in reports.feedback) == charged == sum(s.charge_micros for s in traffic.shown)
    per_click = {item["item_id"]: item["conversion_type"] == "click" for item in made.items}
    for _, page, of_page in audience.seen:
        for ad_id, reaction in zip(page, of_page, strict=True):
            assert not (reaction.click_micros and not per_click[ad_id])
            assert not (reaction.conversion_micros and (per_click[ad_id] or not reaction.converted))
    day, share = audience.clock()
    assert day >= made.config.days
    assert 0.0 <= share < 1.0


async def test_a_click_is_part_of_the_next_visits_history(market: tuple[Market, Interactions]) -> None:
    made, interactions = market
    audience = Watched(made, interactions, seed=1)
    live = [made.item_ids[ad] for ad in np.flatnonzero(made.live(made.end))][:10]
    await run(audience, Generator(lambda _: [(ad, 0.0) for ad in live]), Reports(), 800)
    since: dict[int, list[str]] = defaultdict(list)
    grown = 0
    for visit, page, of_page in audience.seen:
        known = [event.ad_id for event in visit.context.history]
        # Reactions to visits that were under way at the same time may still be missing.
        expected = since[visit.key][: max(0, len(since[visit.key]) - 8)]
        assert known[len(known) - len(since[visit.key]) :][: len(expected)] == expected or len(known) >= 256
        grown += bool(expected)
        since[visit.key] += [ad for ad, reaction in zip(page, of_page, strict=True) if reaction.clicked]
        assert visit.context.cold_start == (not known)
    again = next(v for v, _, _ in reversed(audience.seen) if since[v.key] and v.context.history)
    assert again.context.history[-1].event_time.seconds <= again.time


async def test_a_user_stays_on_one_arm_and_sends_the_bucket(market: tuple[Market, Interactions]) -> None:
    made, interactions = market
    traffic = await run(MarketAudience(made, interactions, 1), Generator(lambda _: []), Reports(), 300)
    arms = defaultdict(set)
    for shown in traffic.shown:
        arms[shown.user_id].add(shown.channel)
    assert all(arm == {SPLIT.channel(user)} for user, arm in arms.items())
    assert len({shown.channel for shown in traffic.shown}) == 2


async def test_a_request_that_fails_for_good_is_counted_and_holds_nobody_up(
    market: tuple[Market, Interactions], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, interactions = market
    monkeypatch.setattr("gr4ad_tools.online_traffic.RETRY_S", 0.0)
    refused = {"run-3", "run-17"}
    generator = Generator(lambda _: [], fail=lambda request_id: request_id in refused)
    monkeypatch.setattr("gr4ad_tools.online_traffic.AWAY", frozenset({grpc.StatusCode.UNAVAILABLE}))
    traffic = await run(MarketAudience(made, interactions, 1), generator, Reports(), 50)
    assert len(traffic.shown) == 48
    assert traffic.failures.total() == 2
    # The first two attempts fail; each has an id of its own: run-7, run-7-1, run-7-2.
    again = Generator(lambda _: [], fail=lambda request_id: not request_id.endswith("-2") or request_id == "run-2")
    monkeypatch.setattr("gr4ad_tools.online_traffic.AWAY", frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED}))
    traffic = await run(MarketAudience(made, interactions, 2), again, Reports(), 50)
    assert len(traffic.shown) == 50
    assert traffic.retries.total() == 100
    assert not traffic.failures


async def test_replayed_users_take_what_they_are_known_to_choose() -> None:
    contexts = [type_pb2.UserContext(user_id=f"u{n}", cold_start=True) for n in range(3)]
    bids = {"a": 5, "b": 7, "c": 9}
    audience, reports = ReplayAudience(contexts, ["a", "c", "b"], bids, page_size=2), Reports()
    traffic = await run(audience, Generator(lambda _: [("a", 0.0), ("x", 0.0), ("b", 0.0), ("c", 0.0)]), reports, 6)
    assert [s.charge_micros for s in sorted(traffic.shown, key=lambda s: s.user_id)] == [5, 5, 0, 0, 7, 7]
    assert len(reports.impressions) == 12
    assert sorted({(event[1], event[3], event[4]) for event in reports.feedback}) == [
        ("a", 1, 0),
        ("a", 2, 5),
        ("b", 1, 0),
        ("b", 2, 7),
    ]


def test_bids_are_made_up_only_where_there_are_none() -> None:
    given = {f"ad-{n}": DEFAULT_BID_MICROS for n in range(2000)}
    drawn, made_up = seeded_bids(given, 3)
    assert made_up
    assert drawn == seeded_bids(dict(reversed(given.items())), 3)[0] != seeded_bids(given, 4)[0]
    assert np.median(list(drawn.values())) == pytest.approx(DEFAULT_BID_MICROS, rel=0.1)
    assert np.log(list(drawn.values())).std() == pytest.approx(0.8, rel=0.1)
    own = {**given, "ad-7": 5}
    assert seeded_bids(own, 3) == (own, False)
