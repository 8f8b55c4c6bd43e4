"""The folder of a codebook: `codebook.npz` with the arrays and `manifest.json` that says what they must be."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ARRAYS_FILE = "codebook.npz"
MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1
REFIT = "publish the codebook anew, or fit another"


class CodebookFileError(Exception):
    """A file of a codebook is missing, damaged or not what its manifest says."""

    def __init__(self, file: str, expected: str, found: str, remedy: str) -> None:
        """Name the file, what it should hold, what it holds, and what to do."""
        super().__init__(f"{file}: expected {expected}, found {found}: {remedy}")
        self.file, self.expected, self.found, self.remedy = file, expected, found, remedy


def write_folder(folder: Path, manifest: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write a codebook's files; the manifest comes last and gains `sha256` and `format_version`.

    The same arrays give the same bytes: names are sorted, and the archive holds no times.
    """
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name: arrays[name] for name in sorted(arrays)})
    content = buffer.getvalue()
    (folder / ARRAYS_FILE).write_bytes(content)
    full = {**manifest, "sha256": hashlib.sha256(content).hexdigest(), "format_version": FORMAT_VERSION}
    (folder / MANIFEST_FILE).write_text(json.dumps(full, indent=2) + "\n", encoding="utf-8")


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read a codebook's manifest and arrays, verified against each other.

    Raises:
        CodebookFileError: A file is missing, damaged, of another format, or not the one the manifest was made for.
    """
    manifest = _read_manifest(folder / MANIFEST_FILE)
    path = folder / ARRAYS_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise CodebookFileError(str(path), "the arrays of a codebook", "no such file", REFIT) from None
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != manifest["sha256"]:
        found = f"sha256 {sha256} of {len(content)} bytes"
        raise CodebookFileError(str(path), f"sha256 {manifest['sha256']}", found, REFIT)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return manifest, {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise CodebookFileError(str(path), "an archive of numeric arrays", str(error), REFIT) from error


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError:
        remedy = "name the folder of a codebook, as `gr4ad codebook fit` publishes it"
        raise CodebookFileError(str(path), "the manifest of a codebook", "no such file", remedy) from None
    except ValueError as error:
        raise CodebookFileError(str(path), "a JSON object", str(error), REFIT) from error
    if not isinstance(manifest, dict):
        raise CodebookFileError(str(path), "a JSON object", type(manifest).__name__, REFIT)
    if manifest.get("format_version") != FORMAT_VERSION:
        found = f"format_version {manifest.get('format_version')!r}"
        remedy = "read it with the release that wrote it, or fit the codebook anew"
        raise CodebookFileError(str(path), f"format_version {FORMAT_VERSION}", found, remedy)
    manifest.setdefault("business_signals", ["conversion_type"])  # before others could be configured
    for field, (meaning, holds) in FIELDS.items():
        if not holds(manifest.get(field)):
            raise CodebookFileError(str(path), f"{field} as {meaning}", repr(manifest.get(field)), REFIT)
    return manifest


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_names(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and len(value) >= 2 and all(map(_is_size, value))


FIELDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "codebook_id": ("a name", _is_text),
    "level_sizes": ("two or more positive sizes", _are_sizes),
    "embedding_dim": ("a positive number", _is_size),
    "business_signals": ("names of signals", _are_names),
    "sha256": ("a hash in hex", _is_text),
}
