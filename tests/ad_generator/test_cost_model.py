"""The cost model against made-up laws that it has to find."""

from __future__ import annotations

import numpy as np
import pytest
from ad_generator.cost_model import PRIOR, TAIL_CALLS, CallSize, CostModel, Costs

WIDTH = 224
LAWS = [Costs(5.5e-3, 6e-4, 7.8e-6), Costs(1e-3, 1e-4, 1e-6), Costs(2e-2, 1e-3, 1e-4), Costs(4e-3, 1e-6, 1e-8)]
CORNERS = [CallSize(1, n, round(n * WIDTH * factor)) for n in (1, 9) for factor in (0.25, 1.6)]


def teach(
    model: CostModel,
    law: Costs,
    calls: int,
    rng: np.random.Generator,
    *,
    most: int = 9,
    factors: tuple[float, ...] = (0.25, 0.5, 1.0, 1.6),
    slower: float = 1.0,
    noise: float = 0.08,
    outliers: float = 0.0,
) -> list[float]:
    errors = []
    for _ in range(calls):
        requests = int(rng.integers(1, most + 1))
        size = CallSize(1, requests, round(requests * WIDTH * rng.choice(factors)))
        duration_s = slower * law.predict(size) * float(np.exp(rng.normal(0.0, noise)))
        errors.append(model.observe(size, duration_s * (10.0 if rng.random() < outliers else 1.0)))
    return errors


def misses(model: CostModel, law: Costs) -> float:
    return max(abs(model.costs.predict(size) / law.predict(size) - 1.0) for size in CORNERS)


@pytest.mark.parametrize("law", LAWS)
def test_a_law_is_found_from_noisy_calls(law: Costs) -> None:
    model, rng = CostModel(), np.random.default_rng(0)
    teach(model, law, 600, rng)
    assert misses(model, law) < 0.2
    assert 0.03 < model.costs.error < 0.15  # the noise's mean size is 0.064


def test_the_law_without_noise_is_found_exactly() -> None:
    model, law = CostModel(), LAWS[0]
    teach(model, law, 400, np.random.default_rng(0), noise=0.0)
    found = model.costs
    assert (found.call_s, found.request_s, found.beam_s) == pytest.approx(
        (law.call_s, law.request_s, law.beam_s), rel=0.05
    )
    assert found.error < 0.01


def test_hours_of_single_requests_do_not_wipe_out_what_a_full_batch_costs() -> None:
    model, law, rng = CostModel(), LAWS[0], np.random.default_rng(1)
    teach(model, law, 300, rng)
    teach(model, law, 20_000, rng, most=1, factors=(1.6,))
    assert misses(model, law) < 0.25


def test_a_slower_machine_is_followed_within_tens_of_calls() -> None:
    model, law, rng = CostModel(), LAWS[0], np.random.default_rng(2)
    teach(model, law, 300, rng)
    errors = teach(model, law, 100, rng, slower=3.0)
    assert abs(np.mean(errors[-20:])) < 0.15
    assert errors[0] > 1.0


def test_rare_calls_that_take_ten_times_as_long_hardly_count() -> None:
    model, law, rng = CostModel(), LAWS[0], np.random.default_rng(3)
    teach(model, law, 300, rng)
    worst = 0.0
    for _ in range(300):
        teach(model, law, 1, rng, outliers=0.02)
        worst = max(worst, misses(model, law))
    assert worst < 0.3


@pytest.mark.parametrize("seed", range(5))
def test_costs_stay_positive_whatever_comes(seed: int) -> None:
    model, rng = CostModel(), np.random.default_rng(seed)
    for _ in range(500):
        requests = int(rng.integers(1, 10))
        model.observe(
            CallSize(int(rng.integers(1, 3)), requests, int(rng.integers(1, 5000))), float(10.0 ** rng.uniform(-6, 2))
        )
        costs = model.costs
        assert min(costs.call_s, costs.request_s, costs.beam_s) > 0
        assert np.isfinite([costs.call_s, costs.request_s, costs.beam_s, costs.error]).all()
        assert 1.0 <= costs.margin <= 2.0


def test_before_any_call_the_prior_counts_with_a_wide_margin() -> None:
    costs = CostModel().costs
    assert (costs.call_s, costs.request_s, costs.beam_s) == (PRIOR.call_s, PRIOR.request_s, PRIOR.beam_s)
    assert costs.margin == 2.0


def test_a_few_slow_calls_among_many_widen_the_margin_until_they_are_long_past() -> None:
    model, size = CostModel(), CallSize(1, 4, 900)
    law = LAWS[0]
    for _ in range(300):
        model.observe(size, law.predict(size))
    assert model.costs.margin == pytest.approx(1.0, abs=0.02)
    model.observe(size, 1.7 * law.predict(size))
    assert model.costs.tail < 0.05  # one alone may be chance
    for _ in range(20):
        model.observe(size, law.predict(size))
    model.observe(size, 1.6 * law.predict(size))
    assert model.costs.margin == pytest.approx(1.6, abs=0.1)
    assert 2.0 * model.costs.error < 0.3  # the mean error does not tell
    for _ in range(TAIL_CALLS):
        model.observe(size, law.predict(size))
    assert model.costs.margin == pytest.approx(1.0, abs=0.05)
