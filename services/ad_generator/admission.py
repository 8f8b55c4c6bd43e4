"""Whether a request that arrives can be answered in time: a pure function of the queue, the clock and the costs."""

from __future__ import annotations

from collections.abc import Sequence

from ad_generator.batch_plan import Demand, Limits, batch_size, fitting
from ad_generator.cost_model import Costs


def excess_wait(
    queue: Sequence[Demand], newcomer: Demand, now: float, busy_s: float, limits: Limits, costs: Costs
) -> float:
    """Return by how much a newcomer's queue is too long, at the narrowest widths.

    Requests go by deadline, the earliest first, in batches as `plan_batch` makes them, once the call under way is over.
    The newcomer is to be answered in its time even if all takes longer than expected by the margin of the costs, and no
    one else is to be late for its sake. Widths narrow before anyone is refused (`batch_plan.AIM`).

    Args:
        queue: The waiting requests.
        newcomer: The request that arrives.
        now: This moment, on the requests' clock.
        busy_s: Until the call under way is expected to end; 0 where none is.
        limits: What the settings allow.
        costs: Of model calls.

    Returns:
        Seconds; 0 or less where it can be taken in. Where nothing is under way and nothing waits it is 0: there is no
        queue to be too long.
    """
    if not queue and busy_s <= 0:
        return 0.0
    ordered = sorted([*queue, newcomer], key=lambda demand: demand.deadline)  # stable: behind others of its deadline
    at = now + max(0.0, busy_s)
    ends = _ends(ordered, at, limits, costs)
    place = next(place for place, demand in enumerate(ordered) if demand is newcomer)
    own_s = costs.margin * (ends[place] - now) - (newcomer.deadline - now)
    if own_s > 0 or place == len(queue):
        return own_s
    del ends[place]
    others = [demand for demand in ordered if demand is not newcomer]
    if _late(others, ends) > _late(others, _ends(others, at, limits, costs)):
        return costs.predict(batch_size([newcomer], limits.scale_min))
    return own_s


def _ends(ordered: Sequence[Demand], at: float, limits: Limits, costs: Costs) -> list[float]:
    """Return when each request would be answered, were it not given up; those that are given up take no time."""
    ends: list[float] = []
    while len(ends) < len(ordered):
        batch = ordered[len(ends) : len(ends) + limits.max_size]
        size = fitting(batch, batch[0].deadline - at, limits.scale_min, costs)
        end = at + costs.predict(batch_size(batch[: max(1, size)], limits.scale_min))
        ends += [end] * max(1, size)
        if size:
            at = end
    return ends


def _late(demands: Sequence[Demand], ends: Sequence[float]) -> int:
    return sum(end > demand.deadline for demand, end in zip(demands, ends, strict=True))
