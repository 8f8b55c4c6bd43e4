"""The batcher: grouping, limits, deadlines, failures."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest
from ad_generator.batch_plan import Limits
from ad_generator.batcher import Batched, Batcher, Waiting
from ad_generator.request_queue import RequestQueue
from gr4ad_runtime.errors import DeadlineExceededError, ResourceExhaustedError


class Worker:
    """Squares numbers; can be held up, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[str] = set()
        self.free = threading.Event()
        self.free.set()

    def compute(self, numbers: Sequence[int]) -> list[int]:
        self.threads.add(threading.current_thread().name)
        self.batches.append(list(numbers))
        self.free.wait(5)
        if -1 in numbers:
            raise RuntimeError("out of memory")
        return [number * number for number in numbers]


@asynccontextmanager
async def running(
    compute: Callable[[Sequence[int]], list[int]], max_size: int = 4, queue_limit: int = 8, max_wait_s: float = 0.001
) -> AsyncIterator[Batcher[int, int]]:
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker")
    queue = RequestQueue[Waiting[int, int]]((1,), Limits(max_size, max_wait_s), queue_limit)
    batcher = Batcher[int, int](lambda numbers, plan: compute(numbers), executor, queue)
    task = asyncio.create_task(batcher.run())
    try:
        yield batcher
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        executor.shutdown()


def submit(batcher: Batcher[int, int], number: int, deadline: float) -> asyncio.Future[Batched[int]]:
    return batcher.submit(lambda: number, 1, deadline)


def soon() -> float:
    return time.monotonic() + 5.0


async def test_each_caller_gets_its_own_result() -> None:
    worker = Worker()
    async with running(worker.compute) as batcher:
        results = await asyncio.gather(*(submit(batcher, number, soon()) for number in range(8)))
    assert [batched.result for batched in results] == [number * number for number in range(8)]
    assert worker.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert worker.threads == {"worker_0"}
    assert {batched.batch_size for batched in results} == {4}
    assert all(b.enqueued_ns <= b.started_ns <= b.finished_ns for b in results)


async def test_other_work_gets_its_turn_between_two_answers_of_a_batch() -> None:
    happened: list[str] = []

    async def caller(batcher: Batcher[int, int], number: int) -> None:
        await submit(batcher, number, soon())
        happened.append("answer")

    async def others() -> None:
        while True:
            happened.append("turn")
            await asyncio.sleep(0)

    worker = Worker()
    async with running(worker.compute) as batcher:
        turns = asyncio.create_task(others())
        await asyncio.gather(*(caller(batcher, number) for number in range(4)))
        turns.cancel()
    assert worker.batches == [[0, 1, 2, 3]]
    answers = [place for place, what in enumerate(happened) if what == "answer"]
    assert all(after - before > 1 for before, after in pairwise(answers))


async def test_what_arrives_during_a_batch_goes_together_in_the_next() -> None:
    worker = Worker()
    worker.free.clear()
    async with running(worker.compute) as batcher:
        first = asyncio.ensure_future(submit(batcher, 1, soon()))
        while not worker.batches:
            await asyncio.sleep(0.001)
        others = [asyncio.ensure_future(submit(batcher, number, soon())) for number in (2, 3)]
        await asyncio.sleep(0.01)
        assert batcher.waiting == 2
        worker.free.set()
        await asyncio.gather(first, *others)
    assert worker.batches == [[1], [2, 3]]


async def test_a_full_queue_refuses_with_a_remedy() -> None:
    worker, made = Worker(), [3]
    worker.free.clear()
    async with running(worker.compute, max_size=1, queue_limit=2) as batcher:
        tasks = [asyncio.ensure_future(submit(batcher, 0, soon()))]
        while not worker.batches:
            await asyncio.sleep(0.001)
        tasks += [asyncio.ensure_future(submit(batcher, number, soon())) for number in (1, 2)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhaustedError, match="2 requests waiting: retry after a back-off"):
            batcher.submit(made.pop, 1, soon())
        assert made == [3]  # what is refused costs little
        worker.free.set()
        assert [batched.result for batched in await asyncio.gather(*tasks)] == [0, 1, 4]


async def test_what_is_late_is_answered_and_not_computed() -> None:
    worker = Worker()
    worker.free.clear()
    async with running(worker.compute) as batcher:
        first = asyncio.ensure_future(submit(batcher, 0, soon()))
        while not worker.batches:
            await asyncio.sleep(0.001)
        late = asyncio.ensure_future(submit(batcher, 1, time.monotonic() + 0.02))
        in_time = asyncio.ensure_future(submit(batcher, 2, soon()))
        await asyncio.sleep(0.05)
        worker.free.set()
        with pytest.raises(DeadlineExceededError, match="latency_budget_us"):
            await late
        await asyncio.gather(first, in_time)
    assert worker.batches == [[0], [2]]


async def test_a_caller_that_has_gone_is_not_computed() -> None:
    worker = Worker()
    worker.free.clear()
    async with running(worker.compute) as batcher:
        first = asyncio.ensure_future(submit(batcher, 0, soon()))
        while not worker.batches:
            await asyncio.sleep(0.001)
        gone = asyncio.ensure_future(submit(batcher, 1, soon()))
        await asyncio.sleep(0.01)
        gone.cancel()
        worker.free.set()
        await first
        assert (await submit(batcher, 2, soon())).result == 4
    assert worker.batches == [[0], [2]]


async def test_a_request_that_cannot_be_made_leaves_the_queue() -> None:
    worker = Worker()
    async with running(worker.compute) as batcher:
        with pytest.raises(IndexError):
            batcher.submit([].pop, 1, soon())
        assert (await submit(batcher, 2, soon())).result == 4
    assert worker.batches == [[2]]


async def test_a_failed_batch_fails_its_callers_only() -> None:
    worker = Worker()
    async with running(worker.compute, max_size=2) as batcher:
        results = await asyncio.gather(
            *(submit(batcher, number, soon()) for number in (-1, 1, 2, 3)), return_exceptions=True
        )
    assert [isinstance(result, RuntimeError) for result in results] == [True, True, False, False]


async def test_a_lone_request_does_not_wait_long() -> None:
    worker = Worker()
    async with running(worker.compute, max_size=100, max_wait_s=0.02) as batcher:
        begin = time.monotonic()
        await submit(batcher, 1, soon())
        assert time.monotonic() - begin < 1.0


async def test_the_earliest_deadline_goes_first() -> None:
    worker = Worker()
    worker.free.clear()
    async with running(worker.compute, max_size=2) as batcher:
        tasks = [asyncio.ensure_future(submit(batcher, 0, soon()))]
        while not worker.batches:
            await asyncio.sleep(0.001)
        now = time.monotonic()
        for number, seconds in ((1, 9.0), (2, 8.0), (3, 7.0), (4, 6.0)):
            tasks.append(asyncio.ensure_future(submit(batcher, number, now + seconds)))
        await asyncio.sleep(0.01)
        worker.free.set()
        await asyncio.gather(*tasks)
    assert worker.batches == [[0], [4, 3], [2, 1]]


async def test_a_queue_too_long_for_the_time_refuses_at_once_and_hints_when_to_retry() -> None:
    def compute(numbers: Sequence[int]) -> list[int]:
        time.sleep(0.02)
        return list(numbers)

    async with running(compute, max_size=1, queue_limit=1000, max_wait_s=0.0) as batcher:
        for number in range(40):  # what a call takes has to be learned
            await submit(batcher, number, soon())
        deadline = time.monotonic() + 1.0  # for 3 s of work
        taken, refused = [], []
        for number in range(150):
            try:
                taken.append(submit(batcher, number, deadline))
            except ResourceExhaustedError as error:
                refused.append(error)
        outcomes = await asyncio.gather(*taken, return_exceptions=True)
    assert len(refused) >= 100
    assert not isinstance(outcomes[0], Exception)
    assert all("too long for this one's time" in error.message for error in refused)
    assert all(error.retry_after_s is not None and error.retry_after_s > 0 for error in refused)
