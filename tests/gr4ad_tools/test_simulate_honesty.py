"""Whether the yardstick can be trusted: bounds, blindness to the truth, labels that matter, intervals that hold."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from gr4ad_core.learning.data_folder import CLICK, Interactions, read_interactions, read_items
from gr4ad_tools import simulate
from gr4ad_tools.baselines import popularity_counts
from gr4ad_tools.simulate import Market, MarketConfig, version_hash
from gr4ad_tools.simulate.bounds import FOILS, expected_revenue, foil_lists, judge

from tests.gr4ad_tools.simulated_market import market


def requests(made: Market, n: int, seed: int) -> tuple[np.ndarray, float]:
    return np.random.default_rng(seed).integers(0, made.config.users, n), made.end + 12 * 3600.0


@pytest.mark.parametrize("name", ["steady", "cold", "shift", "bursty"])
def test_the_oracle_beats_everything(name: str) -> None:
    made = market(name)
    users, noon = requests(made, 150, 0)
    live = np.flatnonzero(made.live(noon))
    rng = np.random.default_rng(1)
    near = foil_lists("oracle", made, users, noon, 30, rng)  # its own first 30, reordered: hard to tell from it
    shuffled = rng.permuted(near, axis=1)[:, :10]

    table = judge(made, {"of the oracle's 30": shuffled}, users, noon, rng)

    assert table["oracle"].oracle_share == 1.0
    oracle = expected_revenue(made, users, near[:, :10], noon)
    for lists in (shuffled, foil_lists("popularity_bid", made, users, noon, 10, rng), rng.choice(live, (150, 10))):
        assert (oracle >= expected_revenue(made, users, lists, noon) - 1e-6).all(), "for every single request"
    assert table["oracle"].mean_micros > table["of the oracle's 30"].mean_micros > table["random"].mean_micros
    assert table["popularity_bid"].mean_micros > 2 * table["random"].mean_micros
    assert set(FOILS) < set(table)


def click_policy(train: Interactions) -> list[str]:
    """A policy that learns: the ads with the most clicks per appearance in the written log, for everybody alike."""
    shown = np.bincount(train.items[train.behaviors <= CLICK], minlength=len(train.item_ids))
    return [train.item_ids[item] for item in np.argsort(-popularity_counts(train) / (shown + 5.0), kind="stable")[:10]]


def test_labels_are_what_a_policy_learns_from(tmp_path: Path) -> None:
    made = market()
    made.write_folder(tmp_path)
    train = read_interactions(tmp_path)
    users, noon = requests(made, 200, 2)
    rng = np.random.default_rng(3)

    def earned(learned_from: Interactions) -> float:
        ads = [made.ad_index[item_id] for item_id in click_policy(learned_from)]
        return float(expected_revenue(made, users, np.broadcast_to(ads, (200, 10)), noon).mean())

    honest = earned(train)
    # Shuffled: which item an event is about is drawn anew, and with it goes all that there was to learn.
    shuffled = [
        earned(dataclasses.replace(train, items=rng.permutation(len(train.item_ids))[train.items])) for _ in range(60)
    ]
    everything = np.arange(made.config.ads)
    by_lot = [
        float(expected_revenue(made, users, np.broadcast_to(rng.choice(everything, 10, False), (200, 10)), noon).mean())
        for _ in range(60)
    ]
    error = np.sqrt(np.var(shuffled, ddof=1) / 60 + np.var(by_lot, ddof=1) / 60)
    assert abs(np.mean(shuffled) - np.mean(by_lot)) < 4 * error
    assert honest > np.mean(shuffled) + 4 * np.std(shuffled, ddof=1) / np.sqrt(60)


def test_results_move_with_seeds_as_their_intervals_say() -> None:
    made = Market("tiny", 0)
    truth = judge(made, {}, *requests(made, 6000, 99), np.random.default_rng(99))["random"].mean_micros
    scores = []
    for seed in range(40):
        result = judge(made, {}, *requests(made, 100, seed), np.random.default_rng(seed))["random"]
        scores.append((result.mean_micros - truth) / result.standard_error)
    # 95 % intervals that hold 85 % to 100 % of the time on 40 tries, and are not twice as wide as needed.
    assert np.mean(np.abs(scores) < 1.96) >= 0.85
    assert 0.5 < np.std(scores) < 1.6


def test_what_a_policy_can_hold_tells_the_truth_nowhere(tmp_path: Path) -> None:
    """Two markets that differ in hidden truth only give the same catalogue: it can tell nothing of the truth."""
    made, other = Market("tiny", 0), Market("tiny", 0)
    other._ads.creatives.quality_C[:] = -made._ads.creatives.quality_C
    other._ads.conversion_effect_A[:] = 0.0

    assert made.items == other.items
    made.write_folder(tmp_path)
    fields = {field.name for field in dataclasses.fields(read_items(tmp_path)[0])}
    assert fields == {
        "item_id", "title", "brand", "categories", "description", "price", "advertiser_id", "ad_type",
        "conversion_type", "bid_micros", "state",
    }  # fmt: skip
    response = made.respond(0, [1, 2, 3], made.end, np.random.default_rng(0))
    assert {field.name for field in dataclasses.fields(response)} == {
        "ads_RL", "clicked_RL", "converted_RL", "delay_s_RL", "charge_micros_RL",
    }  # fmt: skip


def test_a_conversion_that_is_not_reported_leaves_no_trace() -> None:
    made = Market("tiny", 0)
    made._behaviour._reported_N[:] = 0.0
    rng = np.random.default_rng(0)
    users, noon = requests(made, 400, 0)
    best = foil_lists("oracle", made, users, noon, 10, rng)
    made._behaviour._conversion_intercept_V[:] = 10.0  # every click converts

    response = made.respond_many(users, best, np.full(400, noon), rng)

    assert response.clicked_RL.any()
    assert not response.converted_RL.any()
    assert not response.delay_s_RL.any()
    by_click = made._ads.conversion_type_N[best] == 0
    assert not response.charge_micros_RL[~by_click].any()


def test_the_version_moves_with_configuration_and_code_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = MarketConfig()
    assert Market("tiny", 0).version == Market("tiny", 1).version
    assert version_hash(config) != version_hash(dataclasses.replace(config, ctr=0.051))

    package = Path(simulate.__file__).parent
    for source in package.glob("*.py"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr("gr4ad_tools.simulate.version.__file__", str(tmp_path / "version.py"))
    before = version_hash(config)
    (tmp_path / "money.py").write_bytes((tmp_path / "money.py").read_bytes() + b"#\n")
    assert before != version_hash(config)


def test_scoring_does_not_move_the_market() -> None:
    made = Market("tiny", 0)
    users, lists = np.arange(20), np.arange(200).reshape(20, 10)
    digests = set()
    for _ in range(3):
        digests.add(hashlib.sha256(made.true_ecpm(users, lists, made.end).tobytes()).hexdigest())
    assert len(digests) == 1


def test_chunks_of_scoring_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Market("tiny", 0)
    users, lists = np.arange(30), np.arange(90).reshape(30, 3)
    times = made.end + np.arange(30) * 1000.0
    whole = made.true_ecpm(users, lists, times)

    monkeypatch.setattr("gr4ad_tools.simulate.market.CHUNK_PAIRS", 7)

    np.testing.assert_allclose(made.true_ecpm(users, lists, times), whole, rtol=1e-6)
