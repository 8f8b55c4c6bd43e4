"""The server's side of a policy's process: start it, try it, let it serve, end it. All methods block."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from gr4ad_core.model.history import UserHistory
from gr4ad_core.sid.trie import LiveTrie

from ad_generator.policy_messages import Decode, Decoded, Failed, Loaded, Refused, Serve, WorkerSettings

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
        self._held: LiveTrie | None = None
        try:
            loaded = self._receive(Loaded)
        except BaseException:
            self.close()
            raise
        self.policy_id = loaded.policy_id
        """Name in the checkpoint."""
        self.level_sizes = loaded.level_sizes
        """Codebook size of every level."""

    @property
    def pid(self) -> int:
        """Of the process."""
        return int(self._process.pid)

    @property
    def sentinel(self) -> int:
        """A file descriptor that becomes readable when the process ends."""
        return int(self._process.sentinel)

    def decode(self, trie: LiveTrie, widths: tuple[int, ...], histories: Sequence[UserHistory], wanted: int) -> Decoded:
        """Find the most likely live SIDs of each request; see `policy_worker.decode`.

        Args:
            trie: Live SIDs; sent only where they are others than last time.
            widths: Beams to keep at each level.
            histories: The requests.
            wanted: Candidates of each, at most.

        Raises:
            PolicyProcessError: The call failed.
            PolicyProcessGoneError: The process has ended.
        """
        try:
            self._connection.send(Decode(None if trie is self._held else trie, widths, histories, wanted))
        except OSError as error:
            raise self._gone() from error
        self._held = None  # until the answer shows that the trie has come
        found = self._receive(Decoded)
        self._held = trie
        return found

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
