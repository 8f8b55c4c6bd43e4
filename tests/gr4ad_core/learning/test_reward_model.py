"""The reward model: found again from what a known one drew, calibrated, and never led by an ad's own answer."""

from __future__ import annotations

import numpy as np
import pytest
from gr4ad_core.learning import reward_model
from gr4ad_core.learning.reward_model import RewardModel, ShownAds
from scipy.optimize import minimize

ADS = 200
TRUE = (-3.0, 0.4, -0.5)  # intercept, log_prob, log(1 + place); an ad's own rate comes on top


def drawn(count: int, seed: int, spread: float = 0.8) -> tuple[ShownAds, np.ndarray]:
    """Shown ads whose responses are drawn from known probabilities, and those."""
    rng = np.random.default_rng(seed)
    effect_A = np.random.default_rng(99).normal(0.0, spread, ADS)
    keys = rng.integers(ADS, size=count)
    log_prob, places = rng.normal(-6.0, 1.5, count), rng.integers(10, size=count)
    logits = TRUE[0] + TRUE[1] * (log_prob + 6.0) + TRUE[2] * np.log1p(places) + effect_A[keys]
    p = 1.0 / (1.0 + np.exp(-logits))
    return ShownAds(keys, log_prob, places, rng.random(count) < p), p


def fitted(shown: ShownAds, window: int = 1_000_000) -> RewardModel:
    model = RewardModel(window)
    model.observe(shown)
    assert model.fit()
    return model


def test_a_known_model_is_found_again():
    model = fitted(drawn(150_000, 0)[0])
    assert model.state()["weights"][1] == pytest.approx(TRUE[1], rel=0.1)
    assert model.state()["weights"][3] == pytest.approx(TRUE[2], rel=0.1)
    other, p = drawn(20_000, 1)
    expected = model.response_rate(other.keys_M, other.log_prob_M, other.places_M)
    assert np.corrcoef(np.log(expected), np.log(p))[0, 1] > 0.95


def test_expected_and_drawn_responses_agree_in_every_tenth():
    model = fitted(drawn(150_000, 0)[0])
    other, _ = drawn(100_000, 1)
    expected = model.response_rate(other.keys_M, other.log_prob_M, other.places_M)
    for part in np.array_split(np.argsort(expected), 10):
        came = other.responded_M[part].sum()
        assert abs(expected[part].sum() - came) < 5.0 * np.sqrt(came) + 0.1 * came


def test_newtons_method_ends_at_the_optimum():
    rng = np.random.default_rng(3)
    features = np.column_stack([np.ones(500), rng.normal(size=(500, 2))])
    targets = (rng.random(500) < 0.1).astype(float)

    def cost(weights: np.ndarray) -> float:
        logits = features @ weights
        ridge = 0.5 * reward_model.RIDGE * (weights[1:] ** 2).sum()
        return float((np.logaddexp(0.0, logits) - targets * logits).sum() + ridge)

    found = reward_model._logistic(features, targets)
    np.testing.assert_allclose(found, minimize(cost, np.zeros(3), tol=1e-10).x, atol=1e-4)


def test_where_ads_do_not_differ_their_rates_count_for_nothing():
    weights = fitted(drawn(60_000, 5, spread=0.0)[0]).state()["weights"]
    assert abs(weights[2]) < 0.25  # a rate that held the observation's own answer would have a weight far above this


def test_too_few_responses_leave_it_unready():
    model = RewardModel(1000)
    assert not model.fit()
    shown, _ = drawn(40, 0)
    model.observe(shown)
    assert not model.fit()
    assert not model.ready
    with pytest.raises(ValueError, match="fewer than 50 responses"):
        model.response_rate(shown.keys_M, shown.log_prob_M, shown.places_M)


def test_an_unknown_ad_has_the_mean_rate_and_the_window_forgets():
    model = fitted(drawn(30_000, 0)[0], window=20_000)
    assert len(model.state()["keys"]) == 20_000
    keys = np.array([10_000, -5])
    rates = model.response_rate(keys, np.array([-6.0, -6.0]), 0)
    assert rates[0] == rates[1]
    assert 0.0 < rates[0] < 1.0


def test_a_restored_model_goes_on_as_the_one_before():
    first, second = drawn(20_000, 0)[0], drawn(20_000, 1)[0]
    model = fitted(first)
    other = RewardModel(1_000_000)
    other.restore(model.state())
    for each in (model, other):
        each.observe(second)
        each.fit()
    np.testing.assert_array_equal(
        *(each.response_rate(second.keys_M, second.log_prob_M, second.places_M) for each in (model, other))
    )
