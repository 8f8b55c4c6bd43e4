"""The queue in made-up time: who is taken in, what is learned, what is told."""

from __future__ import annotations

import pytest
from ad_generator.batch_plan import Limits
from ad_generator.cost_model import CallSize
from ad_generator.request_queue import RequestQueue
from gr4ad_core.decoding.beam_schedule import Constraint
from gr4ad_runtime.errors import DeadlineExceededError, Gr4adError, ResourceExhaustedError

WIDTHS = (32, 64, 128)
LIMITS = Limits(max_size=4, max_wait_s=0.0, scale_min=0.25, scale_max=1.6)


def trained(queue_limit: int = 64) -> tuple[RequestQueue[str], list[Gr4adError]]:
    """Return a queue that knows that a search takes 10 ms and 1 ms a request, and a list of its refusals."""
    refused: list[Gr4adError] = []
    queue = RequestQueue[str](WIDTHS, LIMITS, queue_limit, refused.append)
    for number in range(300):
        requests, factor = 1 + number % 4, (0.25, 1.0)[number // 4 % 2]
        beams = int(requests * sum(WIDTHS) * factor)
        queue.cost_model.observe(CallSize(1, requests, beams), 0.010 + 0.0005 * requests + beams * 0.0005 / sum(WIDTHS))
    return queue, refused


def test_requests_run_by_deadline_and_the_costs_are_learned() -> None:
    queue, _ = trained()
    for name, deadline in (("late", 9.0), ("soon", 8.0), ("sooner", 7.5)):
        queue.offer(name, 20, deadline, 1.0)
    step = queue.step(1.0)
    assert step.batch is not None
    assert step.batch.items == ["sooner", "soon", "late"]
    assert (len(queue), step.late) == (0, [])
    before = queue.cost_model.costs
    assert queue.finished(step.batch, 1.0 + 2 * step.batch.plan.expected_s) == pytest.approx(1.0)
    after = queue.cost_model.costs
    assert after.predict(CallSize(1, 3, 1000)) > before.predict(CallSize(1, 3, 1000))
    assert after.error > before.error


def test_a_batch_that_failed_teaches_nothing() -> None:
    queue, _ = trained()
    queue.offer("a", 20, 9.0, 1.0)
    step = queue.step(1.0)
    assert step.batch is not None
    before = queue.cost_model.costs
    queue.finished(step.batch, 100.0, computed=False)
    assert queue.cost_model.costs == before


def test_a_queue_too_long_for_the_budget_refuses_and_tells_when_to_come_again() -> None:
    queue, refused = trained()
    taken = 0
    with pytest.raises(ResourceExhaustedError, match="too long for this one's time: retry after a back-off") as refusal:
        for _ in range(100):
            queue.offer("a", 20, 1.1, 1.0)
            taken += 1
    # At the narrowest, four requests take 12.5 ms: 90 of the 100 ms hold seven such batches.
    assert taken == 28
    assert refusal.value.retry_after_s == pytest.approx(0.0125 * 8 - 0.09, abs=0.005)
    assert refused == [refusal.value]
    queue.offer("patient", 20, 3.0, 1.0)


def test_the_hint_is_true_if_nobody_else_comes() -> None:
    queue, _ = trained()
    for _ in range(28):
        queue.offer("a", 20, 1.1, 1.0)
    with pytest.raises(ResourceExhaustedError) as refusal:
        queue.offer("b", 20, 1.1, 1.0)
    step = queue.step(1.0)
    assert step.batch is not None
    queue.finished(step.batch, 1.0 + step.batch.plan.expected_s)
    again = max(1.0 + (refusal.value.retry_after_s or 0.0), 1.0 + step.batch.plan.expected_s)
    queue.offer("b", 20, again + 0.1, again)


def test_a_full_queue_refuses_whatever_the_time() -> None:
    queue, refused = trained(queue_limit=2)
    queue.offer("a", 20, 100.0, 1.0)
    queue.offer("b", 20, 100.0, 1.0)
    with pytest.raises(ResourceExhaustedError, match="queue: 2 requests waiting: retry") as refusal:
        queue.offer("c", 20, 100.0, 1.0)
    assert refusal.value.retry_after_s is not None
    assert refusal.value.retry_after_s > 0
    assert len(refused) == 1


def test_time_that_suffices_for_nothing_is_the_callers_own_but_an_idle_queue_tries() -> None:
    queue, _ = trained()
    queue.offer("tried", 20, 1.005, 1.0)
    with pytest.raises(
        DeadlineExceededError, match=r"latency_budget_us: 5000 µs left, the narrowest search takes 1\d{4}"
    ):
        queue.offer("b", 20, 1.005, 1.0)
    step = queue.step(1.0)
    assert step.batch is not None
    assert step.batch.items == ["tried"]
    assert step.batch.plan.scale.constrained_by is Constraint.LATENCY_BUDGET


def test_what_waited_too_long_is_told_so() -> None:
    queue, refused = trained()
    queue.offer("a", 20, 1.1, 1.0)
    queue.offer("b", 20, 9.0, 1.0)
    step = queue.step(1.2)
    assert [item for item, _ in step.late] == ["a"]
    assert str(step.late[0][1]).startswith("latency_budget_us: over after 200000 µs in the queue: allow more time")
    assert refused == [step.late[0][1]]


def test_who_has_gone_is_forgotten() -> None:
    queue, _ = trained()
    queue.offer("gone", 20, 9.0, 1.0)
    queue.offer("here", 20, 9.0, 1.0)
    queue.drop(lambda item: item == "gone")
    step = queue.step(1.0)
    assert step.batch is not None
    assert step.batch.items == ["here"]


def test_costs_thought_far_too_high_shut_nobody_out_for_long() -> None:
    queue, _ = trained()
    for _ in range(200):
        queue.cost_model.observe(CallSize(1, 1, 224), 5.0)
    now, answered = 10.0, 0
    for _ in range(120):  # a budget of 100 ms, a true cost of 1 ms
        queue.offer("a", 20, now + 0.1, now)
        step = queue.step(now)
        if step.batch is not None:
            now += 0.001
            queue.finished(step.batch, now)
            answered += 1
        now += 0.02
    assert answered == 120
    assert queue.cost_model.costs.predict(CallSize(1, 1, 224)) < 0.01
