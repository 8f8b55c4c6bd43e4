"""How a server runs: bind, build, serve, drain. Every service starts through `run_service`.

A service that hosts its server elsewhere, as the generator does inside KServe's engine, uses the same pieces:
`Lifecycle`, `make_server`, `bind`, `drain`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from gr4ad_runtime.channels import MESSAGE_BYTES
from gr4ad_runtime.errors import AddressInUseError, Gr4adError, InvalidArgumentError
from gr4ad_runtime.interceptors import server_interceptors
from gr4ad_runtime.log import configure_logging, get_logger
from gr4ad_runtime.settings import ServiceSettings
from gr4ad_runtime.stream_drain import StreamDrain
from gr4ad_runtime.telemetry import configure_telemetry

Build = Callable[[grpc.aio.Server, "Lifecycle"], Awaitable[None]]

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_MISCONFIGURED = 2
# A stop hook that hangs must not keep a process that was told to stop.
STOP_HOOK_SECONDS = 10.0

_log = get_logger("app")


class Lifecycle:
    """A server's way from its start to its stop: readiness, background tasks and what to close at the end.

    Attributes:
        stopping: Set once the server was told to stop.
        failure: What a background task crashed with; None while none did.
    """

    def __init__(self, service_names: Sequence[str] = ()) -> None:
        """Start out not ready.

        Args:
            service_names: Full names of the gRPC services whose health is told, besides that of the server.
        """
        self.stopping = asyncio.Event()
        self.failure: BaseException | None = None
        self.service_names = tuple(service_names)
        self.health = health_aio.HealthServicer()
        self.streams = StreamDrain()
        self._ready = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._hooks: list[Callable[[], Awaitable[None]]] = []
        self._publishing: asyncio.Task[None] | None = None
        self.set_ready(False)

    @property
    def ready(self) -> bool:
        """Whether the server takes traffic."""
        return self._ready

    def set_ready(self, ready: bool) -> None:
        """Tell whether the server takes traffic: what health checks answer from now on."""
        if self.stopping.is_set():
            return
        self._ready = ready
        self._publishing = asyncio.ensure_future(self._publish(self._publishing))

    def background(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run a coroutine for as long as the server; should it raise, the process ends with exit code 1."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def on_stop(self, hook: Callable[[], Awaitable[None]]) -> None:
        """Call `hook` after the last call has ended; the last one registered goes first."""
        self._hooks.append(hook)

    def stop(self) -> None:
        """Ask the server to stop."""
        self.stopping.set()

    async def close(self) -> None:
        """Cancel the background tasks, then run the hooks."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._hooks:
            hook = self._hooks.pop()
            try:
                await asyncio.wait_for(hook(), STOP_HOOK_SECONDS)
            except Exception:
                _log.exception("stop hook failed", hook=getattr(hook, "__qualname__", repr(hook)))

    async def _publish(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        status = health_pb2.HealthCheckResponse.SERVING if self._ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self.service_names):
            await self.health.set(name, status)

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        self.failure = self.failure or task.exception()
        _log.error("background task crashed", task=task.get_name(), exc_info=task.exception())
        self.stop()


def make_server(
    settings: ServiceSettings, lifecycle: Lifecycle, *, inner: Sequence[grpc.aio.ServerInterceptor] = ()
) -> grpc.aio.Server:
    """Make a server with the interceptors, health and, if switched on, reflection; it is bound to no port yet.

    Args:
        settings: Whether to reflect.
        lifecycle: Tells health, and which services to reflect.
        inner: Interceptors of the service's own; they come after the common ones.
    """
    server = grpc.aio.server(
        interceptors=server_interceptors(*inner, lifecycle.streams),
        options=[
            # Otherwise two processes can share a port, each answering half of the calls.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MESSAGE_BYTES),
            ("grpc.max_send_message_length", MESSAGE_BYTES),
            # Clients ping every 20 s, also between calls.
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ],
    )
    health_pb2_grpc.add_HealthServicer_to_server(lifecycle.health, server)
    if settings.reflection:
        names = (*lifecycle.service_names, "grpc.health.v1.Health", reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    return server


def bind(server: grpc.aio.Server, settings: ServiceSettings) -> int:
    """Bind a server to its address, and return the port.

    Raises:
        AddressInUseError: Another process has the port, or the host is none of this machine's.
    """
    address = f"{settings.host}:{settings.port}"
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise AddressInUseError(
            "address",
            address,
            "cannot listen there: stop the process that does (`lsof -i` shows it), "
            "or choose another with GR4AD_HOST and GR4AD_PORT",
        ) from error


async def drain(server: grpc.aio.Server, lifecycle: Lifecycle, grace_s: float) -> None:
    """Stop a server: tell health, end the streams, let the calls under way finish, then close what the service opened.

    Args:
        server: A started server.
        lifecycle: What to close.
        grace_s: Longest time the calls get.
    """
    lifecycle.stop()
    await lifecycle.health.enter_graceful_shutdown()
    lifecycle.streams.end_streams()
    await server.stop(grace_s)
    await lifecycle.close()


async def serve(
    name: str, settings: ServiceSettings, build: Build, *, service_names: Sequence[str] = (), signals: bool = True
) -> int:
    """Run a server until it is told to stop, and return the exit code.

    Args:
        name: Name of the service in logs and traces.
        settings: Its settings.
        build: Registers the servicers, opens what they need and starts background tasks; calls
            `lifecycle.set_ready(True)` then or once the service can answer.
        service_names: Full names of the gRPC services, for health and reflection.
        signals: Whether SIGTERM and SIGINT stop the server.
    """
    configure_logging(name, settings.log_level)
    telemetry = configure_telemetry(name, settings)
    lifecycle = Lifecycle(service_names)
    server = make_server(settings, lifecycle)
    loop = asyncio.get_running_loop()
    if signals:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lifecycle.stop)
    try:
        # First, so that a port in use is told before a database is touched.
        port = bind(server, settings)
        await _unless_stopped(build(server, lifecycle), lifecycle)
        if not lifecycle.stopping.is_set():
            await server.start()
            _log.info("serving", address=f"{settings.host}:{port}", pid=os.getpid())
            await lifecycle.stopping.wait()
        _log.info("draining", seconds=settings.drain_seconds)
    except Gr4adError as error:
        _log.error("start failed", error=error.message)
        await drain(server, lifecycle, 0.0)
        return EXIT_MISCONFIGURED if isinstance(error, AddressInUseError | InvalidArgumentError) else EXIT_FAILED
    except BaseException:
        _log.exception("start failed")
        await drain(server, lifecycle, 0.0)
        raise
    else:
        await drain(server, lifecycle, settings.drain_seconds)
        _log.info("stopped")
        return EXIT_FAILED if lifecycle.failure is not None else EXIT_OK
    finally:
        # Exporters block; the loop has nothing else to do by now.
        await asyncio.to_thread(telemetry.shutdown)


def run_service(name: str, settings: ServiceSettings, build: Build, *, service_names: Sequence[str] = ()) -> NoReturn:
    """Run a server until SIGTERM or SIGINT, then end the process; see `serve`.

    The exit code is 0 after a stop that was asked for, 2 for settings that cannot work (such as a port in use), else 1.
    """
    try:
        code = asyncio.run(serve(name, settings, build, service_names=service_names))
    except Exception:
        code = EXIT_FAILED  # logged by serve
    sys.exit(code)


async def _unless_stopped(work: Awaitable[None], lifecycle: Lifecycle) -> None:
    """Wait for `work`, or cancel it should the server be told to stop meanwhile."""
    task = asyncio.ensure_future(work)
    stop = asyncio.ensure_future(lifecycle.stopping.wait())
    try:
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        for waiting in (task, stop):
            if not waiting.done():
                waiting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await waiting
