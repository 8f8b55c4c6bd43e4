"""The log of the simulated market: rates, bias, propensities, pacing, scenarios."""

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from gr4ad_core.learning.data_folder import check_folder, read_interactions, read_items
from gr4ad_tools.simulate import SCENARIOS, Market
from gr4ad_tools.simulate.scenarios import CONVERSION_TYPES, DAY_S, MarketConfig, scenario
from gr4ad_tools.simulate.traffic import _burst, day_arrivals

from tests.gr4ad_tools.simulated_market import MIDDLE, market

ITEM_KEYS = {
    "item_id",
    "title",
    "brand",
    "categories",
    "price",
    "description",
    "advertiser_id",
    "ad_type",
    "conversion_type",
    "bid_micros",
    "state",
}


@pytest.mark.parametrize("name", ["steady", "cold", "shift", "bursty"])
def test_base_rates_are_plausible(name: str) -> None:
    made = market(name)
    log = made.log

    assert 0.005 < log.clicks_N.sum() / log.impressions_N.sum() < 0.03
    for kind, conversion_type in enumerate(CONVERSION_TYPES):
        ads = made._ads.conversion_type_N == kind
        clicks, conversions = log.clicks_N[ads].sum(), log.conversions_N[ads].sum()
        if conversion_type == "click":
            assert conversions == 0
        else:
            assert 0.01 < conversions / clicks < 0.10, conversion_type


def test_popularity_is_zipf_like() -> None:
    clicks = np.sort(market().log.clicks_N)[::-1]

    # Log clicks against log rank fall on a line, over the part whose counts are not mostly noise.
    rank = np.log(np.arange(1, 201))
    slope, _ = np.polyfit(rank, np.log(clicks[:200]), 1)
    assert -1.5 < slope < -0.4
    assert np.corrcoef(rank, np.log(clicks[:200]))[0, 1] < -0.95
    assert clicks[:120].sum() / clicks.sum() > 0.4, "a tenth of the ads has two fifths of the clicks"


def test_the_folder_is_good_and_holds_what_the_log_says(tmp_path: Path) -> None:
    made = market()
    log = made.write_folder(tmp_path)

    assert check_folder(tmp_path) == []
    read = read_interactions(tmp_path)
    counts = Counter(read.behaviors.tolist())
    assert counts[2] == log.clicks_N.sum() == (log.behaviors_E == 2).sum()
    assert counts[3] == log.conversions_N.sum()
    skipped = log.impressions_N.sum() - log.clicks_N.sum()
    rate = made.config.skipped_impression_rate
    assert abs(counts[1] - rate * skipped) < 5 * np.sqrt(rate * skipped)
    for user in range(len(read.user_ids)):
        times = read.timestamps[read.offsets[user] : read.offsets[user + 1]]
        assert (np.diff(times) >= 0).all()
    assert read.timestamps.min() >= made.start
    assert read.timestamps.max() < made.end
    items = read_items(tmp_path)
    assert {item.item_id for item in items} == {item["item_id"] for item in made.items}
    assert len(items) == 1200


def test_every_conversion_follows_a_click_of_its_ad() -> None:
    log = market().log

    clicked: set[tuple[int, int]] = set()
    for user, ad, behavior in zip(log.users_E.tolist(), log.ads_E.tolist(), log.behaviors_E.tolist(), strict=True):
        if behavior == 2:
            clicked.add((user, ad))
        assert behavior != 3 or (user, ad) in clicked


def test_same_seed_same_folder_other_seed_other_folder(tmp_path: Path) -> None:
    files = []
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        Market("tiny", seed).write_folder(tmp_path / name)
        files.append((tmp_path / name / "interactions.csv.gz").read_bytes())

    assert files[0] == files[1] != files[2]
    assert (tmp_path / "one/items.jsonl.gz").read_bytes() == (tmp_path / "two/items.jsonl.gz").read_bytes()


def test_nothing_of_the_truth_is_in_the_folder(tmp_path: Path) -> None:
    made = market()
    made.write_folder(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["interactions.csv.gz", "items.jsonl.gz"]
    with gzip.open(tmp_path / "items.jsonl.gz", "rt") as text:
        records = [json.loads(line) for line in text]
    assert {frozenset(record) for record in records} == {frozenset(ITEM_KEYS)}
    with gzip.open(tmp_path / "interactions.csv.gz", "rt") as text:
        rows = csv.DictReader(text)
        assert rows.fieldnames is not None
        assert set(rows.fieldnames) == {
            "user_id", "item_id", "position", "timestamp", "event_type", "slot", "propensity",
        }  # fmt: skip
    # Neither the number in an id nor the place in the file goes with quality, topic, or time of arrival.
    numbers = np.array([int(record["item_id"].removeprefix("ad-")) for record in records])
    ads = np.array([made.ad_index[record["item_id"]] for record in records])
    creative = made._ads.creative_N[ads]
    for hidden in (
        made._ads.creatives.quality_C[creative],
        made._ads.creatives.topics_C2[creative, 0],
        made._ads.start_day_N[ads],
    ):
        assert abs(np.corrcoef(numbers, hidden)[0, 1]) < 0.12  # four standard errors of 1,200
    users = np.array([int(user_id.removeprefix("user-")) for user_id in made.user_ids])
    assert abs(np.corrcoef(users, made._users.activity_U)[0, 1]) < 0.15


def test_propensities_are_those_of_the_draw() -> None:
    made = Market("tiny", 1)
    policy, n = made._policy, 20_000
    live = np.ones(len(made._ads), dtype=bool)
    paused = np.zeros(len(made._ads), dtype=bool)
    paused[::7] = True
    policy.prepare(0, live)
    users = np.full(n, 3)

    ads_RL, propensity_RL = policy.lists(users, policy.propose(users), paused)

    assert not paused[ads_RL[ads_RL >= 0]].any()
    for row in ads_RL[:500]:
        assert len(np.unique(row[row >= 0])) == (row >= 0).sum()
    # First slot: each ad comes as often as its propensity says; then, given the first ad, so does the second.
    first, share = np.unique(ads_RL[:, 0], return_counts=True)
    told = np.array([propensity_RL[ads_RL[:, 0] == ad, 0][0] for ad in first])
    assert np.abs(share / n - told).max() < 5 * np.sqrt(told.max() / n)
    assert told.sum() == pytest.approx(1.0, abs=0.02)
    after = ads_RL[:, 0] == first[share.argmax()]
    second, share = np.unique(ads_RL[after, 1], return_counts=True)
    told = np.array([propensity_RL[after & (ads_RL[:, 1] == ad), 1][0] for ad in second])
    assert np.abs(share / after.sum() - told).max() < 5 * np.sqrt(told.max() / after.sum())


def test_every_live_ad_can_be_shown() -> None:
    made = market()
    log = made.log

    live_all_along = (made._ads.start_day_N == 0) & (made._ads.end_day_N > made.config.days)
    assert (log.impressions_N[live_all_along] > 0).all()
    assert log.propensities_E.min() >= made.config.exploration / len(made._ads)


def test_budgets_hold_and_pacing_pauses_and_resumes() -> None:
    made = Market("tiny", 2, budget_share=0.3)
    spend = np.zeros(len(made._money.budget_G))
    rng = np.random.default_rng(0)
    states = []
    for step in range(48):
        time = made.start + step * 1800.0
        now = made._money.paused(time)
        states.append(now)
        live = np.flatnonzero(~now[:240])
        users = rng.integers(0, 150, 40)
        lists = rng.choice(live, (40, 10))
        response = made.respond_many(users, lists, np.full(40, time), rng)
        np.add.at(spend, made._ads.campaign_N[lists], response.charge_micros_RL)
    changes = np.diff(np.stack(states).astype(int), axis=0)
    assert (changes == 1).any(), "some campaign was paused"
    assert (changes == -1).any(), "and some resumed within the day"
    # A budget is overspent by no more than what comes in between two looks at it, and late reports.
    assert (spend <= made._money.budget_G + 25 * made._ads.bid_micros_N.max()).all()
    assert not made._money.paused(made.start + DAY_S + 1.0).all()


@pytest.mark.parametrize(("name", "share"), [("steady", 0.05), ("cold", 0.5)])
def test_the_share_of_ads_that_no_log_holds(name: str, share: float) -> None:
    made = market(name)
    shown = made.log.impressions_N[: made.config.ads]
    started = made._ads.start_day_N[: made.config.ads] < made.config.days

    assert np.mean(~started) == pytest.approx(share, abs=0.001)
    assert shown[~started].sum() == 0
    assert np.mean(shown[started] > 0) > 0.98
    # Live once the log has ended, but for those that other tests have spent the budget of.
    late = made.end + 20 * 3600.0
    assert (made.live(late) | made._money.paused(late))[: made.config.ads][~started].all()


def test_one_creative_runs_for_different_goals() -> None:
    items = market().items
    by_content: dict[tuple[str, str], list[dict[str, object]]] = {}
    for item in items:
        by_content.setdefault((item["title"], item["description"]), []).append(item)
    several = [group for group in by_content.values() if len(group) > 1]

    assert len(several) > 0.3 * len(by_content)
    assert all(len({item["conversion_type"] for item in group}) == len(group) for group in several)
    assert all(len({item["bid_micros"] for item in group}) > 1 for group in several[:20])


def test_the_catalogue_s_tails() -> None:
    made = market()
    sizes = np.sort(np.bincount(made._ads.account_N[:1200]))[::-1]
    assert sizes[:15].sum() > 0.25 * sizes.sum(), "a tenth of the accounts runs over a quarter of the ads"
    assert len({tuple(item["categories"]) for item in made.items}) >= 40
    assert {item["ad_type"] for item in made.items} == {
        "short_video", "live_stream", "product", "external", "virtual_product", "local_service",
    }  # fmt: skip
    assert "paused" in {item["state"] for item in made.items}
    cold = made._users.cold_U
    per_user = np.bincount(made.log.users_E, minlength=800)
    assert per_user[cold].mean() < 0.1 * per_user[~cold].mean()


def test_new_ads_are_new_and_run_out() -> None:
    made = Market("tiny", 0)
    known = {item["item_id"] for item in made.items}
    first, second = made.new_ads(20), made.new_ads(40)

    ids = [item["item_id"] for item in first + second]
    assert len(set(ids)) == 60
    assert not known & set(ids)
    assert all(set(item) == ITEM_KEYS for item in first)
    assert made.live(made.end)[[made.ad_index[item_id] for item_id in ids]].all()
    with pytest.raises(ValueError, match="n is 1: 0 new ads are left"):
        made.new_ads(1)


def test_new_ads_are_not_live_before_they_are_handed_out() -> None:
    made = Market("tiny", 0)

    assert not made.live(made.end)[240:].any()


def test_shift_changes_bids_interests_and_advertisers() -> None:
    made, steady = market("shift"), market("steady")
    changes = made.bid_changes()
    old = {item["item_id"]: item["bid_micros"] for item in made.items}
    accounts = {item["advertiser_id"] for item in made.items}
    changed = {item["advertiser_id"] for item in made.items if item["item_id"] in changes}

    assert steady.bid_changes() == {}
    assert 0.2 < len(changed) / len(accounts) < 0.47
    assert all(bid == 2 * old[item_id] for item_id, bid in changes.items() if item_id in old)
    ad = made.ad_index[next(item_id for item_id in changes if item_id in old)]
    assert made.bids(made.end)[ad] == 2 * made.bids(made.end - 1)[ad]
    day = made.config.days
    for subject, moved in ((made, 0.5), (steady, 0.0)):
        interests = np.sort(subject._users.interests_UDM, axis=2)
        jumped = (interests[:, day] != interests[:, day - 1]).sum(axis=1) >= 3
        assert jumped.mean() == pytest.approx(moved, abs=0.06)
    later = Market("shift", 0, **MIDDLE).new_ads(50)
    assert not accounts & {item["advertiser_id"] for item in later}


def test_a_burst_is_five_times_what_is_usual_then() -> None:
    config, users = scenario("bursty"), Market("tiny", 0)._users
    rng = np.random.default_rng(0)
    length = config.burst_minutes * 60
    # One request a second by day, none by night.
    by_day = np.arange(6 * 3600.0, 24 * 3600.0)
    added = []
    for _ in range(200):
        burst_users, times = _burst(config, users, by_day, rng)
        assert len(burst_users) == len(times)
        if len(times) and times.min() > 7 * 3600 and times.max() < 23 * 3600:
            assert np.ptp(times) <= length
            added.append(len(times))
        elif len(times) and times.max() < 5 * 3600:
            raise AssertionError("a burst of nothing is nothing")
    assert np.mean(added) / length == pytest.approx(4.0, rel=0.02)


def test_bursts_come_as_often_as_configured() -> None:
    users = market()._users
    totals = {}
    for name in ("steady", "bursty"):
        rng = np.random.default_rng(0)
        totals[name] = np.mean([len(day_arrivals(scenario(name), users, day, rng)) for day in range(60)])
    # Six bursts of four minutes at five times the rate: 6 · 4 · 4 of 1,440 minutes more.
    assert totals["bursty"] / totals["steady"] == pytest.approx(1 + 6 * 4 * 4 / 1440, abs=0.05)


def test_interests_drift_slowly_and_jump_rarely() -> None:
    users = market()._users
    interests = np.sort(users.interests_UDM, axis=2)
    daily_jumps = (interests[:, 1:] != interests[:, :-1]).any(axis=2).mean()
    steps = np.abs(np.diff(users.weights_UDM, axis=1)).mean()

    assert 0.003 < daily_jumps < 0.02
    assert 0.001 < steps < 0.03
    stays = (users.intent_UD[:, 1:] == users.intent_UD[:, :-1]).mean()
    assert 0.83 < stays < 0.95


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"users": 0}, "users is 0: give 1 or more"),
        ({"new_ads": -1}, "new_ads is -1"),
        ({"cold_users": 1.5}, "cold_users is 1.5: give a share"),
        ({"exploration": 0.0}, "exploration is 0.0: give a share above 0"),
    ],
)
def test_a_bad_configuration_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Market("tiny", 0, **changes)


def test_an_unknown_scenario_is_refused() -> None:
    with pytest.raises(ValueError, match="scenario is 'calm': use one of steady"):
        Market("calm")


def test_scenarios_are_named_as_they_are_called() -> None:
    assert {name: make().name for name, make in SCENARIOS.items()} == {name: name for name in SCENARIOS}
    assert scenario("steady") == MarketConfig()


def test_pages_after_the_log_are_those_of_the_logging_policy() -> None:
    made = Market("tiny", 0)
    log = made.log
    pages_RL = made.logged_pages(np.repeat(np.arange(made.config.users), 20))
    assert pages_RL.shape == (20 * made.config.users, made.config.list_length)
    shown_RL = pages_RL >= 0
    assert shown_RL.mean() > 0.99
    for page, shown in zip(pages_RL, shown_RL, strict=True):
        assert len(set(page[shown])) == shown.sum()
    shares_N = np.bincount(pages_RL[shown_RL], minlength=len(log.impressions_N))
    assert np.corrcoef(shares_N, log.impressions_N)[0, 1] > 0.5  # popularity moved on day by day
