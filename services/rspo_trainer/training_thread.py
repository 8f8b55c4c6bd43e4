"""The one thread that computes: whatever trains or blocks runs here, and nowhere else in the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from opentelemetry import context as otel_context

T = TypeVar("T")


class TrainingThread:
    """Runs work one piece after the other, under the caller's trace."""

    def __init__(self) -> None:
        """Start the thread when first needed."""
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training")

    async def run(self, work: Callable[[], T], stop: threading.Event) -> T:
        """Return what `work` returns. A cancelled call sets `stop` and waits until the work has ended."""
        context = otel_context.get_current()

        def traced() -> T:
            token = otel_context.attach(context)
            try:
                return work()
            finally:
                otel_context.detach(token)

        future = asyncio.get_running_loop().run_in_executor(self._executor, traced)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([future])
            future.exception()  # seen: the caller goes by its own cancellation
            raise
