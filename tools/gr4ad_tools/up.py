"""The suite on one machine: PostgreSQL and the services, each a process of its own, supervised."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import typer
from gr4ad_runtime.errors import Gr4adError, InvalidArgumentError
from rich.console import Console
from rich.table import Table

from gr4ad_tools.embedded_postgres import EmbeddedPostgres
from gr4ad_tools.suite_processes import HOST, PROCESSES, chosen_processes, default_ports, free_ports
from gr4ad_tools.supervisor import ProcessSpec, SupervisedProcess, is_ready

DATABASE = "gr4ad"
START_SECONDS = 120.0
POLL_S = 0.1


class Suite:
    """The running suite; an asynchronous context manager.

    Attributes:
        workdir: Where the database, the artifacts and the logs are.
        addresses: host:port of each process by name.
        processes: The supervised processes by name.
        database_url: The database; set once started.
        artifact_store: Folder or URL of codebooks and policies.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        database_url: str = "",
        artifact_store: str = "",
        otlp_endpoint: str = "",
        ports: Mapping[str, int] | None = None,
        env: Mapping[str, str] | None = None,
        service_env: Mapping[str, Mapping[str, str]] | None = None,
        commands: Mapping[str, list[str]] | None = None,
        canary: bool = False,
        durable: bool = True,
        on_exit: Callable[[SupervisedProcess], None] | None = None,
    ) -> None:
        """Describe a suite; entering the context starts it.

        Args:
            workdir: Folder for all it writes; made when missing.
            database_url: A PostgreSQL to use; empty to start one in `workdir`.
            artifact_store: Empty for `workdir/artifacts`.
            otlp_endpoint: Collector of traces and metrics; empty for none.
            ports: Port by process; None for free ones.
            env: Environment variables for every process.
            service_env: The same by process, with precedence: `{"ad_generator": {"GR4AD_TORCH_THREADS": "2"}}`.
            commands: What to run by process; None for one process of each service, and the canary if it is wanted.
            canary: Whether a second generator, `ad_generator_canary`, follows the channel `canary`.
            durable: Whether the embedded PostgreSQL survives a power failure.
            on_exit: Called whenever a process ended unasked.
        """
        self.workdir = workdir.resolve()
        self.database_url = database_url
        self.artifact_store = artifact_store or str(self.workdir / "artifacts")
        names = commands or {name: process.command() for name, process in chosen_processes(canary).items()}
        chosen = dict(ports) if ports is not None else dict(zip(names, free_ports(len(names)), strict=True))
        for service in [*(service_env or {}), *chosen]:
            if service not in names:
                raise InvalidArgumentError("service", service, f"choose one of {', '.join(names)}")
        self.addresses = {name: f"{HOST}:{chosen[name]}" for name in names}
        self.processes: dict[str, SupervisedProcess] = {}
        self._commands = names
        self._otlp_endpoint = otlp_endpoint
        self._env = dict(env or {})
        self._service_env = {name: dict(values) for name, values in (service_env or {}).items()}
        self._on_exit = on_exit
        self._durable = durable
        self._resources = ExitStack()

    @property
    def restarts(self) -> dict[str, int]:
        """How often each service was started again."""
        return {name: process.restarts for name, process in self.processes.items()}

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a service's process; it is started again if it ends."""
        self.processes[name].kill(number)

    async def wait_ready(self, name: str, seconds: float = START_SECONDS) -> None:
        """Wait until a service takes traffic.

        Raises:
            TimeoutError: It does not in time.
        """
        async with asyncio.timeout(seconds):
            while True:
                if await is_ready(self.addresses[name]):
                    return
                await asyncio.sleep(POLL_S)

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._stop()

    async def _start(self) -> None:
        self.workdir.mkdir(parents=True, exist_ok=True)
        if not self.database_url:
            server = EmbeddedPostgres(self.workdir / "postgres", durable=self._durable)
            await asyncio.to_thread(self._resources.enter_context, server)
            self.database_url = await asyncio.to_thread(server.create_database, DATABASE)
        for name, command in self._commands.items():
            spec = ProcessSpec(
                name=name,
                command=command,
                address=self.addresses[name],
                log=self.workdir / "logs" / f"{name}.log",
                env=self._environment(name),
            )
            self.processes[name] = SupervisedProcess(spec, self._on_exit)
            await self.processes[name].start()
        waits = [asyncio.ensure_future(process.wait_live(START_SECONDS)) for process in self.processes.values()]
        try:
            await asyncio.gather(*waits)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _stop(self) -> None:
        for process in self.processes.values():
            await process.stop()
        await asyncio.to_thread(self._resources.close)

    def _environment(self, name: str) -> dict[str, str]:
        addresses = {f"GR4AD_{service.upper()}_ADDRESS": address for service, address in self.addresses.items()}
        return {
            # Threads that outnumber the cores slow each other down. Torch has GR4AD_TORCH_THREADS.
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            "GR4AD_HOST": HOST,
            "GR4AD_PORT": self.addresses[name].rpartition(":")[2],
            "GR4AD_DATABASE_URL": self.database_url,
            "GR4AD_ARTIFACT_STORE": self.artifact_store,
            # One each: a generator drops from its cache what it has not used lately.
            "GR4AD_POLICY_CACHE": str(self.workdir / "policy-cache" / name),
            "GR4AD_OTLP_ENDPOINT": self._otlp_endpoint,
            **addresses,
            **self._env,
            **(PROCESSES[name].env if name in PROCESSES else {}),
            **self._service_env.get(name, {}),
        }


def up(
    workdir: Annotated[Path, typer.Option(help="Folder for the database, the artifacts and the logs.")] = Path(
        "out/up"
    ),
    database_url: Annotated[str, typer.Option(help="PostgreSQL to use; by default one is started.")] = "",
    artifact_store: Annotated[str, typer.Option(help="Folder or fsspec URL; by default in the work folder.")] = "",
    otlp_endpoint: Annotated[str, typer.Option(help="OTLP/gRPC collector, as http://host:port.")] = "",
    any_ports: Annotated[bool, typer.Option("--free-ports", help="Use free ports, not 50051 to 50055.")] = False,
    canary: Annotated[bool, typer.Option("--canary", help="Run a second generator, on the channel canary.")] = False,
) -> None:
    """Run the four services with a database until Ctrl-C; a service that ends is started again."""
    console = Console()

    def tell(process: SupervisedProcess) -> None:
        console.print(f"[yellow]{process.spec.name} ended with exit code {process.exit_code}; starting it again[/]")

    suite = Suite(
        workdir,
        database_url=database_url,
        artifact_store=artifact_store,
        otlp_endpoint=otlp_endpoint,
        ports=None if any_ports else default_ports(canary),
        canary=canary,
        on_exit=tell,
    )
    try:
        asyncio.run(_run_until_signal(suite, console))
    except Gr4adError as error:
        console.print(f"[red]{error.message}[/]", soft_wrap=True)
        raise typer.Exit(1) from None


async def _run_until_signal(suite: Suite, console: Console) -> None:
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def ask() -> None:
        asked.set()
        # The second Ctrl-C ends this process at once; the guards then see to the others.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask)
    starting = asyncio.ensure_future(suite.__aenter__())
    waiting = asyncio.ensure_future(asked.wait())
    with console.status("Starting PostgreSQL and the services"):
        await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return
    await starting
    try:
        console.print(address_table(suite))
        console.print("Ctrl-C stops them.")
        await waiting
    finally:
        with console.status("Stopping"):
            await suite.__aexit__(None, None, None)
    console.print("Stopped.")


def address_table(suite: Suite) -> Table:
    """Return a table of the addresses and logs of a running suite."""
    table = Table("service", "address", "process", "log")
    for name, process in sorted(suite.processes.items(), key=lambda item: suite.addresses[item[0]]):
        table.add_row(name, suite.addresses[name], str(process.pid), str(process.spec.log))
    table.add_row("postgres", suite.database_url, "", str(suite.workdir / "postgres" / "server.log"))
    table.add_row("artifacts", suite.artifact_store, "", "")
    return table
