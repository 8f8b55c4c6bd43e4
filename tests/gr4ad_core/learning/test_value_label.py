"""Charge rates, value labels and value buckets."""

from __future__ import annotations

import numpy as np
import pytest
from gr4ad_core.learning.value_label import PRIOR_EVENTS, PRIOR_RATES, ChargeRates, EcpmBuckets
from hypothesis import given, settings
from hypothesis import strategies as st

BID = 2_000_000


def value(rates: ChargeRates, conversion_type: str, behavior: int) -> float:
    return float(rates.value_micros(np.array([BID]), np.array([conversion_type]), np.array([behavior]))[0])


def test_charged_event_is_worth_its_bid_per_mille_and_earlier_ones_their_rate():
    many = 100_000  # so many that smoothing vanishes
    behaviors = np.repeat([1, 2, 3], [many, many // 10, many // 100])
    rates = ChargeRates.measure(np.full(len(behaviors), "purchase"), behaviors)
    assert value(rates, "purchase", 3) == 1000 * BID
    assert value(rates, "purchase", 2) == pytest.approx(1000 * BID * 0.1, rel=1e-9)
    assert value(rates, "purchase", 1) == pytest.approx(1000 * BID * 0.01, rel=1e-9)


def test_click_ads_are_charged_by_click_so_a_later_conversion_adds_nothing():
    behaviors = np.repeat([1, 2, 3], [1000, 100, 10])
    rates = ChargeRates.measure(np.full(len(behaviors), "click"), behaviors)
    assert value(rates, "click", 2) == value(rates, "click", 3) == 1000 * BID
    assert value(rates, "click", 1) == pytest.approx(1000 * BID * 0.1, rel=1e-9)


def test_rare_type_leans_on_all_types_together():
    behaviors = np.concatenate([np.repeat([1, 3], [10_000, 100]), [1]])
    kinds = np.array(["purchase"] * 10_100 + ["lead"])
    rates = ChargeRates.measure(kinds, behaviors)
    pooled = 100 / 10_001
    assert rates.rates["lead"][0] == pytest.approx(PRIOR_EVENTS * pooled / (1 + PRIOR_EVENTS))
    assert 0.0 < rates.rates["lead"][0] < rates.rates["purchase"][0]


def test_log_of_conversions_only_has_plausible_rates_and_none_above_one():
    rates = ChargeRates.measure(np.full(50, "purchase"), np.full(50, 3))
    assert rates.rates["purchase"][2] == 1.0
    assert max(rates.rates["purchase"]) <= 1.0
    empty = ChargeRates.measure(np.array(["lead"]), np.array([2]))
    assert 0.0 < empty.rates["lead"][0] <= PRIOR_RATES[1, 3]


@given(values=st.lists(st.sampled_from([0.0, 1.0, 5.0, 7.5, 1e9]), min_size=1, max_size=200), n=st.integers(1, 20))
@settings(deadline=None)
def test_buckets_are_filled_ordered_and_keep_equal_values_together(values, n):
    values = np.array(values)
    buckets = EcpmBuckets.fit(values, n)
    assert 1 <= len(buckets.means) <= min(n, len(np.unique(values)))
    assert len(buckets.edges) == len(buckets.means) - 1
    assert (np.diff(buckets.edges) > 0).all()
    assert (np.diff(buckets.means) > 0).all()
    bounds = [-np.inf, *buckets.edges, np.inf]
    for mean, low, high in zip(buckets.means, bounds, bounds[1:], strict=False):
        inside = values[(values > low) & (values <= high)]
        assert len(inside)
        assert mean == pytest.approx(inside.mean(), rel=1e-6)


def test_distinct_values_fall_into_equiprobable_buckets():
    values = np.random.default_rng(0).lognormal(10, 2, 1600)
    buckets = EcpmBuckets.fit(values, 16)
    counts = np.bincount(np.searchsorted(buckets.edges, values.astype(np.float32)))
    assert len(counts) == 16
    assert counts.min() >= 98
    assert counts.max() <= 102


def test_equal_values_make_one_bucket():
    buckets = EcpmBuckets.fit(np.full(10, 3e9), 16)
    assert buckets.edges.shape == (0,)
    assert buckets.means.tolist() == [3e9]


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [-1.0], [float("inf")]])
def test_buckets_refuse_values_that_are_none(values):
    with pytest.raises(ValueError, match=r"value_micros.*give"):
        EcpmBuckets.fit(np.array(values, np.float64), 4)
