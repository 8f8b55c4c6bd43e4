"""A tiny run of a benchmark of running services, what it found, and the same run interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest
from gr4ad_tools.bench import app
from gr4ad_tools.bench.serve import stage
from typer.testing import CliRunner

SHAPE: Final = {
    "--preset": "tiny", "--ads": "300", "--widths": "4-8-32", "--candidates": "10", "--budget-ms": "1000",
    "--capacity-seconds": "0.5",
}  # fmt: skip


def run_tiny(command: str, options: dict[str, str], folder: Path) -> dict[str, Any]:
    """Run or go on with a benchmark in a folder, and return the figures."""
    words = [word for option in (SHAPE | options | {"--out": str(folder)}).items() for word in option]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "SCENARIO", "tiny")
        result = CliRunner().invoke(app, [command, *words, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())["figures"]
    return found


def interrupted(folder: Path, *parts: str) -> dict[str, Any]:
    """Make a finished run one that was interrupted before these parts, and return what it keeps."""
    path = folder / "state.json"
    state = json.loads(path.read_text())
    assert state["finished"]
    state["finished"] = False
    for part in parts:
        del state["results"][part]
    path.write_text(json.dumps(state))
    kept: dict[str, Any] = state["results"]
    return kept
