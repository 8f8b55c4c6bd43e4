"""The benchmark of the result cache: the traffic of sessions, what could be answered again, a tiny run of it all."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ad_generator.ad_table import AdTable
from ad_generator.result_cache import ResultCache, request_key
from gr4ad.generation.v1 import generation_pb2
from gr4ad.type.v1 import type_pb2
from gr4ad_core.learning.data_folder import read_interactions
from gr4ad_tools.bench import app
from gr4ad_tools.bench.cache.visits import OPENS_S, Asking, Traffic, Visitors, ended_by_pause, repeated
from gr4ad_tools.bench.serve.client import Outcome
from gr4ad_tools.simulate import Market
from gr4ad_tools.simulate.event_log import CLICK_AFTER_S
from gr4ad_tools.simulate.scenarios import DAY_S
from typer.testing import CliRunner

from tests.gr4ad_tools.bench.tiny_run import interrupted, run_tiny

SECONDS, RATE = 300.0, 3.0
NOW = 1_800_000_000.0
TTL_S = 60.0
Response = generation_pb2.GenerateAdsResponse


@pytest.fixture(scope="module")
def market_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("market")
    Market("tiny", 0).write_folder(folder)
    return folder


def visitors(folder: Path) -> Visitors:
    """Return visitors of a market of their own, as it is at the end of its log: drawing moves it on."""
    market = Market("tiny", 0)
    assert len(market.log) > 0
    return Visitors(market, read_interactions(folder), seed=3)


@pytest.fixture(scope="module")
def traffic(market_folder: Path) -> Traffic:
    return visitors(market_folder).draw(RATE, SECONDS, NOW)


def contexts_by_user(traffic: Traffic) -> dict[str, list[tuple[float, type_pb2.UserContext]]]:
    """Return the moments at which each user asks, and with what."""
    found: dict[str, list[tuple[float, type_pb2.UserContext]]] = {}
    for moment, number in zip(traffic.arrivals, traffic.asked, strict=True):
        context = type_pb2.UserContext.FromString(traffic.contexts[number])
        found.setdefault(context.user_id, []).append((moment, context))
    return found


def test_users_come_when_the_market_says(traffic: Traffic) -> None:
    market, rng = Market("tiny", 0), np.random.default_rng([3, 0])
    expected: list[tuple[float, str]] = []
    day = market.config.days
    while len(expected) < RATE * SECONDS:
        opens = market.start + day * DAY_S + OPENS_S
        arrivals = market.arrivals(day, rng)
        for user, time in zip(arrivals.users_R, arrivals.times_R, strict=True):
            if opens <= time < opens + SECONDS:
                expected.append((time - opens, f"{market.user_ids[user]}-{opens:.0f}"))
        day += 1
    came = [
        (moment, type_pb2.UserContext.FromString(traffic.contexts[number]).user_id)
        for moment, number in zip(traffic.arrivals, traffic.asked, strict=True)
    ]
    assert sorted(came) == sorted(expected)
    assert list(traffic.arrivals) == sorted(traffic.arrivals)


def test_a_history_changes_by_clicks_and_conversions_alone(traffic: Traffic) -> None:
    changes = pages = 0
    for asked in contexts_by_user(traffic).values():
        for (earlier, before), (later, after) in pairwise(asked):
            pages += 1
            assert not after.HasField("request_time")
            if before == after:
                continue
            changes += 1
            added = after.history[len(before.history) :]
            assert list(after.history[: len(before.history)]) == list(before.history)
            assert added
            assert after.cold_start is False
            for event in added:
                assert event.behavior in (type_pb2.BEHAVIOR_CLICK, type_pb2.BEHAVIOR_CONVERSION)
                assert event.ad_id.endswith("-0")
                # Not before it happened, and by the next request it is there.
                assert int(NOW + asked[0][0] + CLICK_AFTER_S) <= event.event_time.seconds <= NOW + later
                if event.behavior == type_pb2.BEHAVIOR_CLICK:
                    assert event.event_time.seconds >= int(NOW + earlier) - 1 + CLICK_AFTER_S - (later - earlier)
    assert 0 < changes < pages / 2
    assert changes <= traffic.pages_clicked < len(traffic.asked) / 2
    assert len(set(traffic.contexts)) == len(traffic.contexts)


def test_what_is_known_of_a_user_is_what_the_log_says(traffic: Traffic, market_folder: Path) -> None:
    interactions = read_interactions(market_folder)
    logged = {user_id: number for number, user_id in enumerate(interactions.user_ids)}
    for user, asked in contexts_by_user(traffic).items():
        _, first = asked[0]
        number = logged.get(user.rpartition("-")[0])
        events = [] if number is None else range(*interactions.offsets[number : number + 2].tolist())
        ads = [f"{interactions.item_ids[interactions.items[event]]}-0" for event in events][-256:]
        assert [event.ad_id for event in first.history] == ads
        assert first.cold_start == (not ads)
        assert all(event.event_time.seconds < NOW for event in first.history)


def test_nobody_comes_twice(market_folder: Path) -> None:
    coming = visitors(market_folder)
    users = [set(contexts_by_user(coming.draw(RATE, 60.0, NOW))) for _ in range(2)]
    assert users[0]
    assert users[1]
    assert users[0].isdisjoint(users[1])


def test_what_is_repeated_is_what_the_generators_cache_finds(traffic: Traffic) -> None:
    now, table = 0.0, AdTable((3, 4))
    cache = ResultCache(TTL_S, 1_000_000, 1 << 30, clock=lambda: now)
    asking = Asking("", traffic, 20, 0.1)
    hits = []
    for number, moment in enumerate(traffic.arrivals):
        now = moment
        key = request_key(asking.request("run", number))
        found = cache.find(key, "policy", table)
        if found is None:
            cache.keep(key, cache.moment("policy", table), Response(), [], 0)
        hits.append(found is not None)
    counted = [hit for hit, moment in zip(hits, traffic.arrivals, strict=True) if moment >= TTL_S]
    assert repeated(traffic, TTL_S, TTL_S) == counted
    assert 0.1 < np.mean(counted) < 0.9


def test_requests_differ_by_number_and_begin_anew() -> None:
    contexts = tuple(type_pb2.UserContext(user_id=user, cold_start=True).SerializeToString() for user in "ab")
    asking = Asking("here:1", Traffic((0.0, 1.0, 2.0), (0, 1, 0), contexts, 0), 7, 0.1)
    asked = [asking.request("run", number) for number in range(4)]
    assert [request.user_context.user_id for request in asked] == ["a", "b", "a", "a"]
    assert len({request.request_id for request in asked}) == 4
    assert {(request.candidate_count, request.latency_budget_us) for request in asked} == {(7, 100_000)}


def outcome(number: int, sent: float, ads: str, origin: int = Response.ORIGIN_COMPUTED, code: str = "OK") -> Outcome:
    return Outcome(number, sent, sent, sent + 0.01, code, ad_ids=tuple(ads), origin=origin)


@pytest.mark.parametrize(
    ("paused_at", "again_at", "ended"),
    [
        ({"x": 5.0}, 10.0, 1),
        ({"z": 5.0}, 10.0, 0),  # an ad of somebody else
        ({"x": 9.5}, 10.0, 0),  # within the second that a pause may take
        ({"x": 5.0}, 60.0, 0),  # too old to be given again anyway
        ({}, 10.0, 0),
    ],
)
def test_counts_kept_answers_that_a_pause_ended(paused_at: dict[str, float], again_at: float, ended: int) -> None:
    traffic = Traffic((0.0, 1.0, again_at, again_at + 1.0), (0, 1, 0, 0), (b"a", b"b"), 0)
    outcomes = [
        outcome(0, 0.0, "xy"),
        outcome(1, 1.0, "z"),
        outcome(2, again_at, "yw"),
        outcome(3, again_at + 1.0, "yw", Response.ORIGIN_CACHED),
    ]
    assert ended_by_pause(outcomes, traffic, paused_at, TTL_S) == ended


def test_a_refused_request_leaves_no_answer() -> None:
    traffic = Traffic((0.0, 10.0), (0, 0), (b"a",), 0)
    outcomes = [outcome(0, 0.0, "", 0, "RESOURCE_EXHAUSTED"), outcome(1, 10.0, "y")]
    assert ended_by_pause(outcomes, traffic, {"x": 1.0}, TTL_S) == 0


OPTIONS = {
    "--load": "15", "--overload": "30", "--turns": "2", "--seconds": "4", "--keep-seconds": "5", "--churn": "0.5",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a tiny run of it all, and its figures."""
    folder = tmp_path_factory.mktemp("cache")
    return folder, run_tiny("cache", OPTIONS, folder)


@pytest.mark.long
def test_measures_a_running_generator(run: tuple[Path, dict[str, Any]]) -> None:
    _, figures = run
    assert 0 < figures["cache_hit_share"]["value"] <= figures["repeated_share"]["value"] + 0.01
    assert figures["cache_hit_share"]["n"] == figures["cache_qps_gain"]["n"] == 2
    assert figures["cache_hit_share"]["min"] <= figures["cache_hit_share"]["max"]
    assert figures["cache_qps_gain"]["value"] > 0
    assert 0 < figures["clicked_page_share"]["value"] < 0.5
    assert figures["hit_ms_p50"]["n"] > 0
    assert figures["ads_paused"]["value"] > 0
    assert figures["stale_ads"]["value"] == figures["stale_ads_uncached"]["value"] == 0
    assert figures["stale_ads"]["n"] > 0
    assert figures["failed"]["value"] == figures["restarts"]["value"] == 0


@pytest.mark.long
def test_an_interrupted_run_goes_on_where_it_was(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    finished, whole = run
    folder = tmp_path / "cache"
    shutil.copytree(finished, folder)
    kept = interrupted(folder, "turn 1")
    figures = run_tiny("cache", OPTIONS, folder)
    assert figures.keys() == whole.keys()
    assert figures["nominal_rps"] == whole["nominal_rps"]
    first = kept["turn 0"]["seen"]["shares"]["cache_hit_share"]
    assert first in (figures["cache_hit_share"]["min"], figures["cache_hit_share"]["max"])
    assert figures["cache_hit_share"]["n"] == 2


@pytest.mark.parametrize(
    ("options", "said"), [(["--preset", "huge"], "--preset: huge"), (["--widths", "1-2"], "--widths: 1-2")]
)
def test_refuses_options_that_make_no_run(options: list[str], said: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["cache", *options, "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert said in result.output
