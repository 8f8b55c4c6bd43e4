"""Keeps processes running: starts them, restarts those that end, stops them in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from gr4ad_runtime.errors import FailedPreconditionError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gr4ad_tools.process_guard import ProcessGuard

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 10.0
# A process that ran this long was well: its next restart comes at once again.
WELL_AFTER_S = 30.0
KILL_AFTER_S = 20.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A process to keep running.

    Attributes:
        name: What it is called.
        command: Program and arguments.
        address: host:port it serves gRPC on.
        log: File its output is appended to.
        env: Environment variables besides those of this process.
    """

    name: str
    command: Sequence[str]
    address: str
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)


class SupervisedProcess:
    """A process that is started again whenever it ends, until it is stopped.

    Attributes:
        spec: What is run.
        restarts: How often it was started again.
        pid: Id of the running process; None between two runs.
        exit_code: How the last run ended; negative for a signal; None in the first run.
    """

    def __init__(self, spec: ProcessSpec, on_exit: Callable[[SupervisedProcess], None] | None = None) -> None:
        """Describe a process; `start` starts it. `on_exit` is called at each end that was not asked for."""
        self.spec = spec
        self.restarts = 0
        self.pid: int | None = None
        self.exit_code: int | None = None
        self._on_exit = on_exit
        self._stopping = False
        self._exits = 0
        self._keeper: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process and keep it running."""
        guard = await self._launch()
        self._keeper = asyncio.create_task(self._keep(guard), name=f"keep {self.spec.name}")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to the running process; it is started again if it ends."""
        if self.pid is not None:
            os.kill(self.pid, number)

    async def stop(self) -> None:
        """Ask the process to end, and wait until it has; kill it after 20 s."""
        self._stopping = True
        keeper, process = self._keeper, self._process
        if keeper is None:
            return
        if process is None or process.returncode is not None:
            keeper.cancel()  # between two runs
        else:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        done, _ = await asyncio.wait({keeper}, timeout=KILL_AFTER_S)
        if not done and process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper
        self._keeper = None

    async def wait_live(self, seconds: float) -> None:
        """Wait until the process answers health checks, whatever it answers.

        Raises:
            FailedPreconditionError: It ended meanwhile or did not answer in time; quotes its log.
        """
        deadline, exits = time.monotonic() + seconds, self._exits
        while not await is_live(self.spec.address):
            if self._exits > exits or (self.pid is None and self._exits > 0):
                raise self._failure(f"ended with exit code {self.exit_code}")
            if time.monotonic() > deadline:
                raise self._failure(f"did not answer at {self.spec.address} in {seconds:g} s")
            await asyncio.sleep(POLL_S)

    def _failure(self, what: str) -> FailedPreconditionError:
        said = " / ".join(self.log_tail(3)) or "it wrote nothing"
        return FailedPreconditionError(self.spec.name, what, f"its log, {self.spec.log}, says: {said}")

    def log_tail(self, lines: int) -> list[str]:
        """Return the last lines of the log."""
        if not self.spec.log.exists():
            return []
        with self.spec.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
            return file.read().decode(errors="replace").splitlines()[-lines:]

    async def _launch(self) -> ProcessGuard:
        self.spec.log.parent.mkdir(parents=True, exist_ok=True)
        with self.spec.log.open("ab") as log:
            # A group of its own: Ctrl-C reaches this process only, which then stops the others in order. In one
            # session, since Linux shares processor time among sessions first, whatever the priorities in them.
            process = await asyncio.create_subprocess_exec(
                *self.spec.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.spec.env},
                process_group=0,
            )
        self._process, self.pid = process, process.pid
        return ProcessGuard(process.pid, stop_signal="TERM", grace_seconds=int(KILL_AFTER_S))

    async def _keep(self, guard: ProcessGuard) -> None:
        wait_s = FIRST_WAIT_S
        while True:
            assert self._process is not None
            started = time.monotonic()
            self.exit_code = await self._process.wait()
            self.pid = None
            self._exits += 1
            guard.release()
            if self._stopping:
                return
            if self._on_exit is not None:
                self._on_exit(self)
            if time.monotonic() - started > WELL_AFTER_S:
                wait_s = FIRST_WAIT_S
            await asyncio.sleep(wait_s)
            wait_s = min(LONGEST_WAIT_S, 2.0 * wait_s)
            guard = await self._launch()
            self.restarts += 1


async def is_live(address: str, seconds: float = 1.0) -> bool:
    """Tell whether a gRPC server answers health checks, be it ready or not."""
    return await _health(address, seconds) is not None


async def is_ready(address: str, seconds: float = 1.0) -> bool:
    """Tell whether a gRPC server takes traffic."""
    return bool(await _health(address, seconds) == health_pb2.HealthCheckResponse.SERVING)


async def _health(address: str, seconds: float) -> int | None:
    host, _, port = address.rpartition(":")
    try:
        # gRPC backs off after a refused connection; a bare one tells at once.
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), seconds)
        writer.close()
        async with grpc.aio.insecure_channel(address) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=seconds, wait_for_ready=True
            )
            return int(answer.status)
    except (OSError, TimeoutError, grpc.aio.AioRpcError):
        return None
