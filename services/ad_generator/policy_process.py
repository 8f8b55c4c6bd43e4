"""The server's side of a policy's process: start it, try it, let it serve, end it. All methods block."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from gr4ad_core.model.history import UserHistory

from ad_generator.ad_table import AdTable
from ad_generator.policy_messages import (
    Decode,
    Decoded,
    Failed,
    LiveAds,
    LiveChanges,
    Loaded,
    Refused,
    Serve,
    WorkerSettings,
)

END_SECONDS: Final = 5.0

# New processes are copies of one that has already imported what they need, so that a policy starts at once.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["ad_generator.policy_process", "ad_generator.policy_worker"])

T = TypeVar("T")


class PolicyRefusedError(Exception):
    """A policy can never be served; its text names what is wrong and the remedy."""


class PolicyProcessError(Exception):
    """A policy's process failed at a call."""


class PolicyProcessGoneError(PolicyProcessError):
    """A policy's process has ended."""


class PolicyProcess:
    """A policy that computes in a process of its own; used by one thread at a time."""

    def __init__(self, folder: Path, settings: WorkerSettings) -> None:
        """Load a checkpoint.

        Args:
            folder: The checkpoint.
            settings: What to expect there, and where to compute.

        Raises:
            PolicyRefusedError: The checkpoint is not what was expected.
            PolicyProcessError: It could not be loaded.
        """
        self._connection, theirs = _processes.Pipe()
        self._process: Any = _processes.Process(
            target=_run, args=(theirs, folder, settings), name=f"policy {folder.name}", daemon=True
        )
        self._process.start()
        theirs.close()
        self._table: AdTable | None = None  # whose live ads the process holds
        self._flips = 0  # up to here
        try:
            loaded = self._receive(Loaded)
        except BaseException:
            self.close()
            raise
        self.policy_id = loaded.policy_id
        """Name in the checkpoint."""
        self.level_sizes = loaded.level_sizes
        """Codebook size of every level."""
        self.in_hardware = loaded.in_hardware
        """Whether its device multiplies numbers of its compute type in hardware."""
        self.lacks_compiler = loaded.lacks_compiler
        """Whether its layers run operation by operation on a GPU, since nothing there compiles them."""

    @property
    def pid(self) -> int:
        """Of the process."""
        return int(self._process.pid)

    @property
    def sentinel(self) -> int:
        """A file descriptor that becomes readable when the process ends."""
        return int(self._process.sentinel)

    def is_behind(self, table: AdTable) -> bool:
        """Whether the process lacks changes of a table's live ads; asked by any thread."""
        return table is not self._table or table.flips != self._flips

    def catch_up(self, table: AdTable) -> None:
        """Send what the process lacks of a table's live ads: what changed, or all where that is less.

        Raises:
            PolicyProcessGoneError: The process has ended.
        """
        flips = table.flips  # before the ads themselves are looked at: what comes meanwhile is sent again
        slots = table.flipped_since(self._flips) if table is self._table else None
        if slots is None:
            view = table.view()
            slots = np.flatnonzero(view.live)
            self._send(LiveAds(slots, view.sids[slots].astype(np.int32)))
        elif len(slots):
            self._send(LiveChanges(slots, table.sids(slots), table.live(slots)))
        self._table, self._flips = table, flips

    def decode(self, table: AdTable, widths: tuple[int, ...], histories: Sequence[UserHistory], wanted: int) -> Decoded:
        """Find the most likely live SIDs of each request; see `policy_worker.decode`.

        Args:
            table: Of the ads; the process hears first what it lacks of the live ones.
            widths: Beams to keep at each level, where so many prefixes are live.
            histories: The requests.
            wanted: Candidates of each, at most.

        Raises:
            PolicyProcessError: The call failed.
            PolicyProcessGoneError: The process has ended.
        """
        self.catch_up(table)
        self._send(Decode(widths, histories, wanted))
        return self._receive(Decoded)

    def serve(self) -> None:
        """End the tryout: compute with full priority from now on."""
        self._connection.send(Serve())

    def close(self) -> None:
        """End the process; a second call does nothing."""
        self._connection.close()  # which ends it
        self._process.join(END_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()

    def _send(self, message: Decode | LiveAds | LiveChanges) -> None:
        try:
            self._connection.send(message)
        except OSError as error:
            raise self._gone() from error

    def _receive(self, kind: type[T]) -> T:
        try:
            message = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._gone() from error
        if isinstance(message, Refused):
            raise PolicyRefusedError(message.reason)
        if isinstance(message, Failed):
            raise PolicyProcessError(message.error)
        assert isinstance(message, kind)
        return message

    def _gone(self) -> PolicyProcessGoneError:
        self._process.join(END_SECONDS)
        return PolicyProcessGoneError(f"process {self._process.pid} ended with exit code {self._process.exitcode}")


def _run(connection: Any, folder: Path, settings: WorkerSettings) -> None:
    from ad_generator.policy_worker import run  # only here: the server's process has no use for torch

    run(connection, folder, settings)
