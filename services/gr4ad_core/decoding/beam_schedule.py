"""Beam widths as a plan: a pure function from what is wanted and what is live to the width of every level
(method.md §4, dynamic beams)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Constraint(StrEnum):
    """What limited the widths of a plan."""

    SCHEDULE = "schedule"
    """The policy's own widths are used in full."""
    LIVE_PREFIXES = "live_prefixes"
    """At some level fewer live prefixes exist than the schedule's width."""


@dataclass(frozen=True)
class BeamPlan:
    """The widths a search will use, and why."""

    widths: tuple[int, ...]
    """Beams to keep at each of the T levels; 0 where nothing is live."""
    constrained_by: Constraint
    """What limited them."""


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


def plan_widths(scheduled: tuple[int, ...], live_counts: tuple[int, ...]) -> BeamPlan:
    """Decide how many beams to keep at each level: what is called for, but no more than there are live prefixes.

    Args:
        scheduled: From `scheduled_widths`.
        live_counts: Distinct live prefixes of length 1 … T (`LiveTrie.live_counts`).

    Raises:
        ValueError: The lengths differ.
    """
    if len(live_counts) != len(scheduled):
        raise ValueError(f"live_counts: {live_counts}: give one count for each of the {len(scheduled)} levels")
    widths = tuple(min(width, live) for width, live in zip(scheduled, live_counts, strict=True))
    return BeamPlan(widths, Constraint.SCHEDULE if widths == scheduled else Constraint.LIVE_PREFIXES)
