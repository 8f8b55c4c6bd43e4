"""The registered codebooks: their rows in the database, and their contents from the artifact store."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gr4ad_core.sid.codebook import Codebook, CodebookFileError, load_codebook
from gr4ad_runtime.artifacts import ArtifactStore
from gr4ad_runtime.errors import DataLossError, FailedPreconditionError, NotFoundError
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from sid_assigner.models import CodebookRow

ARTIFACT_FOLDER = "codebooks"
PREPARING, STANDBY, ACTIVE, RETIRED = "preparing", "standby", "active", "retired"


@dataclass(frozen=True, slots=True)
class RegisteredCodebook:
    """What the database knows of a codebook."""

    codebook_id: str
    level_sizes: tuple[int, ...]
    embedding_dim: int
    sha256: str
    state: str
    create_time: datetime

    @property
    def active(self) -> bool:
        """Whether it is the default, and new ads are told their SIDs under it."""
        return self.state == ACTIVE


@dataclass(frozen=True, slots=True)
class LoadedCodebook:
    """A codebook in memory, with the SHA-256 of the file it was read from."""

    codebook: Codebook
    sha256: str


class CodebookRegistry:
    """Finds codebooks. Contents stay in memory once loaded: a published codebook never changes."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        """Read contents from `codebooks/<codebook_id>` of `artifacts`."""
        self._artifacts = artifacts
        self._loaded: dict[tuple[str, str], Codebook] = {}
        self._loading = asyncio.Lock()

    async def list(self, session: AsyncSession) -> list[RegisteredCodebook]:
        """Return the registered codebooks, the newest first."""
        rows = await session.scalars(
            select(CodebookRow).order_by(CodebookRow.create_time.desc(), CodebookRow.codebook_id)
        )
        return [_registered(row) for row in rows]

    async def find(self, session: AsyncSession, codebook_id: str) -> RegisteredCodebook:
        """Return the codebook of this id, or the active one where it is empty, whose SIDs all ads have.

        Raises:
            NotFoundError: No such codebook is registered.
            FailedPreconditionError: The active one is asked for, and none was activated yet; or it is being prepared.
        """
        if not codebook_id:
            return active_codebook(await self.list(session))
        found = await self.find_any(session, codebook_id)
        if found.state == PREPARING:
            remedy = "wait for `gr4ad codebook register` to end, or run it again"
            raise FailedPreconditionError("codebook_id", f"{codebook_id!r} is being prepared", remedy)
        return found

    async def find_any(self, session: AsyncSession, codebook_id: str) -> RegisteredCodebook:
        """Return the codebook of this id, whatever its state.

        Raises:
            NotFoundError: No such codebook is registered.
        """
        registered = await self.list(session)
        for codebook in registered:
            if codebook.codebook_id == codebook_id:
                return codebook
        names = ", ".join(repr(codebook.codebook_id) for codebook in registered) or "none"
        remedy = f"registered: {names}; leave it empty for the active one or activate it first"
        raise NotFoundError("codebook_id", repr(codebook_id), remedy)

    async def assigning(self, session: AsyncSession) -> Sequence[RegisteredCodebook]:
        """Return the codebooks under which a new ad gets a SID, the newest first."""
        return [codebook for codebook in await self.list(session) if codebook.state != RETIRED]

    async def load(self, registered: RegisteredCodebook) -> Codebook:
        """Return the contents of a registered codebook.

        Raises:
            NotFoundError: The artifact store does not have it any more.
            DataLossError: Its file is damaged or is not the one that was registered.
        """
        codebook = self._loaded.get((registered.codebook_id, registered.sha256))
        if codebook is not None:
            return codebook
        loaded = await self.fetch(registered.codebook_id)
        if loaded.sha256 != registered.sha256:
            raise DataLossError(
                "codebook_id",
                f"{registered.codebook_id!r}: sha256 {loaded.sha256}, registered was {registered.sha256}",
                "restore the file in the artifact store",
            )
        return loaded.codebook

    async def fetch(self, codebook_id: str) -> LoadedCodebook:
        """Read a codebook from the artifact store as it is there now, and verify it.

        Raises:
            NotFoundError: The artifact store has no such codebook.
            DataLossError: Its file is damaged.
        """
        async with self._loading:
            loaded = await asyncio.to_thread(self._fetch, codebook_id)
        self._loaded[(codebook_id, loaded.sha256)] = loaded.codebook
        return loaded

    def _fetch(self, codebook_id: str) -> LoadedCodebook:
        name = f"{ARTIFACT_FOLDER}/{codebook_id}"
        if not self._artifacts.exists(name):
            remedy = f"publish it as {name} in the artifact store, `gr4ad codebook fit` does"
            raise NotFoundError("codebook_id", repr(codebook_id), remedy)
        with tempfile.TemporaryDirectory(prefix="gr4ad-codebook-") as scratch:
            folder = self._artifacts.fetch_folder(name, Path(scratch) / "codebook")
            try:
                codebook = load_codebook(folder)
                sha256 = str(json.loads((folder / "manifest.json").read_text())["sha256"])
            except CodebookFileError as error:
                problem = f"{codebook_id!r}: {Path(error.file).name}: found {error.found}"
                raise DataLossError("codebook_id", problem, f"expected {error.expected}, {error.remedy}") from error
        if codebook.codebook_id != codebook_id:
            problem = f"{name} holds codebook {codebook.codebook_id!r}"
            raise DataLossError("codebook_id", problem, "publish the codebook under its own name")
        return LoadedCodebook(codebook, sha256)


def active_codebook(registered: Sequence[RegisteredCodebook]) -> RegisteredCodebook:
    """Return the active one.

    Raises:
        FailedPreconditionError: None is.
    """
    for codebook in registered:
        if codebook.active:
            return codebook
    remedy = "fit one with `gr4ad codebook fit` and activate it with `gr4ad codebook activate`"
    raise FailedPreconditionError("codebook_id", "no codebook is active", remedy)


def _registered(row: CodebookRow) -> RegisteredCodebook:
    return RegisteredCodebook(
        codebook_id=row.codebook_id,
        level_sizes=tuple(row.level_sizes),
        embedding_dim=row.embedding_dim,
        sha256=row.sha256,
        state=row.state,
        create_time=row.create_time,
    )
