"""Training samples written out one by one, and value labels counted by hand (method.md §3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One event of a user."""

    item_id: str
    behavior: int
    time: float


@dataclass(frozen=True)
class Sample:
    """A target and what came before it."""

    user: int
    history: tuple[Event, ...]
    target: Event


def samples(sequences: Sequence[Sequence[Event]], known_items: set[str]) -> list[Sample]:
    """List every event of a known item but the first of its user, with all known events before it."""
    listed = []
    for user, events in enumerate(sequences):
        seen: list[Event] = []
        for event in events:
            if event.item_id not in known_items:
                continue
            if seen:
                listed.append(Sample(user, tuple(seen), event))
            seen.append(event)
    return listed


def value_micros(
    sequences: Sequence[Sequence[Event]],
    event: Event,
    bids: Mapping[str, int],
    conversion_types: Mapping[str, str],
    prior_events: float,
    prior_rates: Mapping[tuple[int, int], float],
) -> float:
    """Return 1000 · bid · smoothed rate at which events like this one, on ads of its type, end in a charge."""
    kind = conversion_types[event.item_id]
    charged = 2 if kind == "click" else 3
    if event.behavior >= charged:
        return 1000.0 * bids[event.item_id]
    of_kind = {1: 0, 2: 0, 3: 0}
    of_all = {1: 0, 2: 0, 3: 0}
    for events in sequences:
        for other in events:
            if other.item_id in bids:
                of_all[other.behavior] += 1
                if conversion_types[other.item_id] == kind:
                    of_kind[other.behavior] += 1
    before = of_all[event.behavior]
    prior = of_all[charged] / before if before else prior_rates[event.behavior, charged]
    rate = (of_kind[charged] + prior_events * prior) / (of_kind[event.behavior] + prior_events)
    return 1000.0 * bids[event.item_id] * min(rate, 1.0)
