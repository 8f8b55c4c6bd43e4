"""Which waiting requests run now, and at which widths: a pure function of the queue, the clock, the load and the costs.

The control law (method.md §4, TABS). Requests go by deadline, the earliest first, in batches. At scale s the batches in
front of a request and its own take A + S·s seconds, from the cost model; s is the largest for which every waiting
request would be answered within half of the time it has left, even if all took longer by the margin of the costs. So s
is a falling function of the queue, and the rate of service a falling function of s: the longer the queue, the faster it
shrinks, with nothing summed up over time that could overshoot. The queue settles where service equals arrivals, at half
of the budget; the other half is for who arrives as a call begins, and must wait for its end. Above 1, s is the largest
that leaves `IDLE_SHARE` of the capacity unused, from the rate of arrivals. Callers that wait for their answer before
they ask again keep few requests waiting however fast they are served: as long as those few fit into their budgets,
their widths stay as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from gr4ad_core.decoding.beam_schedule import AS_SCHEDULED, Allowance, BeamScale, choose_scale, scaled_widths

from ad_generator.cost_model import CallSize, Costs

AIM: Final = 0.5
"""Share of the time left in which a request is to be answered, but for rare errors of the costs: who arrives as a call
begins has time for that call, then, and for its own."""
IDLE_SHARE: Final = 0.5
"""Share of the capacity that stays unused where widths are raised."""


@dataclass(frozen=True)
class Limits:
    """What the settings allow."""

    max_size: int
    """Requests per model call at most."""
    max_wait_s: float
    """How long the oldest request may wait for company."""
    scale_min: float = 1.0
    """Smallest scale of the widths."""
    scale_max: float = 1.0
    """Largest scale of the widths."""


@dataclass(frozen=True, slots=True)
class Demand:
    """A waiting request, as far as planning looks at it; times are seconds of one clock."""

    enqueued_at: float
    """When it arrived."""
    deadline: float
    """When its answer is worth nothing any more."""
    scheduled: tuple[int, ...]
    """Widths at scale 1 (`scheduled_widths`)."""
    candidate_count: int
    """Candidates wanted."""


@dataclass(frozen=True)
class BatchPlan:
    """What to do with a queue of requests; positions are those of the sequence that was planned."""

    run: tuple[int, ...]
    """Positions of the requests to compute together, the earliest deadline first; empty when it is better to wait."""
    expired: tuple[int, ...]
    """Positions of the requests whose deadline is over; nobody waits for their answer."""
    hopeless: tuple[int, ...]
    """Positions of the requests that would be late even at once, alone and at the narrowest widths."""
    wait_s: float
    """Seconds after which to plan again if nothing arrives; 0 where `run` is not empty, infinite for an empty queue."""
    scale: BeamScale = AS_SCHEDULED
    """Of the widths of `run`."""
    load: float = 0.0
    """Share of the capacity that arrivals ask for (`offered_load`)."""
    expected_s: float = 0.0
    """How long `run` is expected to take."""


def plan_batch(queue: Sequence[Demand], now: float, rate: float, limits: Limits, costs: Costs) -> BatchPlan:
    """Plan the next model call.

    A batch goes as soon as it is full, its oldest request has waited `max_wait_s`, or a deadline leaves no more than
    that to wait. It is as large as the earliest deadline allows, and at least one request. Every request has a
    deadline, and none with a later one goes before it: so none can starve.

    Where by the costs no request can be in time, the one with the most time left is computed nevertheless: costs that
    are thought too high could otherwise never be corrected.

    Args:
        queue: The waiting requests, in any order.
        now: The moment of the decision, on the requests' clock.
        rate: Arrivals a second.
        limits: What the settings allow.
        costs: Of model calls.

    Returns:
        The plan; a position is in `run`, in `expired`, in `hopeless` or in none.
    """
    by_deadline = sorted(range(len(queue)), key=lambda position: queue[position].deadline)
    expired = tuple(position for position in by_deadline if queue[position].deadline <= now)
    alive = by_deadline[len(expired) :]
    margin = costs.margin
    latest_start = {
        position: queue[position].deadline - margin * _alone_s(queue[position], limits.scale_min, costs)
        for position in alive
    }
    waiting = [position for position in alive if latest_start[position] >= now] or alive[-1:]
    kept = set(waiting)
    hopeless = tuple(position for position in alive if position not in kept)
    if not waiting:
        return BatchPlan(run=(), expired=expired, hopeless=(), wait_s=float("inf"))
    oldest_at = min(queue[position].enqueued_at for position in waiting)
    first_start = min(latest_start[position] for position in waiting)
    wait_s = min(oldest_at + limits.max_wait_s, first_start - limits.max_wait_s) - now
    if len(waiting) < limits.max_size and wait_s > 0:
        return BatchPlan(run=(), expired=expired, hopeless=hopeless, wait_s=wait_s)

    demands = [queue[position] for position in waiting]
    beams = sum(sum(demand.scheduled) for demand in demands) / len(demands)
    scale = _scale(demands, beams, now, rate, limits, costs)
    size = max(1, fitting(demands[: limits.max_size], demands[0].deadline - now, scale.factor, costs))
    return BatchPlan(
        run=tuple(waiting[:size]),
        expired=expired,
        hopeless=hopeless,
        wait_s=0.0,
        scale=scale,
        load=offered_load(rate, beams, limits.max_size, costs),
        expected_s=costs.predict(batch_size(demands[:size], scale.factor)),
    )


def fitting(demands: Sequence[Demand], time_s: float, factor: float, costs: Costs) -> int:
    """Return how many requests, the first ones, can be computed together at a scale in a time, but for rare errors."""
    expected_s = time_s / costs.margin
    fits, tried = 0, len(demands)  # all first: it is the rule
    too_many = tried + 1
    while fits + 1 < too_many:
        if costs.predict(batch_size(demands[:tried], factor)) <= expected_s:
            fits = tried
        else:
            too_many = tried
        tried = (fits + too_many) // 2
    return fits


def offered_load(rate: float, beams: float, max_size: int, costs: Costs) -> float:
    """Return the share of the capacity, in full batches at scale 1, that arrivals ask for; above 1 it is not enough.

    Args:
        rate: Arrivals a second.
        beams: Of one request at scale 1.
        max_size: Requests per model call at most.
        costs: Of model calls.
    """
    return rate * (costs.call_s / max_size + costs.request_s + costs.beam_s * beams)


def batch_size(demands: Sequence[Demand], factor: float) -> CallSize:
    """Return the size of the call that computes requests together, as `Engine.generate` does it: those of each schedule
    in one search, whose last width is for the one that wants most."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for demand in demands:
        groups[demand.scheduled].append(demand.candidate_count)
    beams = sum(len(counts) * beam_count(scheduled, factor, max(counts)) for scheduled, counts in groups.items())
    return CallSize(len(groups), len(demands), beams)


def _alone_s(demand: Demand, factor: float, costs: Costs) -> float:
    beams = beam_count(demand.scheduled, factor, demand.candidate_count)
    return costs.predict(CallSize(searches=1, requests=1, beams=beams))


def _scale(demands: Sequence[Demand], beams: float, now: float, rate: float, limits: Limits, costs: Costs) -> BeamScale:
    """Choose the scale for requests in order of deadline; the first `max_size` are the batch."""
    own, *queue = _allowances(demands, now, limits.max_size, costs)
    each_s = (1.0 - IDLE_SHARE) / rate if rate > 0 else float("inf")
    spare = Allowance(each_s, costs.call_s / limits.max_size + costs.request_s, costs.beam_s * beams)
    return choose_scale(limits.scale_min, limits.scale_max, spare, own, queue)


def _allowances(demands: Sequence[Demand], now: float, max_size: int, costs: Costs) -> Iterator[Allowance]:
    """Yield, for each batch that the queue makes, the time to its earliest deadline and the work until then."""
    fixed_s = scaled_s = 0.0
    for start in range(0, len(demands), max_size):
        batch = demands[start : start + max_size]
        size = batch_size(batch, 1.0)
        fixed_s += costs.call_s * size.searches + costs.request_s * size.requests
        scaled_s += costs.beam_s * size.beams
        yield Allowance(AIM / costs.margin * (batch[0].deadline - now), fixed_s, scaled_s)


@lru_cache(maxsize=4096)
def beam_count(scheduled: tuple[int, ...], factor: float, candidate_count: int) -> int:
    """Return the sum of a request's widths at a scale."""
    return sum(scaled_widths(scheduled, factor, candidate_count))
