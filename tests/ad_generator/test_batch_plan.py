"""The plan of a batch, by its properties."""

from __future__ import annotations

from ad_generator.batch_plan import plan_batch
from hypothesis import given
from hypothesis import strategies as st


def test_a_full_batch_goes_at_once_oldest_first() -> None:
    plan = plan_batch([0.0, 0.1, 0.2], [9.0] * 3, now=0.2, max_size=2, max_wait_s=5.0)
    assert (plan.run, plan.expired, plan.wait_s) == ((0, 1), (), 0.0)


def test_a_small_batch_waits_for_company_but_not_long() -> None:
    assert plan_batch([1.0], [9.0], now=1.0, max_size=4, max_wait_s=0.5).wait_s == 0.5
    assert plan_batch([1.0], [9.0], now=1.25, max_size=4, max_wait_s=0.5).wait_s == 0.25
    assert plan_batch([1.0], [9.0], now=1.5, max_size=4, max_wait_s=0.5).run == (0,)


def test_an_empty_queue_waits_for_ever() -> None:
    assert plan_batch([], [], now=1.0, max_size=4, max_wait_s=0.5).wait_s == float("inf")


def test_the_next_look_is_no_later_than_the_first_deadline() -> None:
    assert plan_batch([1.0], [1.1], now=1.0, max_size=4, max_wait_s=0.5).wait_s <= 0.1 + 1e-9


@given(
    requests=st.lists(st.tuples(st.floats(0, 10), st.floats(0, 20)), max_size=12),
    now=st.floats(0, 20),
    max_size=st.integers(1, 5),
    max_wait_s=st.floats(0, 3),
)
def test_nothing_late_is_computed_and_nothing_overtakes(
    requests: list[tuple[float, float]], now: float, max_size: int, max_wait_s: float
) -> None:
    requests.sort()
    enqueued_at, deadlines = [r[0] for r in requests], [r[1] for r in requests]
    plan = plan_batch(enqueued_at, deadlines, now, max_size, max_wait_s)
    assert set(plan.expired) == {place for place, deadline in enumerate(deadlines) if deadline <= now}
    waiting = [place for place in range(len(requests)) if place not in plan.expired]
    assert list(plan.run) == waiting[: len(plan.run)]
    assert len(plan.run) <= max_size
    if waiting and (len(waiting) >= max_size or now - enqueued_at[waiting[0]] > max_wait_s):
        assert len(plan.run) == min(max_size, len(waiting))
    assert (plan.wait_s == 0.0) or not plan.run
