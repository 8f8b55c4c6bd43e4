"""Store of codebooks and policies: folders of files, published once and never changed. Any fsspec URL.

A folder exists for readers once its `manifest.json` does, which is written last. On a local file system the whole
folder appears at once, by a rename.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import fsspec
from fsspec.implementations.local import LocalFileSystem

from gr4ad_runtime.errors import (
    AlreadyExistsError,
    DataLossError,
    Gr4adError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)

MANIFEST = "manifest.json"
CHUNK_BYTES = 4 * 1024 * 1024


class ArtifactStore:
    """Folders under a base URL. Its methods block: call them in a thread from asynchronous code.

    Attributes:
        url: The base, such as `./out/artifacts` or `s3://bucket/prefix`.
    """

    def __init__(self, url: str) -> None:
        """Open a store; nothing is read or written yet.

        Raises:
            InvalidArgumentError: No such kind of file system is installed.
        """
        self.url = url
        try:
            self._fs, self._base = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise InvalidArgumentError(
                "artifact_store", url, f"give a folder or a URL of an installed fsspec file system ({error})"
            ) from error
        self._local = isinstance(self._fs, LocalFileSystem)

    def uri(self, name: str) -> str:
        """Return the URL of a folder."""
        return self._fs.unstrip_protocol(self._path(name)) if not self._local else self._path(name)

    def exists(self, name: str) -> bool:
        """Tell whether a folder is published."""
        with self._storage_errors(name):
            return bool(self._fs.exists(f"{self._path(name)}/{MANIFEST}"))

    def list_names(self, prefix: str = "") -> list[str]:
        """Return the names of the published folders directly under `prefix`, sorted."""
        base = self._path(prefix) if prefix else self._base
        with self._storage_errors(prefix):
            if not self._fs.isdir(base):
                return []
            folders = [str(entry["name"]) for entry in self._fs.ls(base, detail=True) if entry["type"] == "directory"]
        names = [PurePosixPath(folder).name for folder in folders]
        shown = [f"{prefix}/{name}" if prefix else name for name in names if not name.startswith(".")]
        return sorted(name for name in shown if self.exists(name))

    def publish_folder(self, local: Path, name: str) -> str:
        """Publish a local folder under a name, and return its URL. Publishing the same content again changes nothing.

        Args:
            local: Folder with a `manifest.json`; its files, also those in folders below, are published.
            name: Name in the store; may hold slashes.

        Raises:
            InvalidArgumentError: The folder has no manifest, or the name is none.
            AlreadyExistsError: The name is taken by other content.
            ResourceExhaustedError: No disk space.
            UnavailableError: The store cannot be reached or written.
        """
        if not (local / MANIFEST).is_file():
            raise InvalidArgumentError("folder", local, f"has no {MANIFEST}; it is written last")
        target = self._path(name)
        if self.exists(name):
            self._check_same(local, name)
            return self.uri(name)
        with self._storage_errors(name):
            if self._local:
                self._publish_local(local, target)
            else:
                self._publish_remote(local, target)
        # Another publisher may have been faster.
        self._check_same(local, name)
        return self.uri(name)

    def fetch_folder(self, name: str, local: Path) -> Path:
        """Copy a published folder to a local one, and return that; it appears whole or not at all.

        Raises:
            NotFoundError: No such folder.
            DataLossError: A file disappeared or was cut short.
            AlreadyExistsError: The local folder exists.
            ResourceExhaustedError: No disk space.
            UnavailableError: The store cannot be read.
        """
        if not self.exists(name):
            raise NotFoundError("artifact", name, f"not in the store {self.url}; publish it first")
        if local.exists():
            raise AlreadyExistsError("folder", local, "exists; fetch into a new one")
        partial = local.with_name(f".{local.name}.{uuid.uuid4().hex}")
        source = self._path(name)
        with self._storage_errors(name):
            try:
                for path, size in self._files(source).items():
                    copy = partial / path
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    self._fs.get_file(f"{source}/{path}", str(copy))
                    if copy.stat().st_size != size:
                        raise DataLossError(
                            f"{name}/{path}", f"{copy.stat().st_size} bytes", f"should have {size}; publish it again"
                        )
                os.replace(partial, local)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return local

    def delete_folder(self, name: str) -> None:
        """Remove a published folder; nothing happens where there is none. Its manifest goes first.

        Raises:
            UnavailableError: The store cannot be written.
        """
        target = self._path(name)
        with self._storage_errors(name):
            if self._fs.exists(f"{target}/{MANIFEST}"):
                self._fs.rm_file(f"{target}/{MANIFEST}")
            if self._fs.exists(target):
                self._fs.rm(target, recursive=True)

    def _path(self, name: str) -> str:
        parts = name.split("/")
        if not name or any(part in ("", ".", "..") or part.startswith(".") for part in parts) or "\\" in name:
            raise InvalidArgumentError("artifact", name, "give a name of letters, digits, dots, dashes and slashes")
        return f"{self._base}/{name}"

    def _files(self, folder: str) -> dict[str, int]:
        found = self._fs.find(folder, detail=True)
        return {path[len(folder) + 1 :]: int(info["size"]) for path, info in found.items()}

    def _publish_local(self, local: Path, target: str) -> None:
        folder = Path(target)
        partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            for source in _files_below(local):
                copy = partial / source.relative_to(local)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, copy)
                with copy.open("rb") as file:
                    os.fsync(file.fileno())
            # Fails if another publisher was faster: a folder that is not empty is not replaced.
            with contextlib.suppress(FileExistsError):
                try:
                    os.rename(partial, folder)
                except OSError as error:
                    if error.errno == errno.ENOTEMPTY:
                        raise FileExistsError from error
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _publish_remote(self, local: Path, target: str) -> None:
        # What readers look for comes last.
        for path in sorted(_files_below(local), key=lambda path: path == local / MANIFEST):
            remote = f"{target}/{path.relative_to(local).as_posix()}"
            self._fs.makedirs(PurePosixPath(remote).parent.as_posix(), exist_ok=True)
            self._fs.put_file(str(path), remote)

    def _check_same(self, local: Path, name: str) -> None:
        target = self._path(name)
        with self._storage_errors(name):
            published = self._files(target)
            mine = {path.relative_to(local).as_posix(): path for path in _files_below(local)}
            same = published.keys() == mine.keys() and all(
                size == mine[path].stat().st_size for path, size in published.items()
            )
            if same:
                same = all(self._digest(f"{target}/{path}") == _digest(file) for path, file in mine.items())
        if not same:
            raise AlreadyExistsError(
                "artifact", name, f"published with other content in {self.url}; choose another name"
            )

    def _digest(self, path: str) -> str:
        digest = hashlib.sha256()
        with self._fs.open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    @contextlib.contextmanager
    def _storage_errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except Gr4adError:
            raise
        except FileNotFoundError as error:
            raise DataLossError(
                "artifact", name, f"a file is missing in {self.url} ({error}); publish it again"
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceExhaustedError(
                    "artifact_store", self.url, f"no disk space for {name}: free some; nothing was published"
                ) from error
            raise UnavailableError(
                "artifact_store", self.url, f"cannot read or write {name}: {error.strerror or error}"
            ) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
