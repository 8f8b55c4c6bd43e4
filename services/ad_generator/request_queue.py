"""The queue in front of the model, without the model, the clock or the event loop: what is taken in, what runs next.

The batcher drives it with requests and real time, `gr4ad bench beams` with made-up ones; both meet the same decisions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from gr4ad_core.decoding.beam_schedule import scheduled_widths
from gr4ad_runtime.errors import DeadlineExceededError, Gr4adError, ResourceExhaustedError

from ad_generator.admission import excess_wait
from ad_generator.batch_plan import BatchPlan, Demand, Limits, batch_size, plan_batch
from ad_generator.cost_model import CostModel
from ad_generator.load import LoadEstimator

T = TypeVar("T")

SHORTEST_RETRY_S: Final = 0.01
REMEDY: Final = "retry after a back-off, or add generator replicas"


@dataclass(frozen=True)
class Batch(Generic[T]):
    """Requests to compute together."""

    items: list[T]
    demands: list[Demand]
    """As the queue knew them, item by item."""
    plan: BatchPlan
    started_at: float


@dataclass(frozen=True)
class Step(Generic[T]):
    """What the queue decided at one moment."""

    batch: Batch[T] | None
    """To compute now; None where it is better to wait."""
    late: list[tuple[T, DeadlineExceededError]]
    """Requests that left the queue without an answer."""
    wait_s: float
    """Seconds after which to ask again if nothing arrives."""


class RequestQueue(Generic[T]):
    """A bounded queue that knows deadlines and costs; used by one thread. Times are seconds of one monotonic clock."""

    def __init__(
        self,
        base_widths: tuple[int, ...],
        limits: Limits,
        queue_limit: int,
        on_refused: Callable[[Gr4adError], None] = lambda error: None,
    ) -> None:
        """Make an empty queue.

        Args:
            base_widths: The policy's schedule, one width per level.
            limits: Of batches and widths.
            queue_limit: Requests waiting at most.
            on_refused: Told of every request that is not computed, by the error it gets.
        """
        self._base_widths = base_widths
        self._limits = limits
        self._queue_limit = queue_limit
        self._on_refused = on_refused
        self._waiting: list[tuple[Demand, T]] = []
        self._busy_until: float | None = None
        self.load = LoadEstimator()
        """What arrives and waits."""
        self.cost_model = CostModel()
        """What calls cost."""

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, item: T, candidate_count: int, deadline: float, now: float) -> None:
        """Take a request in.

        Raises:
            ResourceExhaustedError: The queue is full or too long for the request's time.
            DeadlineExceededError: Its time does not suffice even without a queue.
        """
        self.load.arrived(now)
        demand = Demand(now, deadline, scheduled_widths(self._base_widths, candidate_count), candidate_count)
        try:
            self._admit(demand, now)
        except Gr4adError as error:
            self._on_refused(error)
            raise
        self._waiting.append((demand, item))

    def drop(self, gone: Callable[[T], bool]) -> None:
        """Forget requests that nobody waits for."""
        self._waiting = [(demand, item) for demand, item in self._waiting if not gone(item)]

    def step(self, now: float) -> Step[T]:
        """Decide what runs now; a batch counts as under way until `finished`."""
        waiting = self._waiting
        demands = [demand for demand, _ in waiting]
        plan = plan_batch(demands, now, self.load.rate(now), self._limits, self.cost_model.costs)
        late = [
            (waiting[position][1], self._too_late(demands[position], now))
            for position in (*plan.expired, *plan.hopeless)
        ]
        for _, error in late:
            self._on_refused(error)
        gone = {*plan.run, *plan.expired, *plan.hopeless}
        self._waiting = [entry for position, entry in enumerate(waiting) if position not in gone]
        if not plan.run:
            return Step(None, late, plan.wait_s)
        chosen = [demands[position] for position in plan.run]
        self.load.waited(now - min(demand.enqueued_at for demand in chosen))
        self._busy_until = now + plan.expected_s
        return Step(Batch([waiting[position][1] for position in plan.run], chosen, plan, now), late, 0.0)

    def finished(self, batch: Batch[T], now: float, *, computed: bool = True) -> float:
        """End a batch and learn from how long it took, unless it failed.

        Returns:
            Its duration relative to the expected one, less 1; 0 where it failed.
        """
        self._busy_until = None
        if not computed:
            return 0.0
        size = batch_size(batch.demands, batch.plan.scale.factor)
        return self.cost_model.observe(size, max(1e-6, now - batch.started_at))

    def _admit(self, demand: Demand, now: float) -> None:
        waiting, limits, costs = self._waiting, self._limits, self.cost_model.costs
        busy_s = 0.0 if self._busy_until is None else self._busy_until - now
        if len(waiting) >= self._queue_limit:
            call = batch_size([entry for entry, _ in waiting[: limits.max_size]], limits.scale_min)
            retry_s = max(SHORTEST_RETRY_S, busy_s + costs.predict(call))
            raise ResourceExhaustedError("queue", f"{len(waiting)} requests waiting", REMEDY, retry_after_s=retry_s)
        idle = not waiting and self._busy_until is None
        alone_s = costs.predict(batch_size([demand], limits.scale_min))
        if not idle and alone_s > demand.deadline - now:
            raise self._too_late(demand, now)
        excess_s = excess_wait([entry for entry, _ in waiting], demand, now, busy_s, limits, costs)
        if not idle and excess_s > 0:
            raise ResourceExhaustedError(
                "queue",
                f"{len(waiting)} requests waiting, {excess_s * 1e6:.0f} µs too long for this one's time",
                REMEDY,
                retry_after_s=max(SHORTEST_RETRY_S, excess_s),
            )

    def _too_late(self, demand: Demand, now: float) -> DeadlineExceededError:
        waited_us, left_us = 1e6 * (now - demand.enqueued_at), 1e6 * (demand.deadline - now)
        needed_us = 1e6 * self.cost_model.costs.predict(batch_size([demand], self._limits.scale_min))
        left = "over" if left_us <= 0 else f"{left_us:.0f} µs left, the narrowest search takes {needed_us:.0f} µs,"
        return DeadlineExceededError(
            "latency_budget_us",
            f"{left} after {waited_us:.0f} µs in the queue",
            "allow more time, or add generator replicas",
        )
