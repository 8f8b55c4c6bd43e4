"""Equal requests that are under way at the same time share one computation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from gr4ad_runtime.errors import DeadlineExceededError

R = TypeVar("R")


@dataclass(eq=False)
class _Running(Generic[R]):
    result: asyncio.Future[R]
    deadline: float
    waiting: int = 0


class SharedComputations(Generic[R]):
    """Runs one computation per question at a time; whoever asks meanwhile waits for its result as well.

    A caller that leaves takes nothing from the others: the computation is given up only once nobody waits for it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Make it with nothing under way; `clock` tells the time of the deadlines, in seconds."""
        self._clock = clock
        self._running: dict[Hashable, _Running[R]] = {}
        self.shared = 0
        """Results given to callers that found the computation under way."""
        self.own = 0
        """Results given to callers that started it."""

    @property
    def under_way(self) -> int:
        """Computations under way."""
        return len(self._running)

    async def result(self, key: Hashable, deadline: float, compute: Callable[[], asyncio.Future[R]]) -> tuple[R, bool]:
        """Return the result of a computation, and whether another caller had started it.

        A caller whose time outlasts that of the computation, which then fails for want of it, has it started anew.

        Args:
            key: The question: equal keys have equal results.
            deadline: Of this caller, on the clock.
            compute: Starts the computation, which minds this caller's deadline by itself, or refuses to.

        Raises:
            DeadlineExceededError: The caller's time was over first.
            Exception: Whatever the computation raised, to all who wait for it.
        """
        while True:
            running = self._running.get(key)
            others = running is not None and not running.result.done()
            if running is None or not others:
                running = self._start(key, deadline, compute)
            try:
                found = await self._wait(key, running, deadline)
            except DeadlineExceededError:
                if deadline <= running.deadline:
                    raise
                continue
            if others:
                self.shared += 1
            else:
                self.own += 1
            return found, others

    def _start(self, key: Hashable, deadline: float, compute: Callable[[], asyncio.Future[R]]) -> _Running[R]:
        running = _Running(compute(), deadline)
        self._running[key] = running
        running.result.add_done_callback(lambda _: self._forget(key, running))
        return running

    async def _wait(self, key: Hashable, running: _Running[R], deadline: float) -> R:
        # Whose deadline is not before the computation's leaves it to the computation to tell that time is over.
        time_left = max(0.0, deadline - self._clock()) if deadline < running.deadline else None
        running.waiting += 1
        try:
            await asyncio.wait([running.result], timeout=time_left)
        finally:
            running.waiting -= 1
            if running.waiting == 0 and not running.result.done():
                running.result.cancel()
                self._forget(key, running)
        if not running.result.done():
            raise DeadlineExceededError(
                "latency_budget_us",
                "over while an equal request was computed",
                "allow more time, or add generator replicas",
            )
        return running.result.result()

    def _forget(self, key: Hashable, running: _Running[R]) -> None:
        if self._running.get(key) is running:
            del self._running[key]
