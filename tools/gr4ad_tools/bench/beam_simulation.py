"""A generator's queue under made-up traffic, event by event: the queue's own decisions, a clock and costs of our own.

Arrivals are a Poisson process whose rate may change over time. A model call takes what `Truth` says, with noise; the
queue does not know it and fits its own costs, as in the generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from ad_generator.batch_plan import Limits, batch_size, offered_load
from ad_generator.cost_model import CallSize, Costs
from ad_generator.request_queue import RequestQueue
from gr4ad_runtime.errors import DeadlineExceededError, ResourceExhaustedError
from numpy.typing import NDArray

QUEUE_LIMIT: Final = 256
OUTLIER_FACTOR: Final = 4.0


@dataclass(frozen=True)
class Truth:
    """What model calls really take.

    Attributes:
        costs: Their expected durations.
        noise: Standard deviation of the logarithm of the factor on each.
        outliers: Share of calls that take `OUTLIER_FACTOR` times as long.
    """

    costs: Costs
    noise: float = 0.1
    outliers: float = 0.002

    def duration(self, size: CallSize, rng: np.random.Generator) -> float:
        """Draw how long a call takes, in seconds."""
        factor = float(np.exp(rng.normal(-0.5 * self.noise**2, self.noise)))
        return self.costs.predict(size) * factor * (OUTLIER_FACTOR if rng.random() < self.outliers else 1.0)


@dataclass(frozen=True)
class Engine:
    """A generator, as far as its queue is concerned.

    Attributes:
        truth: What its calls take.
        base_widths: The policy's schedule.
        limits: Of batches and widths.
    """

    truth: Truth
    base_widths: tuple[int, ...]
    limits: Limits

    @property
    def nominal_rate(self) -> float:
        """Arrivals a second that full batches at the base widths just keep up with."""
        return 1.0 / offered_load(1.0, sum(self.base_widths), self.limits.max_size, self.truth.costs)


@dataclass
class Course:
    """What came of it; moments are seconds from the start."""

    arrivals: list[float] = field(default_factory=list)
    """Of all requests."""
    answers: list[tuple[float, float]] = field(default_factory=list)
    """Of each answered request: arrival and latency."""
    refused: list[tuple[float, float]] = field(default_factory=list)
    """Of each request refused on arrival: arrival and the hint when to retry."""
    late: list[tuple[float, float]] = field(default_factory=list)
    """Of each request given up in the queue: arrival and how long it was there."""
    batches: list[tuple[float, float, float]] = field(default_factory=list)
    """Of each batch: start, wait of its oldest request, scale."""
    cost_errors: list[float] = field(default_factory=list)
    """Of each batch: its duration relative to the expected one, less 1."""

    def latencies(self, begin: float = 0.0) -> NDArray[np.float64]:
        """Return the latencies of the answered requests that came from a moment on, in seconds."""
        return np.array([latency for arrival, latency in self.answers if arrival >= begin])

    def scales(self, begin: float = 0.0) -> NDArray[np.float64]:
        """Return the scales of the batches that started from a moment on."""
        return np.array([scale for start, _, scale in self.batches if start >= begin])

    def in_budget(self, budget_s: float, begin: float, end: float) -> int:
        """Return how many of the requests that came between two moments were answered within the budget."""
        return sum(latency <= budget_s for arrival, latency in self.answers if begin <= arrival < end)

    def asked(self, begin: float, end: float) -> int:
        """Return how many requests came between two moments."""
        return sum(begin <= arrival < end for arrival in self.arrivals)


def poisson_arrivals(
    rate: Callable[[float], float], peak: float, seconds: float, rng: np.random.Generator
) -> list[float]:
    """Draw the arrivals of a Poisson process, by thinning one of a constant rate.

    Args:
        rate: Arrivals a second at each moment.
        peak: What it never exceeds.
        seconds: How long.
        rng: Source of chance.

    Returns:
        Moments, ascending.
    """
    moments = np.sort(rng.uniform(0.0, seconds, rng.poisson(peak * seconds)))
    kept = rng.uniform(0.0, peak, len(moments)) < [rate(moment) for moment in moments.tolist()]
    return [float(moment) for moment in moments[kept]]


def simulate(
    engine: Engine, arrivals: Sequence[float], budget_s: float, seed: int, candidate_count: int = 20
) -> Course:
    """Run a queue through traffic.

    Args:
        engine: Whose queue.
        arrivals: When requests come, ascending, in seconds.
        budget_s: Latency budget of each.
        seed: Of the calls' durations.
        candidate_count: Candidates of each.
    """
    rng = np.random.default_rng(seed)
    queue = RequestQueue[float](engine.base_widths, engine.limits, QUEUE_LIMIT)
    course = Course(arrivals=list(arrivals))
    now, number = 0.0, 0

    def arrive_until(moment: float) -> None:
        nonlocal number
        while number < len(arrivals) and arrivals[number] <= moment:
            arrival = arrivals[number]
            number += 1
            try:
                queue.offer(arrival, candidate_count, arrival + budget_s, arrival)
            except ResourceExhaustedError as error:
                course.refused.append((arrival, error.retry_after_s or 0.0))
            except DeadlineExceededError:
                course.late.append((arrival, 0.0))

    while number < len(arrivals) or len(queue):
        step = queue.step(now)
        course.late += [(arrival, now - arrival) for arrival, _ in step.late]
        batch = step.batch
        if batch is None:
            next_arrival = arrivals[number] if number < len(arrivals) else float("inf")
            now = min(next_arrival, max(now + step.wait_s, float(np.nextafter(now, np.inf))))
            arrive_until(now)
            continue
        course.batches.append((now, now - min(batch.items), batch.plan.scale.factor))
        now += engine.truth.duration(batch_size(batch.demands, batch.plan.scale.factor), rng)
        arrive_until(now)
        course.cost_errors.append(queue.finished(batch, now))
        course.answers += [(arrival, now - arrival) for arrival in batch.items]
    return course
