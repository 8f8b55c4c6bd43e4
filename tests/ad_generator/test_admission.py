"""Who is taken in, beside a queue that is played to its end."""

from __future__ import annotations

import pytest
from ad_generator.admission import excess_wait
from ad_generator.batch_plan import Demand, Limits, plan_batch
from ad_generator.cost_model import CallSize, Costs
from hypothesis import assume, given
from hypothesis import strategies as st

WIDTHS = (32, 64, 128)
COSTS = Costs(call_s=5e-3, request_s=5e-4, beam_s=8e-6)
LIMITS = Limits(max_size=4, max_wait_s=0.0, scale_min=0.25, scale_max=1.6)
NARROW = 8 + 16 + 32


def demand(deadline: float, enqueued_at: float = 0.0) -> Demand:
    return Demand(enqueued_at, deadline, WIDTHS, 20)


def full_batches_s(count: int) -> float:
    return count * COSTS.predict(CallSize(1, 4, 4 * NARROW))


def test_without_a_queue_everyone_is_taken_in() -> None:
    assert excess_wait([], demand(1e-9), 0.0, 0.0, LIMITS, COSTS) == 0.0


def test_the_excess_is_the_wait_beyond_the_newcomers_time() -> None:
    queue = [demand(5.0) for _ in range(7)]
    newcomer = demand(5.0)
    assert excess_wait(queue, newcomer, 0.0, 0.01, LIMITS, COSTS) == pytest.approx(0.01 + full_batches_s(2) - 5.0)


def test_a_call_that_is_overdue_may_end_any_moment() -> None:
    queue = [demand(5.0) for _ in range(3)]
    assert excess_wait(queue, demand(5.0), 0.0, -1.0, LIMITS, COSTS) == pytest.approx(full_batches_s(1) - 5.0)


def test_who_would_make_another_late_is_not_taken_in() -> None:
    waiting_s = full_batches_s(2)
    tight = [demand(waiting_s + 1e-4) for _ in range(8)]  # just in time as they are
    newcomer = demand(waiting_s)  # goes first: the last of them would need a third batch
    assert excess_wait(tight, newcomer, 0.0, 0.0, LIMITS, COSTS) > 0
    assert excess_wait(tight[:7], newcomer, 0.0, 0.0, LIMITS, COSTS) <= 0
    tight[-1] = demand(waiting_s + 2 * full_batches_s(1))  # it has the time
    assert excess_wait(tight, newcomer, 0.0, 0.0, LIMITS, COSTS) <= 0


def test_who_is_lost_anyway_keeps_nobody_out() -> None:
    large = Demand(0.0, 0.012, (128, 256, 512), 512)  # behind the other it would take until 0.016
    assert excess_wait([demand(0.011), large], demand(0.0115), 0.0, 0.0, LIMITS, COSTS) <= 0


@given(
    st.lists(st.floats(0.02, 0.4), max_size=30),
    st.floats(0.02, 0.4),
    st.floats(0, 0.05),
)
def test_who_is_taken_in_is_answered_in_time(deadlines: list[float], own: float, busy_s: float) -> None:
    queue, newcomer = [demand(deadline) for deadline in deadlines], demand(own)
    assume(queue or busy_s > 0)
    assume(excess_wait(queue, newcomer, 0.0, busy_s, LIMITS, COSTS) <= 0)
    now, waiting = busy_s, [*queue, newcomer]
    while newcomer in waiting:
        plan = plan_batch(waiting, now, 100.0, Limits(4, 0.0, 0.25, 0.25 / 0.25), COSTS)
        if plan.run:
            now += plan.expected_s
        assert all(waiting[place] is not newcomer for place in (*plan.expired, *plan.hopeless))
        if any(waiting[place] is newcomer for place in plan.run):
            assert now <= own + 1e-9
        gone = {*plan.run, *plan.expired, *plan.hopeless}
        waiting = [each for place, each in enumerate(waiting) if place not in gone]
