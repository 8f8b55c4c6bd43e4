"""The text of a data folder's files: plain or gzip, whole or cut short."""

from __future__ import annotations

import zlib
from pathlib import Path

from gr4ad_core.learning.folder_problem import DataFolderError, Problem, shown

CHUNK = 1 << 20
GZIP = 16 + zlib.MAX_WBITS  # zlib's code for "expect a gzip header and check the trailer"


def locate(folder: Path, name: str) -> Path:
    """Return the path of `name` or `name`.gz in a folder.

    Raises:
        DataFolderError: The folder does not exist, or holds neither or both.
    """
    if not folder.is_dir():
        raise DataFolderError(name, 0, "folder", shown(str(folder)), "give the path of an existing data folder")
    found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
    if not found:
        raise DataFolderError(name, 0, "file", "missing", f"put {name} or {name}.gz into the folder")
    if len(found) > 1:
        raise DataFolderError(name, 0, "file", f"there twice, as {name} and {name}.gz", "remove one of them")
    return found[0]


def read_text(path: Path) -> tuple[str, list[Problem]]:
    """Read a file, unpacked if its name ends in .gz.

    Returns:
        The text up to the first damage, whole lines only if there is any, and the damage.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataFolderError(
            path.name, 0, "file", f"unreadable ({error.strerror})", "make it readable for this user"
        ) from error
    damage = ""
    if path.suffix == ".gz":
        data, damage = _unpack(data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # A cut inside a multi-byte character is the truncation already reported.
        cut_there = bool(damage) and error.end >= len(data)
        damage = damage if cut_there else "not UTF-8"
        text = data[: error.start].decode("utf-8-sig")
    if not damage:
        return text, []
    text = text[: text.rfind("\n") + 1]
    line = text.count("\n") + 1
    remedy = "save it as UTF-8" if damage == "not UTF-8" else "copy or download the file again"
    return text, [Problem(path.name, line, "file", damage, remedy)]


def _unpack(data: bytes) -> tuple[bytes, str]:
    """Return what can be unpacked of gzip data of one or more members, and what stopped it ("" if nothing did)."""
    parts: list[bytes] = []
    rest = data
    while True:
        member = zlib.decompressobj(GZIP)
        start = 0
        try:
            while not member.eof and start < len(rest):
                parts.append(member.decompress(rest[start : start + CHUNK]))
                start += CHUNK
        except zlib.error as error:
            return b"".join(parts), f"damaged gzip ({error})"
        if not member.eof:
            return b"".join(parts), "truncated gzip"
        rest = (member.unused_data + rest[start:]).lstrip(b"\0")  # some writers pad with zeros
        if not rest:
            return b"".join(parts), ""
