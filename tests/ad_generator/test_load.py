"""The load estimator beside the count it stands for."""

from __future__ import annotations

import math

import pytest
from ad_generator.load import LEAST_SEEN_S, RATE_MEMORY_S, LoadEstimator
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.floats(0, 20), min_size=1, max_size=60), st.floats(0, 5))
def test_the_rate_is_a_count_in_which_old_arrivals_fade(moments: list[float], later: float) -> None:
    load = LoadEstimator()
    for moment in sorted(moments):
        load.arrived(100.0 + moment)
    now = max(moments) + later
    count = sum(math.exp(-(now - moment) / RATE_MEMORY_S) for moment in moments)
    seen_s = max(now - min(moments), LEAST_SEEN_S)
    assert load.rate(100.0 + now) == pytest.approx(count / (RATE_MEMORY_S * (1 - math.exp(-seen_s / RATE_MEMORY_S))))


@pytest.mark.parametrize("rate", [1.0, 50.0, 400.0])
def test_steady_arrivals_are_told_from_the_first_second_on(rate: float) -> None:
    load = LoadEstimator()
    assert load.rate(3.0) == 0.0
    for number in range(int(10 * rate)):
        load.arrived(number / rate)
        if number / rate > 1.0:
            assert load.rate(number / rate) == pytest.approx(rate, rel=1.4 / rate + 0.05)


def test_a_spike_shows_within_a_second_and_passes() -> None:
    load = LoadEstimator()
    for number in range(100):
        load.arrived(number * 0.1)
    for number in range(200):
        load.arrived(10.0 + number * 0.005)
    assert load.rate(11.0) > 80.0
    assert load.rate(11.0 + 6 * RATE_MEMORY_S) < 1.0


def test_the_queue_delay_is_a_running_mean() -> None:
    load = LoadEstimator()
    for _ in range(100):
        load.waited(0.02)
    assert load.queue_delay_s == pytest.approx(0.02, rel=1e-3)
