"""From outcomes to figures."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from gr4ad_tools import figures
from gr4ad_tools.bench.serve.client import ANSWERED, LATE, REFUSED, Outcome
from gr4ad_tools.figures import Figure

SETTLED: Final = 0.2
"""Share of a load's time after which its requests count: the generator knows its rate and its costs by then."""
METHOD: Final = "gr4ad.generation.v1.GenerationService/GenerateAds"


@dataclass(frozen=True)
class Load:
    """What became of a load's requests that count.

    Attributes:
        outcomes: In the order of the schedule.
        seconds: That they were scheduled in.
        budget_s: Latency budget of each.
    """

    outcomes: Sequence[Outcome]
    seconds: float
    budget_s: float

    @classmethod
    def settled(cls, outcomes: Sequence[Outcome], arrivals: Sequence[float], seconds: float, budget_s: float) -> Load:
        """Leave out those who came before the generator had settled.

        Args:
            outcomes: One per arrival.
            arrivals: Moments, ascending, in seconds from the start.
            seconds: Of the whole load.
            budget_s: Latency budget of each.
        """
        begin = SETTLED * seconds
        return cls(outcomes[bisect_left(arrivals, begin) :], seconds - begin, budget_s)

    @property
    def answered(self) -> list[Outcome]:
        """The answered requests, in their budget or not."""
        return [outcome for outcome in self.outcomes if outcome.code == ANSWERED]

    @property
    def in_budget(self) -> int:
        """Requests answered within their budget, counted from the moment they were due."""
        return sum(outcome.latency_s <= self.budget_s for outcome in self.answered)

    @property
    def in_budget_per_s(self) -> float:
        """Answers in budget a second."""
        return self.in_budget / self.seconds

    def figures(self, at: str) -> dict[str, Figure]:
        """Return the load's figures, their names ending in `at`."""
        asked = len(self.outcomes)
        shares = {
            "answered_share": self.in_budget,
            "refused_share": sum(outcome.code == REFUSED for outcome in self.outcomes),
        }
        latencies_ms = [1e3 * outcome.latency_s for outcome in self.answered]
        refused_ms = [1e3 * (each.received - each.sent) for each in self.outcomes if each.code == REFUSED]
        behind_ms = [1e3 * outcome.behind_s for outcome in self.outcomes]
        return {
            f"offered_rps_{at}": Figure(asked / self.seconds, "1/s", asked),
            f"in_budget_rps_{at}": Figure(self.in_budget_per_s, "1/s", self.in_budget),
            f"p50_ms_{at}": figures.percentile(latencies_ms, 50, "ms"),
            f"p99_ms_{at}": figures.percentile(latencies_ms, 99, "ms"),
            **{f"{name}_{at}": Figure(count / max(1, asked), "", asked) for name, count in shares.items()},
            f"scale_{at}": figures.mean([outcome.scale for outcome in self.answered]),
            f"client_refused_ms_p99_{at}": figures.percentile(refused_ms, 99, "ms"),
            f"client_behind_ms_p99_{at}": figures.percentile(behind_ms, 99, "ms"),
        }


def failed(outcomes: Iterable[Outcome]) -> int:
    """Count requests that were neither answered, nor refused, nor given up in the queue for their time."""
    return sum(outcome.code not in (ANSWERED, REFUSED, LATE) for outcome in outcomes)


def relative_value(outcomes: Sequence[Outcome], full: Sequence[Outcome]) -> Figure:
    """Return Σ of the lists' values relative to that of the same users' lists at full width.

    Args:
        outcomes: Answered requests.
        full: The answers to the same users at full width, in any order; those without one are left out on both sides.
    """
    values = {outcome.user: outcome.value for outcome in full if outcome.code == ANSWERED}
    pairs = [(outcome.value, values[outcome.user]) for outcome in outcomes if outcome.user in values]
    whole = sum(value for _, value in pairs)
    return Figure(sum(value for value, _ in pairs) / whole if whole else float("nan"), "", len(pairs))


def refusal_ms(log: Iterable[str]) -> list[float]:
    """Return how long each refused request took in the server, in ms, from the lines of its access log."""
    found = []
    for line in log:
        if REFUSED in line:
            entry = json.loads(line)
            if entry.get("method") == METHOD and entry.get("code") == REFUSED:
                found.append(float(entry["duration_ms"]))
    return found


def growth_pct(samples: Sequence[float]) -> Figure:
    """Return by how much samples taken at equal intervals grew, from the median of the first tenth after the warm-up to
    that of the last tenth, in percent."""
    kept = samples[int(SETTLED * len(samples)) :]
    if not kept:
        return Figure(float("nan"), "%", 0)
    part = max(1, len(kept) // 10)
    first, last = float(np.median(kept[:part])), float(np.median(kept[-part:]))
    return Figure(100.0 * (last / first - 1.0), "%", len(kept))


def over_fixed(found: Mapping[str, Figure], loads: Iterable[int]) -> dict[str, Figure]:
    """Return the ratio of answers in budget a second, adaptive over fixed widths, at loads that both met.

    Args:
        found: Figures of the loads (`Load.figures`).
        loads: In percent.
    """
    pairs = {load: (found[f"in_budget_rps_at_{load}"], found[f"in_budget_rps_fixed_at_{load}"]) for load in loads}
    return {
        f"adaptive_over_fixed_at_{load}": Figure(
            adaptive.value / fixed.value if fixed.value else float("nan"), "times", adaptive.n + fixed.n
        )
        for load, (adaptive, fixed) in pairs.items()
    }
