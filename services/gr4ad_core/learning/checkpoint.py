"""A trained policy as a folder: `weights.safetensors` and a `manifest.json` that says what they are.

The folder appears whole or not at all, and a load trusts nothing that the manifest does not prove.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch.nn import init
from torch.overrides import TorchFunctionMode

from gr4ad_core.model.lazy_ar import LazyAr, LazyArConfig

FORMAT_VERSION = 1
WEIGHTS = "weights.safetensors"
MANIFEST = "manifest.json"


class CheckpointError(Exception):
    """A checkpoint cannot be written, or is not what it should be."""

    def __init__(self, field: str, value: object, expected: object, remedy: str) -> None:
        """Name what is wrong, what it is, what it should be, and what to do."""
        super().__init__(f"{field}: {value}: expected {expected}: {remedy}")
        self.field = field
        self.value = value
        self.expected = expected
        self.remedy = remedy


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    format_version: int
    """Of the folder's layout."""
    policy_id: str
    """Name of the policy."""
    codebook_id: str
    """Codebook whose SIDs the policy writes."""
    sha256: str
    """Of the weights file, in hexadecimal."""
    model_config: dict[str, Any]
    """Fields of `LazyArConfig`."""
    training_config: dict[str, Any]
    """How it was trained: recipe, seed, data."""
    metrics: dict[str, float]
    """Held-out figures and counts."""

    def to_json(self) -> str:
        """Return the text of `manifest.json`."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, allow_nan=False) + "\n"


def save_checkpoint(
    folder: Path,
    model: LazyAr,
    policy_id: str,
    codebook_id: str,
    metrics: Mapping[str, float],
    extra: Mapping[str, Any],
) -> Manifest:
    """Write a policy to a folder that does not exist yet.

    All is written and flushed to a folder beside it, which is then renamed: a reader sees the whole or nothing.

    Args:
        folder: Where to; its parents are made.
        model: Its weights are copied, the model stays as it is.
        policy_id: Name of the policy.
        codebook_id: Codebook whose SIDs it writes.
        metrics: What to say of its quality.
        extra: How it was trained; goes to `training_config`.

    Raises:
        CheckpointError: The folder exists, a weight or metric is not finite, or the disk refuses.
    """
    folder = Path(folder)
    if folder.exists():
        raise CheckpointError(
            "folder", folder, "a new path", "choose another folder, checkpoints are never overwritten"
        )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    _check_finite(tensors, "train again with a lower learning rate")
    weights = save(tensors)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        policy_id=policy_id,
        codebook_id=codebook_id,
        sha256=hashlib.sha256(weights).hexdigest(),
        model_config=model.config.to_dict(),
        training_config=dict(extra),
        metrics=dict(metrics),
    )
    try:
        manifest_text = manifest.to_json()
    except ValueError as error:
        raise CheckpointError("metrics", dict(metrics), "finite numbers", "leave out what was not measured") from error
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _write(scratch / WEIGHTS, weights)
            _write(scratch / MANIFEST, manifest_text.encode())
            scratch.chmod(0o755)  # mkdtemp's own is closed to the account that serves
            scratch.rename(folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    except OSError as error:
        raise CheckpointError(
            "folder", folder, "a writable place with room", f"free space or choose another folder ({error.strerror})"
        ) from error
    return manifest


def load_checkpoint(
    folder: Path, expected_codebook_id: str | None = None, expected_sha256: str | None = None
) -> tuple[LazyAr, Manifest]:
    """Read a policy, on the CPU and in evaluation mode.

    Args:
        folder: What `save_checkpoint` wrote.
        expected_codebook_id: Refuse a policy of another codebook.
        expected_sha256: Refuse other weights than these.

    Raises:
        CheckpointError: Anything is missing, truncated, altered, or not what was expected.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if expected_codebook_id is not None and manifest.codebook_id != expected_codebook_id:
        raise CheckpointError(
            "codebook_id", manifest.codebook_id, expected_codebook_id, "train a policy on the active codebook"
        )
    if expected_sha256 is not None and manifest.sha256 != expected_sha256:
        raise CheckpointError("sha256", manifest.sha256, expected_sha256, "fetch the policy that was asked for")
    weights = _read(folder / WEIGHTS)
    found = hashlib.sha256(weights).hexdigest()
    if found != manifest.sha256:
        raise CheckpointError(
            f"sha256 of {WEIGHTS}", found, manifest.sha256, "the file is truncated or altered, fetch it again"
        )
    try:
        tensors = load(weights)
    except SafetensorError as error:
        raise CheckpointError(WEIGHTS, error, "a safetensors file", "write the checkpoint anew") from error
    try:
        config = LazyArConfig.from_dict(manifest.model_config)
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            "model_config", error, "the fields of this version's model", "load it with the version that wrote it"
        ) from error
    with _NoDraws():
        model = LazyAr(config)
    _check_tensors(tensors, model.state_dict())
    owned = {name: tensor.clone() for name, tensor in tensors.items()}  # what was loaded are views of the file's bytes
    model.load_state_dict(owned, assign=True)
    return model.eval(), manifest


class _NoDraws(TorchFunctionMode):
    """Leaves new weights as they are: none are drawn only to be replaced.

    The meta device would do the same, and import symbolic mathematics for it.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Skip the functions that fill a tensor with random numbers."""
        kwargs = kwargs or {}
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def read_manifest(folder: Path) -> Manifest:
    """Read what a checkpoint says of itself, without its weights.

    Raises:
        CheckpointError: The manifest is missing, broken or of another format.
    """
    text = _read(folder / MANIFEST)
    try:
        values = json.loads(text)
    except ValueError as error:
        raise CheckpointError(MANIFEST, error, "JSON", "the file is truncated or altered, fetch it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(MANIFEST, type(values).__name__, "a JSON object", "write the checkpoint anew")
    if values.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            "format_version",
            values.get("format_version"),
            FORMAT_VERSION,
            "load it with the version that wrote it, or train again",
        )
    kinds = {"format_version": int, "policy_id": str, "codebook_id": str, "sha256": str}
    for field in fields(Manifest):
        kind = kinds.get(field.name, dict)
        if not isinstance(values.get(field.name), kind):
            raise CheckpointError(
                f"{MANIFEST} {field.name}",
                values.get(field.name),
                f"of type {kind.__name__}",
                "write the checkpoint anew",
            )
    return Manifest(**{field.name: values[field.name] for field in fields(Manifest)})


def _check_tensors(tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    remedy = "the weights belong to another model_config, write the checkpoint anew"
    if set(tensors) != set(wanted):
        odd = sorted(set(tensors) ^ set(wanted))[0]
        there, here = ("present", "absent") if odd in tensors else ("absent", "present")
        raise CheckpointError(f"tensor {odd}", there, here, remedy)
    for name, tensor in tensors.items():
        like = wanted[name]
        if (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
            raise CheckpointError(
                f"tensor {name}", f"{tensor.dtype} {tuple(tensor.shape)}", f"{like.dtype} {tuple(like.shape)}", remedy
            )
    _check_finite(tensors, "the policy diverged in training, roll back to another one")


def _check_finite(tensors: Mapping[str, torch.Tensor], remedy: str) -> None:
    for name, tensor in tensors.items():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise CheckpointError(f"tensor {name}", f"{bad} NaN or infinite values", "finite weights", remedy)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            path.name, error.strerror, f"a readable file in {path.parent}", "fetch or write the checkpoint again"
        ) from error


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
