"""How far a run is: a bar for each phase on a terminal, a line for each finished phase elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

NAME_WIDTH = 36


class Steps:
    """The phases of a run, shown one below the other; a context manager."""

    def __init__(self, console: Console, seconds: dict[str, float]) -> None:
        """Show phases on a console, and put how long each took into `seconds`."""
        self._console = console
        self._seconds = seconds
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn(f"{{task.description:<{NAME_WIDTH}}}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Steps:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @contextlib.contextmanager
    def phase(self, name: str, total: float = 1) -> Iterator[Phase]:
        """Show a phase while the block runs."""
        start = time.monotonic()
        phase = Phase(self._progress, self._progress.add_task(name, total=total, note=""))
        yield phase
        self._seconds[name] = time.monotonic() - start
        phase.finish()
        if not self._console.is_terminal:
            self._console.print(f"{name:<{NAME_WIDTH}} {self._seconds[name]:7.1f} s  {phase.note}", soft_wrap=True)


class Phase:
    """One phase; all amounts are in the unit of its total."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        """Show the progress of a task."""
        self._progress, self._task = progress, task
        self.note = ""

    def update(self, completed: float, total: float | None = None, note: str | None = None) -> None:
        """Say how far it is, and in a few words what it is at."""
        self.note = self.note if note is None else note
        self._progress.update(self._task, completed=completed, total=total, note=self.note)

    def advance(self) -> None:
        """Say that one more of the total is done."""
        self._progress.advance(self._task)

    def finish(self, note: str | None = None) -> None:
        """Show it as done."""
        total = next(task.total for task in self._progress.tasks if task.id == self._task)
        self.update(total or 1, note=note)
