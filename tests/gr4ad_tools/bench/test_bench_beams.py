"""Stability of dynamic beams, in the simulation that drives the generator's own queue."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ad_generator.batch_plan import Limits, batch_size, offered_load
from ad_generator.cost_model import Costs
from ad_generator.request_queue import RequestQueue
from gr4ad_runtime.errors import DeadlineExceededError, ResourceExhaustedError
from gr4ad_tools.bench import beams
from gr4ad_tools.bench.beam_simulation import Course, Engine, Truth, poisson_arrivals, simulate
from gr4ad_tools.bench.beams import Setup, constant_load, measure, story, story_load
from gr4ad_tools.cli import app
from typer.testing import CliRunner

CPU = Engine(Truth(Costs(5.5e-3, 6e-4, 7.8e-6)), (32, 64, 128), Limits(9, 1e-3, 0.25, 1.6))
GPU = Engine(Truth(Costs(3e-3, 1e-4, 2e-7)), (128, 256, 512), Limits(32, 1e-3, 0.25, 1.6))
ON_CPU = Setup(CPU, budget_s=0.1, seconds=12.0, seed=0)
ON_GPU = Setup(GPU, budget_s=0.05, seconds=2.0, seed=0)


def sustained_scale(engine: Engine, rate: float) -> float:
    """Return the scale at which full batches just keep up with arrivals."""
    costs, size = engine.truth.costs, engine.limits.max_size
    narrow = offered_load(rate, 0.0, size, costs)
    return (1.0 - narrow) / (offered_load(rate, sum(engine.base_widths), size, costs) - narrow)


@pytest.mark.parametrize("load", [1.2, 1.5, 1.7])
def test_under_even_arrivals_the_scale_settles_where_service_equals_arrivals(load: float) -> None:
    engine = replace(CPU, truth=replace(CPU.truth, noise=0.0, outliers=0.0))
    rate = load * engine.nominal_rate
    arrivals = (np.arange(10 * rate) / rate).tolist()
    course = simulate(engine, arrivals, 0.1, seed=0)
    assert not course.refused
    for begin in (3.0, 6.0):
        scales = course.scales(begin)[:-20]  # at the end the queue runs empty
        assert scales.mean() == pytest.approx(sustained_scale(engine, rate), abs=0.05)
        assert scales.max() - scales.min() <= 0.15
    waits = np.array([wait for start, wait, _ in course.batches if start > 3.0])
    assert waits.max() < 0.06


@pytest.mark.parametrize("load", [1.2, 1.5, 1.7])
@pytest.mark.parametrize("seed", [0, 1])
def test_under_chance_arrivals_the_scale_does_not_swing(load: float, seed: int) -> None:
    rate = load * CPU.nominal_rate
    arrivals = poisson_arrivals(lambda _: rate, rate, 25.0, np.random.default_rng(seed))
    scales = simulate(CPU, arrivals, 0.1, seed).scales(5.0)
    first, second = np.array_split(scales, 2)
    assert first.mean() == pytest.approx(second.mean(), abs=0.08)
    assert scales.mean() == pytest.approx(sustained_scale(CPU, rate), abs=0.1)
    # What swings comes back to the other side after half a period: a correlation far below zero at some lag.
    centred = scales - scales.mean()
    correlations = [float((centred[:-lag] * centred[lag:]).mean() / centred.var()) for lag in range(1, 60)]
    assert correlations[0] > 0.3
    assert min(correlations) > -0.25


@pytest.mark.parametrize(("setup", "loads"), [(ON_CPU, beams.LOADS_PCT), (ON_GPU, (10, 50, 100, 150, 300))])
def test_answers_keep_their_budget_at_any_load(setup: Setup, loads: tuple[int, ...]) -> None:
    found, courses = measure(setup, loads)
    for load in loads:
        assert found[f"p99_ms_{load}pct"].value <= 1e3 * setup.budget_s
        course = courses[load]
        assert len(course.answers) + len(course.refused) + len(course.late) == len(course.arrivals)
    assert found["answered_share_10pct"].value == 1.0
    assert found["scale_10pct"].value > 1.5
    assert found["answered_share_100pct"].value > 0.99
    assert found["in_budget_ratio_150pct"].value >= 1.35
    assert found["in_budget_ratio_300pct"].value >= 1.35
    assert found["cost_error"].value < 0.15


def test_wider_never_costs_an_answer_off_peak() -> None:
    for load in (10, 30, 50):
        dynamic, fixed = constant_load(ON_CPU, load)
        assert len(dynamic.answers) >= len(fixed.answers) - 2
        assert not dynamic.refused


def test_a_spike_is_met_at_once_and_forgotten_soon() -> None:
    course, fixed = story(ON_CPU)

    def scales(begin: float, end: float) -> list[float]:
        return [scale for start, _, scale in course.batches if begin <= start < end]

    assert min(scales(0.0, 7.0)) > 1.3
    assert max(scales(16.5, 20.0)) == 0.25  # three times the nominal load
    assert min(scales(20.5, 25.0)) == 1.0
    assert scales(35.5, 36.0)[-1] == 1.6
    for begin, end in ((0.0, 16.0), (20.5, 25.0), (26.0, 31.0), (32.0, 36.0)):
        assert course.in_budget(0.1, begin, end) >= 0.99 * course.asked(begin, end)
    assert len(course.answers) > 1.2 * len(fixed.answers)
    late = [waited for _, waited in course.late]
    assert max(late, default=0.0) < 0.1 + 4 * 0.04  # nobody is left waiting beyond its deadline and a call


def test_refusals_come_before_the_queue_is_hopeless() -> None:
    dynamic, _ = constant_load(ON_CPU, 300)
    assert len(dynamic.refused) > 20 * len(dynamic.late)
    hints = np.array([hint for _, hint in dynamic.refused])
    assert hints.min() > 0
    assert hints.max() < 0.1


def closed_loop(engine: Engine, users: int, budget_s: float, calls: int) -> list[float]:
    """Return the scales of batches for users who ask again as soon as they are answered."""
    rng = np.random.default_rng(0)
    queue = RequestQueue[int](engine.base_widths, engine.limits, 256)
    now, scales, asking = 0.0, [], list(range(users))
    while len(scales) < calls:
        for user in asking:
            queue.offer(user, 20, now + budget_s, now)
        step = queue.step(now)
        assert not step.late
        asking = []
        if step.batch is None:
            now += max(step.wait_s, 1e-6)
            continue
        scales.append(step.batch.plan.scale.factor)
        now += engine.truth.costs.predict(batch_size(step.batch.demands, scales[-1])) * rng.uniform(0.9, 1.1)
        queue.finished(step.batch, now)
        asking = step.batch.items
    return scales


@pytest.mark.parametrize("users", [9, 16, 30])
def test_users_who_wait_for_their_answers_get_the_policys_own_widths(users: int) -> None:
    scales = closed_loop(CPU, users, budget_s=1.0, calls=1000)
    assert set(scales[200:]) == {1.0}


def test_patient_requests_do_not_starve_among_pressing_ones() -> None:
    queue, rng = RequestQueue[str](CPU.base_widths, CPU.limits, 256), np.random.default_rng(0)
    outcomes: dict[str, float | None] = {}
    now, number = 0.0, 0
    rate = 2.0 * CPU.nominal_rate
    arrivals = poisson_arrivals(lambda _: rate, rate, 6.0, rng)
    while number < len(arrivals) or len(queue):
        step = queue.step(now)
        outcomes |= {name: None for name, _ in step.late}
        if step.batch is None:
            now = min(now + max(step.wait_s, 1e-6), arrivals[number] if number < len(arrivals) else np.inf)
        else:
            now += CPU.truth.duration(batch_size(step.batch.demands, step.batch.plan.scale.factor), rng)
            queue.finished(step.batch, now)
            outcomes |= dict.fromkeys(step.batch.items, now)
        while number < len(arrivals) and arrivals[number] <= now:
            name, budget_s = ("patient", 2.0) if number % 50 == 0 else ("pressing", 0.1)
            try:
                queue.offer(f"{name} {number}", 20, arrivals[number] + budget_s, arrivals[number])
            except (ResourceExhaustedError, DeadlineExceededError):
                outcomes[f"{name} {number}"] = None
            number += 1
    patient = {int(name.split()[1]): end for name, end in outcomes.items() if name.startswith("patient")}
    assert len(patient) > 50
    answered = [end - arrivals[at] for at, end in patient.items() if end is not None]
    assert len(answered) > 0.9 * len(patient)
    assert max(answered) <= 2.0


def test_the_command_writes_figures_and_a_page(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "beams", "--seconds", "5", "--out", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "summary.json").read_text())
    assert document["figures"]["in_budget_ratio_150pct"]["value"] > 1.2
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 8
    assert "Dynamic beams" in page


@pytest.mark.parametrize("widths", ["0-4", "32,64", ""])
def test_widths_without_sense_are_refused_with_the_remedy(widths: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "beams", "--widths", widths, "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "such as 32-64-128" in result.output


def test_the_story_is_read_between_its_points() -> None:
    assert [story_load(moment) for moment in (0.0, 10.0, 18.0, 22.0)] == pytest.approx([0.3, 0.65, 3.0, 0.5])


def test_a_course_counts_what_came_in_time() -> None:
    course = Course(arrivals=[0.0, 1.0, 2.0], answers=[(0.0, 0.05), (1.0, 0.2)])
    assert (course.in_budget(0.1, 0.0, 3.0), course.asked(0.5, 3.0)) == (1, 2)
