"""Where a demo run stands, on disk, so that an interrupted one goes on where it was."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gr4ad_tools.figures import write_json

STATE_FILE = "state.json"


class OutputFolderError(Exception):
    """The output folder holds something that is not a demo run's."""


@dataclass
class RunState:
    """The finished phases of one run and what they leave to later ones.

    Attributes:
        folder: Folder of the run.
        parameters: What the run was asked for; a run with others starts from nothing.
        results: What each finished phase returned, by phase.
        attempt: How often the run was started, this time included.
    """

    folder: Path
    parameters: dict[str, Any]
    results: dict[str, Any]
    attempt: int = 1

    @classmethod
    def open(cls, folder: Path, parameters: dict[str, Any]) -> RunState:
        """Go on with an unfinished run of the same parameters, or clear the folder and start anew.

        Raises:
            OutputFolderError: The folder has files and no run state, so nothing in it is removed.
        """
        path = folder / STATE_FILE
        if path.exists():
            saved = json.loads(path.read_text())
            if saved["parameters"] == parameters and not saved["finished"]:
                state = cls(folder, parameters, saved["results"], saved["attempt"] + 1)
                state._write(finished=False)
                return state
            shutil.rmtree(folder)
        elif folder.exists() and any(folder.iterdir()):
            raise OutputFolderError(
                f"--out: {folder}: holds files that are not of an earlier demo; name an empty or a new folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        state = cls(folder, parameters, {})
        state._write(finished=False)
        return state

    def done(self, phase: str, result: Any) -> None:
        """Note that a phase is finished; its result must be plain JSON."""
        self.results[phase] = result
        self._write(finished=False)

    def forget(self, phase: str) -> None:
        """Note that a phase must be done again."""
        self.results.pop(phase, None)
        self._write(finished=False)

    def finish(self) -> None:
        """Note that the run is finished: the next one starts anew."""
        self._write(finished=True)

    def _write(self, *, finished: bool) -> None:
        write_json(
            self.folder / STATE_FILE,
            {
                "parameters": self.parameters,
                "results": self.results,
                "attempt": self.attempt,
                "finished": finished,
            },
        )
