"""Which waiting requests run now: a pure function of the queue and the clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BatchPlan:
    """What to do with a queue of requests; positions count from the oldest request, 0."""

    run: tuple[int, ...]
    """Positions of the requests to compute together; empty when it is better to wait."""
    expired: tuple[int, ...]
    """Positions of the requests whose deadline is over; nobody waits for their answer."""
    wait_s: float
    """Seconds after which to plan again if nothing arrives; 0 where `run` is not empty, infinite for an empty queue."""


def plan_batch(
    enqueued_at: Sequence[float], deadlines: Sequence[float], now: float, max_size: int, max_wait_s: float
) -> BatchPlan:
    """Plan the next model call for a queue in order of arrival.

    A batch goes as soon as it is full or its oldest request has waited `max_wait_s`; the oldest requests go first, so
    that none can starve.

    Args:
        enqueued_at: When each request arrived, in seconds of any clock, ascending.
        deadlines: When each request is worth nothing any more, same clock.
        now: The moment of the decision, same clock.
        max_size: Requests per model call at most.
        max_wait_s: How long the oldest request may wait for company.

    Returns:
        The plan; a position is in `run`, in `expired` or in neither.
    """
    expired = tuple(position for position, deadline in enumerate(deadlines) if deadline <= now)
    gone = set(expired)
    waiting = [position for position in range(len(deadlines)) if position not in gone]
    if not waiting:
        return BatchPlan(run=(), expired=expired, wait_s=float("inf"))
    due_in = enqueued_at[waiting[0]] + max_wait_s - now
    if len(waiting) >= max_size or due_in <= 0:
        return BatchPlan(run=tuple(waiting[:max_size]), expired=expired, wait_s=0.0)
    return BatchPlan(run=(), expired=expired, wait_s=min(due_in, min(deadlines[p] for p in waiting) - now))
