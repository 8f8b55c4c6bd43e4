"""Ends the streams under way when a server stops, so that their readers move on at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from gr4ad_runtime.interceptors import (
    CallInterceptor,
    Handler,
    ServicerContext,
    behaviour_of,
    generates_answers,
    with_behaviour,
)


class StreamDrain(CallInterceptor):
    """Knows the streams under way; unary calls pass untouched."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: set[asyncio.Task[Any]] = set()
        self._draining = False

    def end_streams(self) -> None:
        """End every stream with UNAVAILABLE; new ones end at once."""
        self._draining = True
        # Only streams that wait for their servicer: one that is cancelled while gRPC writes ends without a status, and
        # its reader never hears of it. Those look at the flag once they have written.
        for task in self._waiting:
            task.cancel()

    def _wrap(self, method: str, handler: Handler) -> Handler:
        if not generates_answers(handler):
            return handler
        behaviour = behaviour_of(handler)

        async def stream(request: Any, context: ServicerContext) -> AsyncIterator[Any]:
            async with aclosing(behaviour(request, context)) as answers:
                while not self._draining:
                    try:
                        answer = await self._next(answers)
                    except StopAsyncIteration:
                        return
                    except asyncio.CancelledError:
                        task = asyncio.current_task()
                        if not self._draining or task is None:
                            raise
                        task.uncancel()
                        break
                    yield answer
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server stops; connect again")

        return with_behaviour(handler, stream)

    async def _next(self, answers: AsyncIterator[Any]) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            return await anext(answers)
        finally:
            self._waiting.discard(task)
