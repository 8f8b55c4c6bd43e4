"""Beam widths as a plan: pure functions from what is wanted, the load, the time at hand and what is live to the width
of every level (method.md §4, DBW and TABS).

TABS, `W_t = W_base · f(Q_t, C_avail)`: one factor widens or narrows all levels of a batch (`choose_scale`). It exceeds
1 only where capacity is spare, and falls below 1 only where the batch or what waits behind it would come too late.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SCALE_STEP: Final = 0.05
"""Scales are multiples of it, so that few shapes of search occur."""


class Constraint(StrEnum):
    """What decided the widths of a plan."""

    SCHEDULE = "schedule"
    """The policy's own widths are used in full."""
    LIVE_PREFIXES = "live_prefixes"
    """At some level fewer live prefixes exist than the width called for."""
    IDLE = "idle"
    """Wider than the policy's own: capacity is spare."""
    LOAD = "load"
    """Narrower than the policy's own: what waits would otherwise come too late."""
    LATENCY_BUDGET = "latency_budget"
    """Narrower than the policy's own: the time left to a request of the batch suffices for no more."""


@dataclass(frozen=True)
class BeamPlan:
    """The widths a search will use, and why."""

    widths: tuple[int, ...]
    """Beams to keep at each of the T levels; 0 where nothing is live."""
    constrained_by: Constraint
    """What decided them."""


@dataclass(frozen=True)
class Allowance:
    """Time at hand for work of which one part takes the same at any widths and the other grows with them."""

    time_s: float
    """At hand."""
    fixed_s: float
    """Taken at any widths."""
    scaled_s: float
    """Taken beyond that at scale 1."""

    def scale(self) -> float:
        """Return the scale that uses the time up; below 0 where no scale fits."""
        left_s = self.time_s - self.fixed_s
        return left_s / self.scaled_s if self.scaled_s > 0 else math.copysign(math.inf, left_s)


@dataclass(frozen=True)
class BeamScale:
    """By which factor a batch's widths differ from the policy's own, and why."""

    factor: float = 1.0
    """Multiplies the width of every level."""
    constrained_by: Constraint = Constraint.SCHEDULE
    """What decided it."""


AS_SCHEDULED: Final = BeamScale()
"""The policy's own widths."""


def choose_scale(least: float, most: float, spare: Allowance, own: Allowance, queue: Iterable[Allowance]) -> BeamScale:
    """Decide by how much a batch's widths differ from the policy's own (method.md §4, TABS).

    Args:
        least: Smallest scale, above 0 and at most 1; also used where no scale fits.
        most: Largest scale, at least 1.
        spare: Time that capacity leaves to one request; it alone lets the scale exceed 1.
        own: Time that is left to the batch itself.
        queue: Time that is left to each batch behind it, with the work of this one and of those between.

    Returns:
        A multiple of `SCALE_STEP`, or one of the bounds; the larger an allowance's time, the larger.
    """
    behind = min((allowance.scale() for allowance in queue), default=math.inf)
    in_time = min(own.scale(), behind)
    wanted = min(in_time, max(1.0, spare.scale()))
    steps = wanted / SCALE_STEP
    factor = min(most, max(least, math.floor(steps + 1e-9) * SCALE_STEP if math.isfinite(steps) else wanted))
    if factor > 1.0:
        return BeamScale(factor, Constraint.IDLE)
    if factor == 1.0:
        return AS_SCHEDULED
    return BeamScale(factor, Constraint.LOAD if behind < own.scale() else Constraint.LATENCY_BUDGET)


def scheduled_widths(base_widths: tuple[int, ...], candidate_count: int) -> tuple[int, ...]:
    """Decide how many beams a request calls for at each level.

    A request for more candidates than the base's last width widens all levels by the same factor, so that the early
    levels stay as generous as the policy meant them to be.

    Args:
        base_widths: The policy's schedule, one width per level.
        candidate_count: Candidates wanted, at least 1.

    Raises:
        ValueError: A width or the count is below 1.
    """
    if not base_widths or min(base_widths) < 1:
        raise ValueError(f"base_widths: {base_widths}: give one positive width per level")
    if candidate_count < 1:
        raise ValueError(f"candidate_count: {candidate_count}: ask for at least 1")
    last = base_widths[-1]
    wanted = max(candidate_count, last)
    return tuple(-(-width * wanted // last) for width in base_widths)


def scaled_widths(scheduled: tuple[int, ...], factor: float, candidate_count: int) -> tuple[int, ...]:
    """Widen or narrow a schedule.

    The last width never falls below the candidates wanted; the earlier ones do, so a list may come out shorter where
    few ads share a prefix.

    Args:
        scheduled: From `scheduled_widths`.
        factor: Multiplies every width; above 0.
        candidate_count: Candidates wanted, at least 1 and at most the last width.
    """
    widths = [max(1, math.ceil(width * factor - 1e-6)) for width in scheduled]
    widths[-1] = max(widths[-1], candidate_count)
    return tuple(widths)


def plan_widths(scaled: tuple[int, ...], live_counts: tuple[int, ...]) -> BeamPlan:
    """Decide how many beams to keep at each level: what is called for, but no more than there are live prefixes.

    Args:
        scaled: From `scaled_widths`.
        live_counts: Distinct live prefixes of length 1 … T (`LiveTrie.live_counts`).

    Raises:
        ValueError: The lengths differ.
    """
    if len(live_counts) != len(scaled):
        raise ValueError(f"live_counts: {live_counts}: give one count for each of the {len(scaled)} levels")
    widths = tuple(min(width, live) for width, live in zip(scaled, live_counts, strict=True))
    return BeamPlan(widths, Constraint.SCHEDULE if widths == scaled else Constraint.LIVE_PREFIXES)
