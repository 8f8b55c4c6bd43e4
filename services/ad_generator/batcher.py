"""Groups concurrent requests into model calls that one worker thread executes."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from gr4ad_runtime.errors import DeadlineExceededError, ResourceExhaustedError

from ad_generator.batch_plan import plan_batch

Q = TypeVar("Q")
R = TypeVar("R")


@dataclass(frozen=True)
class Batched(Generic[R]):
    """The result of one request and how it went through the queue; times are Unix nanoseconds."""

    result: R
    enqueued_ns: int
    started_ns: int
    finished_ns: int
    batch_size: int


@dataclass(eq=False)
class _Waiting(Generic[Q, R]):
    request: Q
    deadline: float
    future: asyncio.Future[Batched[R]]
    enqueued_at: float = field(default_factory=time.monotonic)
    enqueued_ns: int = field(default_factory=time.time_ns)


class Batcher(Generic[Q, R]):
    """A bounded queue in front of a function that computes many requests at once."""

    def __init__(
        self,
        compute: Callable[[Sequence[Q]], Sequence[R]],
        executor: Executor,
        *,
        max_size: int,
        max_wait_s: float,
        queue_limit: int,
        on_batch: Callable[[int, float, float], None] = lambda size, wait_s, duration_s: None,
    ) -> None:
        """Make a batcher; `run` must be running for requests to be answered.

        Args:
            compute: Answers a batch, result by result in its order; called in `executor`, one call at a time.
            executor: Where `compute` runs, so that the event loop stays free.
            max_size: Requests per call at most.
            max_wait_s: How long a request may wait for company.
            queue_limit: Requests waiting at most; more are refused.
            on_batch: Told of every batch: its size, how long its oldest request waited, how long it took (seconds).
        """
        self._compute = compute
        self._executor = executor
        self._max_size = max_size
        self._max_wait_s = max_wait_s
        self._queue_limit = queue_limit
        self._on_batch = on_batch
        self._queue: deque[_Waiting[Q, R]] = deque()
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    async def submit(self, request: Q, deadline: float) -> Batched[R]:
        """Queue a request and wait for its result.

        Args:
            request: What to compute.
            deadline: When the answer is worth nothing any more, on `time.monotonic`'s clock.

        Raises:
            ResourceExhaustedError: The queue is full.
            DeadlineExceededError: The deadline passed before the request's turn came.
        """
        if len(self._queue) >= self._queue_limit:
            raise ResourceExhaustedError(
                "queue", f"{len(self._queue)} requests waiting", "retry after a back-off, or add generator replicas"
            )
        waiting: _Waiting[Q, R] = _Waiting(request, deadline, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._arrived.set()
        return await waiting.future

    async def run(self) -> None:
        """Answer queued requests until cancelled."""
        while True:
            while self._queue and self._queue[0].future.done():  # its caller has gone
                self._queue.popleft()
            batch, wait_s = self._next_batch()
            if batch:
                await self._execute(batch)
                continue
            self._arrived.clear()
            try:
                async with asyncio.timeout(wait_s if wait_s != float("inf") else None):
                    await self._arrived.wait()
            except TimeoutError:
                pass

    def _next_batch(self) -> tuple[list[_Waiting[Q, R]], float]:
        queue = [waiting for waiting in self._queue if not waiting.future.done()]
        now = time.monotonic()
        plan = plan_batch(
            [w.enqueued_at for w in queue], [w.deadline for w in queue], now, self._max_size, self._max_wait_s
        )
        for position in plan.expired:
            late = queue[position]
            late.future.set_exception(
                DeadlineExceededError(
                    "latency_budget_us",
                    f"over after {(now - late.enqueued_at) * 1e6:.0f} µs in the queue",
                    "allow more time, or add generator replicas",
                )
            )
        gone = {*plan.run, *plan.expired}
        self._queue = deque(waiting for position, waiting in enumerate(queue) if position not in gone)
        return [queue[position] for position in plan.run], plan.wait_s

    async def _execute(self, batch: list[_Waiting[Q, R]]) -> None:
        requests = [waiting.request for waiting in batch]
        started_ns = time.time_ns()
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._executor, self._compute, requests)
        except Exception as error:
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return
        finished_ns = time.time_ns()
        wait_s = (started_ns - batch[0].enqueued_ns) * 1e-9
        self._on_batch(len(batch), wait_s, (finished_ns - started_ns) * 1e-9)
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(
                    Batched(result, waiting.enqueued_ns, started_ns, finished_ns, batch_size=len(batch))
                )
