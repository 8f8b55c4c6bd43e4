"""Activation of a codebook: every known ad gets a SID under it, then new ads do."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

from gr4ad_runtime.db import Database
from gr4ad_runtime.errors import FailedPreconditionError
from gr4ad_runtime.log import get_logger
from sqlalchemy import insert, update
from sqlalchemy.ext.asyncio import AsyncSession

from sid_assigner.ad_rows import insert_sids, read_ads
from sid_assigner.assignment import assign_sids, in_thread, lock_assignment
from sid_assigner.codebook_registry import CodebookRegistry, LoadedCodebook, RegisteredCodebook
from sid_assigner.embeddings import encode
from sid_assigner.models import CodebookRow

log = get_logger(__name__)

PAGE_SIZE = 2000  # ads assigned at a time: large enough to be fast, small enough for memory


async def activate_codebook(database: Database, registry: CodebookRegistry, codebook_id: str) -> RegisteredCodebook:
    """Make a codebook of the artifact store the active one, and the active one a standby. A repeat changes nothing.

    All of it is one transaction, during which no ads are created: those who try wait. The SIDs of the codebooks
    registered before stay what they are, and new ads will get SIDs under all of them.

    Raises:
        NotFoundError: The artifact store has no such codebook.
        DataLossError: Its file is damaged.
        FailedPreconditionError: It is registered with another content, or cannot place an ad that exists.
        ResourceExhaustedError: It has fewer SIDs than there are ads.
    """
    loaded = await registry.fetch(codebook_id)
    async with database.session() as session:
        await lock_assignment(session)
        before = {entry.codebook_id: entry for entry in await registry.list(session)}.get(codebook_id)
        if before is None:
            await _register(session, codebook_id, loaded)
        elif before.sha256 != loaded.sha256:
            problem = f"{codebook_id!r}: sha256 {loaded.sha256} in the artifact store, {before.sha256} registered"
            raise FailedPreconditionError("codebook_id", problem, "publish a changed codebook under a new name")
        if before is None or not before.active:
            # Two statements, since at no time may two be active.
            await session.execute(update(CodebookRow).where(CodebookRow.active).values(active=False))
            await session.execute(update(CodebookRow).where(CodebookRow.codebook_id == codebook_id).values(active=True))
        return await registry.find(session, codebook_id)


async def _register(session: AsyncSession, codebook_id: str, loaded: LoadedCodebook) -> None:
    codebook = loaded.codebook
    await session.execute(
        insert(CodebookRow).values(
            codebook_id=codebook_id,
            level_sizes=[int(size) for size in codebook.level_sizes],
            embedding_dim=codebook.embedding_dim,
            sha256=loaded.sha256,
            active=False,
            create_time=datetime.now(UTC),
        )
    )
    count = 0
    async for ads in read_ads(session, PAGE_SIZE):
        encoded = await in_thread(partial(encode, codebook, ads))
        sids_NT = await assign_sids(session, codebook, ads, encoded)
        await insert_sids(session, codebook_id, ads, sids_NT)
        count += len(ads)
    log.info("codebook_registered", codebook_id=codebook_id, ads=count)
