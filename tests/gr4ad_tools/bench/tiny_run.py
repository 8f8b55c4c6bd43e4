"""An interrupted run, made of a finished one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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
