"""Intervals against a loop that draws users one by one, against the normal approximation, and against the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gr4ad_tools import bootstrap
from gr4ad_tools.bootstrap import Interval, UserSums, bootstrap_quantiles, bootstrap_ratio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import bootstrap_loop as oracle

whole = st.integers(0, 3).map(float)
observation = st.tuples(st.sampled_from("abcde"), whole, whole)
observations = st.lists(observation, min_size=1, max_size=8)
confidences = st.sampled_from([0.5, 0.9, 0.95])


def columns(rows: list[tuple[str, float, float]]) -> tuple[list[str], list[tuple[float, float]], UserSums]:
    users, numerators, denominators = (np.array(column) for column in zip(*rows, strict=True))
    pairs = list(zip(numerators.tolist(), denominators.tolist(), strict=True))
    return users.tolist(), pairs, UserSums.of(users, numerators, denominators)


def same(found: Interval, expected: tuple[float, float]) -> None:
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-12)


@given(observations, confidences, st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_ratio_is_that_of_users_drawn_one_by_one(
    rows: list[tuple[str, float, float]], confidence: float, seed: int
) -> None:
    users, pairs, sums = columns(rows)
    found = bootstrap_ratio(sums, seed=seed, resamples=40, confidence=confidence)
    same(found, oracle.interval(users, pairs, oracle.ratio, 40, confidence, seed))
    np.testing.assert_equal(found.value, oracle.ratio(pairs))


@given(observations, observations, st.booleans(), confidences, st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_lift_is_that_of_users_drawn_one_by_one(
    rows: list[tuple[str, float, float]],
    others: list[tuple[str, float, float]],
    paired: bool,
    confidence: float,
    seed: int,
) -> None:
    if paired:  # both arms answered all users
        rows, others = (half + [(user, 1.0, 1.0) for user in "abcde"] for half in (rows, others))
    (users, pairs, arm), (other_users, other_pairs, baseline) = columns(rows), columns(others)
    found = bootstrap_ratio(arm, baseline, paired=paired, seed=seed, resamples=40, confidence=confidence)
    same(found, oracle.lift_interval(users, pairs, other_users, other_pairs, paired, 40, confidence, seed))
    np.testing.assert_equal(found.value, oracle.lift(pairs, other_pairs))


@given(observations, confidences, st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_quantiles_are_those_of_users_drawn_one_by_one(
    rows: list[tuple[str, float, float]], confidence: float, seed: int
) -> None:
    users, pairs, _ = columns(rows)
    values = np.array([pair[0] for pair in pairs])
    both = bootstrap_quantiles(np.array(users), values, [0.5, 0.99], seed=seed, resamples=40, confidence=confidence)
    for q, found in zip((0.5, 0.99), both, strict=True):
        same(found, oracle.interval(users, pairs, lambda drawn, q=q: oracle.quantile(drawn, q), 40, confidence, seed))
        assert found.value == oracle.quantile(pairs, q)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    users, values = random.integers(30, size=100), random.normal(size=100)
    sums = UserSums.of(users, values, np.ones(100))
    at_once = bootstrap_ratio(sums, seed=1), bootstrap_quantiles(users, values, [0.9], seed=1)
    monkeypatch.setattr(bootstrap, "CHUNK_CELLS", 700)
    assert (bootstrap_ratio(sums, seed=1), bootstrap_quantiles(users, values, [0.9], seed=1)) == at_once


def test_a_mean_has_the_interval_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).exponential(size=4000)
    found = bootstrap_ratio(UserSums.of(np.arange(4000), values, np.ones(4000)), seed=3)
    half = 1.96 * values.std() / math.sqrt(4000)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def draw_arm(
    random: np.random.Generator, users: int, rate: float, spread: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return users, clicks and impressions of lists: each user has a rate of its own and 1 to 9 lists of 4 ads."""
    rates = np.clip(rate * random.gamma(1 / spread, spread, size=users), 0, 1)
    user_N = np.repeat(np.arange(users), random.integers(1, 10, size=users))
    return user_N, random.binomial(4, rates[user_N]), np.full(len(user_N), 4)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rounds, random = 150, np.random.default_rng(7)
    held = {"ratio": 0, "lift": 0, "as if each list were a user": 0}
    for seed in range(rounds):
        arm, baseline = draw_arm(random, 200, 0.12, 1.0), draw_arm(random, 200, 0.1, 1.0)
        ratio = bootstrap_ratio(UserSums.of(*arm), seed=seed, resamples=400)
        lift = bootstrap_ratio(UserSums.of(*arm), UserSums.of(*baseline), seed=seed, resamples=400)
        alone = bootstrap_ratio(UserSums.of(np.arange(len(arm[0])), *arm[1:]), seed=seed, resamples=400)
        held["ratio"] += ratio.low <= 0.12 <= ratio.high
        held["lift"] += lift.low <= 0.2 <= lift.high
        held["as if each list were a user"] += alone.low <= 0.12 <= alone.high
    # Three standard deviations of a share of 0.95 in 150 rounds are 0.053; a percentile interval is a little short.
    assert 0.88 * rounds <= held["ratio"] <= rounds
    assert 0.88 * rounds <= held["lift"] <= rounds
    assert held["as if each list were a user"] < 0.85 * rounds


def test_pairing_takes_out_what_the_users_have_in_common() -> None:
    random = np.random.default_rng(0)
    worth = random.exponential(size=500)
    users, ones = np.arange(500), np.ones(500)
    arm = UserSums.of(users, 1.1 * worth + random.normal(0, 0.01, 500), ones)
    baseline = UserSums.of(users, worth, ones)
    paired = bootstrap_ratio(arm, baseline, paired=True, seed=0)
    apart = bootstrap_ratio(arm, baseline, seed=0)
    assert paired.value == apart.value
    assert paired.low < 0.1 < paired.high
    assert apart.low < 0 < apart.high
    assert paired.high - paired.low < 0.1 * (apart.high - apart.low)


def test_users_are_in_one_order_whatever_the_order_of_their_requests() -> None:
    one = UserSums.of(np.array(["b", "a", "b"]), np.array([1, 2, 4]), np.array([1, 1, 1]))
    assert one.users_U.tolist() == ["a", "b"]
    assert (one.numerators_U.tolist(), one.denominators_U.tolist()) == ([2.0, 5.0], [1.0, 2.0])


def test_what_nothing_defines_is_not_a_number() -> None:
    nothing = UserSums.of(np.arange(3), np.zeros(3), np.zeros(3))
    nobody = UserSums.of(np.array([], np.int64), np.array([]), np.array([]))
    no_values = bootstrap_quantiles(np.array([], np.int64), np.array([]), [0.5], seed=0)
    for found in (bootstrap_ratio(nothing, seed=0), bootstrap_ratio(nobody, seed=0), *no_values):
        assert all(map(math.isnan, (found.value, found.low, found.high)))
    free = UserSums.of(np.arange(3), np.zeros(3), np.ones(3))
    paid = UserSums.of(np.arange(3), np.ones(3), np.ones(3))
    assert bootstrap_ratio(paid, free, seed=0) == Interval(math.inf, math.inf, math.inf)


def test_paired_arms_of_different_users_are_refused() -> None:
    one, two = (UserSums.of(np.arange(n), np.ones(n), np.ones(n)) for n in (3, 4))
    with pytest.raises(ValueError, match="different users"):
        bootstrap_ratio(one, two, paired=True, seed=0)
