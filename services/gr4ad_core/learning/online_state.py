"""What online learning goes on from after a stop, as a folder: `state.safetensors` and a `manifest.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from gr4ad_core.learning.checkpoint import CheckpointError
from gr4ad_core.learning.online import OnlineLearner

STATE = "state.safetensors"
MANIFEST = "manifest.json"


def save_online_state(folder: Path, learner: OnlineLearner, values: Mapping[str, Any]) -> None:
    """Write a learner's state to a new folder; the manifest comes last.

    Args:
        folder: Made by the call.
        learner: Its state is copied.
        values: Whatever belongs to this state, such as the cursor of the stream; plain JSON.

    Raises:
        CheckpointError: A number in the values is not finite.
        OSError: The folder exists or the disk refuses.
    """
    tensors, learned = learner.state()
    content = save(tensors)
    manifest = {"sha256": hashlib.sha256(content).hexdigest(), "learner": learned, "values": dict(values)}
    try:
        text = json.dumps(manifest, allow_nan=False)
    except ValueError as error:
        raise CheckpointError("values", dict(values), "finite numbers", "lower the learning rate") from error
    folder.mkdir(parents=True)
    (folder / STATE).write_bytes(content)
    (folder / MANIFEST).write_text(text)


def load_online_state(folder: Path, learner: OnlineLearner) -> dict[str, Any]:
    """Put a learner where `save_online_state` found one, and return the values saved with it.

    Raises:
        CheckpointError: A file is missing, truncated or altered, or belongs to another model.
    """
    remedy = "create the run anew from a published policy"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        content = (folder / STATE).read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != manifest["sha256"]:
            raise CheckpointError(f"{STATE} sha256", found, manifest["sha256"], remedy)
        learner.restore(load(content), manifest["learner"])
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            str(folder), f"{type(error).__name__}: {error}", "a whole online state", remedy
        ) from error
    values: dict[str, Any] = manifest["values"]
    return values
