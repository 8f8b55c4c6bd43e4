"""A small service with real contracts, to run the plumbing with: in a test, or as a process of its own.

What a call does is told by its `run_id`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from gr4ad.training.v1 import training_pb2, training_pb2_grpc
from gr4ad_runtime import errors
from gr4ad_runtime.app import Lifecycle, bind, drain, make_server, run_service
from gr4ad_runtime.settings import ServiceSettings, read_settings

SERVICE = "gr4ad.training.v1.TrainingService"

FIELD_ERRORS = {
    kind.__name__: kind
    for kind in (
        errors.InvalidArgumentError,
        errors.NotFoundError,
        errors.AlreadyExistsError,
        errors.FailedPreconditionError,
        errors.OutOfRangeError,
        errors.ResourceExhaustedError,
        errors.AbortedError,
        errors.UnavailableError,
        errors.DeadlineExceededError,
        errors.DataLossError,
    )
}


class SampleServicer(training_pb2_grpc.TrainingServiceServicer):
    """Answers, raises, waits or calls on, as told."""

    def __init__(self, upstream: Callable[[], Awaitable[Any]] | None = None) -> None:
        self.calls: list[str] = []
        self.time_remaining: float | None = None
        self._upstream = upstream

    async def GetTrainingRun(self, request: Any, context: Any) -> Any:
        self.calls.append(request.run_id)
        self.time_remaining = context.time_remaining()
        await self._act(request.run_id)
        return training_pb2.GetTrainingRunResponse(training_run=training_pb2.TrainingRun(run_id=request.run_id))

    async def WatchPolicies(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.calls.append(request.channel)
        yield training_pb2.WatchPoliciesResponse(traceparent=f"{len(self.calls)}-first")
        await self._act(request.channel)
        yield training_pb2.WatchPoliciesResponse(traceparent=f"{len(self.calls)}-second")

    async def _act(self, told: str) -> None:
        if told in FIELD_ERRORS:
            raise FIELD_ERRORS[told]("run_id", told, "do something else")
        what, _, argument = told.partition("-")
        if what == "crash":
            raise ValueError("the secret of the crash")
        if what == "sleep":
            await asyncio.sleep(float(argument) / 1000.0)
        if what == "forward" and self._upstream is not None:
            await self._upstream()
        if what == "exit":
            os._exit(int(argument))


@asynccontextmanager
async def serving(
    servicer: SampleServicer, settings: ServiceSettings | None = None, *, ready: bool = True
) -> AsyncIterator[tuple[str, Lifecycle]]:
    """Serve in this process with every interceptor, and yield the address and the lifecycle."""
    settings = settings or ServiceSettings()
    lifecycle = Lifecycle([SERVICE])
    server = make_server(settings, lifecycle)
    training_pb2_grpc.add_TrainingServiceServicer_to_server(servicer, server)
    port = bind(server, settings)
    await server.start()
    lifecycle.set_ready(ready)
    try:
        yield f"{settings.host}:{port}", lifecycle
    finally:
        await drain(server, lifecycle, 1.0)


async def build(server: grpc.aio.Server, lifecycle: Lifecycle) -> None:
    """Wire the process; what goes wrong is told by the first argument."""
    told = sys.argv[1] if len(sys.argv) > 1 else ""
    training_pb2_grpc.add_TrainingServiceServicer_to_server(SampleServicer(), server)
    if told == "unavailable":
        raise errors.UnavailableError("database", "down", "start it")
    if told == "crash":
        raise RuntimeError("cannot build")
    if told == "task":
        lifecycle.background(_crash_soon(), "doomed")
    if told == "hang":
        print("hanging", flush=True)
        await asyncio.sleep(60.0)

    async def closed() -> None:
        print("closed", flush=True)

    lifecycle.on_stop(closed)
    lifecycle.set_ready(told != "unready")


async def _crash_soon() -> None:
    await asyncio.sleep(0.1)
    raise RuntimeError("the task is broken")


if __name__ == "__main__":
    run_service("sample", read_settings(ServiceSettings), build, service_names=[SERVICE])
