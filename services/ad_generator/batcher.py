"""Groups concurrent requests into model calls that one worker thread executes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ad_generator.batch_plan import BatchPlan
from ad_generator.request_queue import Batch, RequestQueue

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


@dataclass(frozen=True)
class BatchRecord:
    """How a batch went; durations in seconds."""

    plan: BatchPlan
    """What was decided."""
    requests: int
    """Requests of the batch."""
    wait_s: float
    """How long its oldest request waited."""
    duration_s: float
    """How long it took."""
    cost_error: float
    """Its duration relative to the expected one, less 1."""


@dataclass(eq=False)
class Waiting(Generic[Q, R]):
    """A request in the queue."""

    future: asyncio.Future[Batched[R]]
    request: Q = field(init=False)
    enqueued_ns: int = field(default_factory=time.time_ns)


class Batcher(Generic[Q, R]):
    """Runs a queue's decisions: refuses, waits, computes."""

    def __init__(
        self,
        compute: Callable[[Sequence[Q], BatchPlan], Sequence[R]],
        executor: Executor,
        queue: RequestQueue[Waiting[Q, R]],
        on_batch: Callable[[BatchRecord], None] = lambda record: None,
    ) -> None:
        """Make a batcher; `run` must be running for requests to be answered.

        Args:
            compute: Answers a batch as its plan says, result by result in its order; called in `executor`, one call at
                a time.
            executor: Where `compute` runs, so that the event loop stays free.
            queue: Decides what runs, when, and at which widths.
            on_batch: Told of every batch.
        """
        self._compute = compute
        self._executor = executor
        self._queue = queue
        self._on_batch = on_batch
        self._arrived = asyncio.Event()
        self._answering: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def submit(self, request: Callable[[], Q], candidate_count: int, deadline: float) -> asyncio.Future[Batched[R]]:
        """Queue a request, or refuse it at once, and return its result to come; cancelled, it leaves the queue.

        Args:
            request: Makes what to compute; not called for a request that is refused, which should cost little.
            candidate_count: Candidates that it wants.
            deadline: When the answer is worth nothing any more, on `time.monotonic`'s clock.

        Raises:
            ResourceExhaustedError: The queue is full or too long for the request's time.
            DeadlineExceededError: Its time does not suffice even without a queue; in the future, too: it passed before
                the request's turn came, or does not suffice any more.
        """
        waiting: Waiting[Q, R] = Waiting(asyncio.get_running_loop().create_future())
        self._queue.offer(waiting, candidate_count, deadline, time.monotonic())
        try:
            waiting.request = request()
        except BaseException:
            waiting.future.cancel()  # so it leaves the queue
            raise
        self._arrived.set()
        return waiting.future

    async def run(self) -> None:
        """Answer queued requests until cancelled."""
        while True:
            self._queue.drop(lambda waiting: waiting.future.done())  # their callers have gone
            step = self._queue.step(time.monotonic())
            for waiting, error in step.late:
                waiting.future.set_exception(error)
            if step.batch is not None:
                await self._execute(step.batch)
                continue
            self._arrived.clear()
            try:
                async with asyncio.timeout(step.wait_s if step.wait_s != float("inf") else None):
                    await self._arrived.wait()
            except TimeoutError:
                pass

    async def _execute(self, batch: Batch[Waiting[Q, R]]) -> None:
        requests = [waiting.request for waiting in batch.items]
        started_ns = time.time_ns()
        try:
            results = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._compute, requests, batch.plan
            )
        except Exception as error:
            self._queue.finished(batch, time.monotonic(), computed=False)
            for waiting in batch.items:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return
        finished_ns = time.time_ns()
        cost_error = self._queue.finished(batch, time.monotonic())
        wait_s = (started_ns - min(waiting.enqueued_ns for waiting in batch.items)) * 1e-9
        self._on_batch(BatchRecord(batch.plan, len(requests), wait_s, (finished_ns - started_ns) * 1e-9, cost_error))
        answers = [
            Batched(result, waiting.enqueued_ns, started_ns, finished_ns, batch_size=len(requests))
            for waiting, result in zip(batch.items, results, strict=True)
        ]
        answering = asyncio.create_task(self._answer(batch.items, answers), name="answers of a batch")
        self._answering.add(answering)
        answering.add_done_callback(self._answering.discard)

    async def _answer(self, items: Sequence[Waiting[Q, R]], answers: Sequence[Batched[R]]) -> None:
        """Give callers their answers one at a time: each takes the event loop a while, and who is refused waits for
        one of them, not for all. The next batch goes on meanwhile."""
        for waiting, answer in zip(items, answers, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(answer)
            await asyncio.sleep(0)
