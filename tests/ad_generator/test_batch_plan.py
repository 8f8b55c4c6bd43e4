"""The plan of a batch, by its properties and beside a search over all scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from ad_generator.batch_plan import AIM, BatchPlan, Demand, Limits, batch_size, fitting, offered_load, plan_batch
from ad_generator.cost_model import CallSize, Costs
from gr4ad_core.decoding.beam_schedule import SCALE_STEP, Constraint
from hypothesis import given
from hypothesis import strategies as st

WIDTHS = (32, 64, 128)
COSTS = Costs(call_s=5e-3, request_s=5e-4, beam_s=8e-6)
FREE = Costs(call_s=1e-9, request_s=1e-9, beam_s=1e-12)
FIXED = Limits(max_size=4, max_wait_s=0.5)
DYNAMIC = Limits(max_size=4, max_wait_s=0.001, scale_min=0.25, scale_max=1.6)


def demand(enqueued_at: float, deadline: float, candidate_count: int = 20) -> Demand:
    return Demand(enqueued_at, deadline, WIDTHS, candidate_count)


def plan(
    queue: Sequence[Demand], now: float, limits: Limits = FIXED, costs: Costs = FREE, rate: float = 0.0
) -> BatchPlan:
    return plan_batch(queue, now, rate, limits, costs)


def test_a_full_batch_goes_at_once_the_earliest_deadline_first() -> None:
    queue = [demand(0.0, 9.0), demand(0.1, 8.0), demand(0.2, 9.0), demand(0.2, 7.0), demand(0.2, 9.5)]
    found = plan(queue, now=0.2)
    assert (found.run, found.expired, found.wait_s) == ((3, 1, 0, 2), (), 0.0)


def test_equal_deadlines_go_by_arrival() -> None:
    assert plan([demand(0.1 * n, 9.0) for n in range(6)], now=0.6).run == (0, 1, 2, 3)


def test_a_small_batch_waits_for_company_but_not_long() -> None:
    queue = [demand(1.0, 9.0)]
    assert plan(queue, now=1.0).wait_s == 0.5
    assert plan(queue, now=1.25).wait_s == 0.25
    assert plan(queue, now=1.5).run == (0,)


def test_company_is_not_waited_for_beyond_what_the_deadline_allows() -> None:
    alone_s = COSTS.predict(CallSize(1, 1, sum(WIDTHS)))
    queue = [demand(1.0, 1.7)]  # it could start later, but is not left to the last moment
    assert plan(queue, now=1.0, costs=COSTS).wait_s == pytest.approx(0.7 - alone_s - FIXED.max_wait_s)
    assert plan(queue, now=1.2 - alone_s + 1e-9, costs=COSTS).run == (0,)


def test_an_empty_queue_waits_for_ever() -> None:
    assert plan([], now=1.0).wait_s == float("inf")


def test_a_batch_is_as_large_as_its_earliest_deadline_allows() -> None:
    queue = [demand(1.0, 9.0) for _ in range(4)]
    three_s = COSTS.predict(CallSize(1, 3, 3 * sum(WIDTHS)))
    queue[2] = demand(1.0, 1.0 + three_s + 1e-6)
    found = plan(queue, now=1.0, costs=COSTS)
    assert found.run == (2, 0, 1)
    assert found.expected_s == pytest.approx(three_s)


def test_a_request_beyond_hope_is_given_up_but_the_last_one_is_tried() -> None:
    beyond, hopeful = demand(0.0, 1.001), demand(0.0, 2.0)
    found = plan([beyond, hopeful], now=1.0, costs=COSTS)
    assert (found.run, found.hopeless, found.expired) == ((1,), (0,), ())
    found = plan([beyond, demand(0.0, 1.002)], now=1.0, costs=COSTS)
    assert (found.run, found.hopeless) == ((1,), (0,))  # should the costs be wrong, it teaches so


def test_a_long_queue_narrows_the_widths_and_an_idle_engine_widens_them() -> None:
    few, many = [demand(1.0, 1.1) for _ in range(4)], [demand(1.0, 1.1) for _ in range(16)]
    idle = plan(few, now=1.0, limits=DYNAMIC, costs=COSTS, rate=1.0)
    busy = plan(few, now=1.0, limits=DYNAMIC, costs=COSTS, rate=300.0)
    long = plan(many, now=1.0, limits=DYNAMIC, costs=COSTS, rate=300.0)
    short_time = plan([demand(1.0, 1.017)], now=1.01, limits=DYNAMIC, costs=COSTS, rate=300.0)
    assert (idle.scale.factor, idle.scale.constrained_by) == (1.6, Constraint.IDLE)
    assert (busy.scale.factor, busy.scale.constrained_by) == (1.0, Constraint.SCHEDULE)
    assert (0.25 < long.scale.factor < 1.0, long.scale.constrained_by) == (True, Constraint.LOAD)
    assert (short_time.scale.factor, short_time.scale.constrained_by) == (0.25, Constraint.LATENCY_BUDGET)
    assert busy.load == pytest.approx(offered_load(300.0, sum(WIDTHS), 4, COSTS))


def test_requests_of_another_schedule_are_a_search_of_their_own_and_one_that_wants_much_widens_its_neighbours() -> None:
    queue = [demand(0, 9), demand(0, 9, candidate_count=100), Demand(0, 9, (64, 128, 256), 256)]
    assert batch_size(queue, 0.25) == CallSize(2, 3, 2 * (8 + 16 + 100) + 16 + 32 + 256)


moments = st.floats(0, 10)
demands = st.builds(demand, moments, st.floats(0, 20), st.integers(1, 128))
limits = st.builds(Limits, st.integers(1, 5), st.floats(0, 3), st.floats(0.1, 1.0), st.floats(1.0, 2.0))
some_costs = st.builds(Costs, st.floats(1e-4, 0.5), st.floats(1e-5, 0.1), st.floats(1e-7, 1e-3), st.floats(0, 1))


@given(queue=st.lists(demands, max_size=12), now=st.floats(0, 20), limits=limits, costs=some_costs)
def test_nothing_late_is_computed_and_nothing_overtakes(
    queue: list[Demand], now: float, limits: Limits, costs: Costs
) -> None:
    found = plan(queue, now, limits, costs, rate=10.0)
    assert set(found.expired) == {place for place, each in enumerate(queue) if each.deadline <= now}
    parts = [set(found.run), set(found.expired), set(found.hopeless)]
    assert sum(map(len, parts)) == len(set().union(*parts))
    waiting = [p for p in range(len(queue)) if p not in {*found.expired, *found.hopeless}]
    waiting.sort(key=lambda place: (queue[place].deadline, place))
    assert list(found.run) == waiting[: len(found.run)]
    assert len(found.run) <= limits.max_size
    for place in found.hopeless:
        alone_s = costs.margin * costs.predict(batch_size([queue[place]], limits.scale_min))
        assert now + alone_s > queue[place].deadline
    if waiting and (
        len(waiting) >= limits.max_size or now - min(queue[p].enqueued_at for p in waiting) > limits.max_wait_s
    ):
        assert found.run, "a due batch goes"
    assert (found.wait_s == 0.0) if found.run else (found.wait_s > 0.0)
    assert bool(waiting) == (found.wait_s != float("inf"))
    if len(found.run) > 1:
        ran = [queue[place] for place in found.run]
        expected_s = costs.predict(batch_size(ran, found.scale.factor))
        assert found.expected_s == pytest.approx(expected_s)
        assert now + costs.margin * expected_s <= ran[0].deadline + 1e-9


def widest_in_time(queue: Sequence[Demand], now: float, limits: Limits, costs: Costs) -> float:
    """Oracle: try all scales, the widest first, and walk the queue batch by batch at each."""
    ordered = sorted(queue, key=lambda each: each.deadline)
    steps = round(limits.scale_max / SCALE_STEP), round(limits.scale_min / SCALE_STEP)
    for step in range(steps[0], steps[1], -1):
        at, in_time = now, True
        for start in range(0, len(ordered), limits.max_size):
            batch = ordered[start : start + limits.max_size]
            beams = step * SCALE_STEP * sum(sum(each.scheduled) for each in batch)
            at += costs.call_s + costs.request_s * len(batch) + costs.beam_s * beams
            in_time = in_time and all(
                costs.margin * (at - now) <= AIM * (each.deadline - now) + 1e-12 for each in batch
            )
        if in_time:
            return step * SCALE_STEP
    return limits.scale_min


@given(st.lists(st.floats(1.03, 2.0), min_size=1, max_size=30), st.integers(1, 9), st.floats(0, 1))
def test_the_scale_is_the_widest_that_is_in_time(deadlines: list[float], max_size: int, tail: float) -> None:
    costs = replace(COSTS, tail=tail)
    queue = [demand(0.0, deadline) for deadline in deadlines]
    limits = Limits(max_size, 0.0, 0.25, 1.6)
    found = plan(queue, now=1.0, limits=limits, costs=costs)
    left = [queue[p] for p in range(len(queue)) if p not in found.hopeless]
    assert found.scale.factor == pytest.approx(widest_in_time(left, 1.0, limits, costs), abs=SCALE_STEP * 1.01)
    assert found.scale.factor <= widest_in_time(left, 1.0, limits, costs) + 1e-9


@given(st.lists(demands, min_size=1, max_size=9), st.floats(0, 1), st.floats(0.25, 1.6), some_costs)
def test_what_fits_is_the_largest_that_fits(queue: list[Demand], time_s: float, factor: float, costs: Costs) -> None:
    size = fitting(queue, time_s, factor, costs)
    fits = [costs.predict(batch_size(queue[:n], factor)) <= time_s / costs.margin for n in range(1, len(queue) + 1)]
    assert fits == [True] * size + [False] * (len(queue) - size)
