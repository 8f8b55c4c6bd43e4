"""Processes that never outlive their owner.

A guard is a small shell that waits at a pipe. The operating system closes the pipe with its owner, however that ends,
and the guard then ends what it guards. Unlike a parent-death signal this works on every Unix, and from any thread.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

# $1 the process, $2 the signal that asks it to end, $3 seconds until it is killed, $4 a file that goes with it and
# begins with its id, or nothing; $5… folders to remove at last. An id alone may linger in the process table where
# nobody reaps orphans, hence the file, and the limit.
_SCRIPT = """
read -r _
if [ -z "$4" ] || [ "$(head -n 1 "$4" 2>/dev/null)" = "$1" ]; then
  kill -s "$2" "$1" 2>/dev/null
  turns=0
  while kill -0 "$1" 2>/dev/null && [ -z "$4" -o -e "$4" ] && [ "$turns" -lt "$3"0 ]; do
    sleep 0.1
    turns=$((turns + 1))
  done
  [ "$turns" -lt "$3"0 ] || kill -s KILL "$1" 2>/dev/null
fi
shift 4
[ $# -eq 0 ] || rm -rf -- "$@"
"""


class ProcessGuard:
    """Ends a process, and removes folders, once this process has ended."""

    def __init__(
        self,
        pid: int,
        *,
        stop_signal: str,
        grace_seconds: int,
        pid_file: Path | None = None,
        doomed: Sequence[Path] = (),
    ) -> None:
        """Start to guard.

        Args:
            pid: The process.
            stop_signal: Signal that asks it to end, such as `TERM`.
            grace_seconds: Time it gets to do so.
            pid_file: File that begins with the id for as long as the process lives.
            doomed: Folders to remove afterwards.
        """
        arguments = [str(pid), stop_signal, str(grace_seconds), str(pid_file or ""), *map(str, doomed)]
        # A session of its own, so that Ctrl-C does not end the guard before its owner.
        self._shell = subprocess.Popen(
            ["sh", "-c", _SCRIPT, "guard", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def release(self) -> None:
        """Stop guarding; call it once the process has ended."""
        self._shell.kill()
        self._shell.communicate()


@contextmanager
def guarded_process() -> Iterator[ProcessPoolExecutor]:
    """Yield one new process that runs what is submitted.

    It ends with the block, amid its work if that is left by an error or an interrupt, and with this process.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        pid = process.submit(os.getpid).result()
        guard = ProcessGuard(pid, stop_signal="TERM", grace_seconds=1)
        try:
            yield process
        except BaseException:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            raise
        finally:
            guard.release()
