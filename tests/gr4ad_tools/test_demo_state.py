"""An interrupted demo goes on, a finished or different one starts anew, and nobody else's files are touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from gr4ad_tools.demo.state import OutputFolderError, RunState


def test_an_interrupted_run_goes_on_with_what_it_had(tmp_path: Path) -> None:
    RunState.open(tmp_path / "out", {"seed": 1}).done("market", "folder")
    (tmp_path / "out" / "kept").touch()
    again = RunState.open(tmp_path / "out", {"seed": 1})
    assert again.results == {"market": "folder"}
    assert again.attempt == 2
    again.forget("market")
    assert RunState.open(tmp_path / "out", {"seed": 1}).results == {}
    assert (tmp_path / "out" / "kept").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_another_or_a_finished_run_starts_anew(tmp_path: Path, finished: bool) -> None:
    state = RunState.open(tmp_path / "out", {"seed": 1})
    state.done("market", "folder")
    (tmp_path / "out" / "old").touch()
    if finished:
        state.finish()
    again = RunState.open(tmp_path / "out", {"seed": 1 if finished else 2})
    assert (again.results, again.attempt) == ({}, 1)
    assert not (tmp_path / "out" / "old").exists()


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(OutputFolderError, match="name an empty or a new folder"):
        RunState.open(tmp_path, {"seed": 1})
    assert (tmp_path / "precious").exists()
