"""The life of a codebook: prepared beside the others, active, standby, retired.

A codebook is prepared page by page, each in a transaction of its own, while writers go on: from its first transaction
on every new ad gets a SID under it as well, so what is missing only shrinks. A call that was cut off is made again and
goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

from gr4ad_runtime.db import Database
from gr4ad_runtime.errors import FailedPreconditionError, FieldError
from gr4ad_runtime.log import get_logger
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from sid_assigner.ad_rows import insert_sids, read_ads_without_sid
from sid_assigner.ads import Ad
from sid_assigner.assignment import assign_sids, in_thread, lock_assignment
from sid_assigner.catalog_feed import Change, append_changes
from sid_assigner.codebook_registry import (
    ACTIVE,
    PREPARING,
    RETIRED,
    STANDBY,
    CodebookRegistry,
    LoadedCodebook,
    RegisteredCodebook,
)
from sid_assigner.embeddings import encode
from sid_assigner.models import AdRow, AdSidRow, CodebookRow

log = get_logger(__name__)

PAGE_SIZE = 1000  # ads placed in one transaction, for which writers wait


async def register_codebook(database: Database, registry: CodebookRegistry, codebook_id: str) -> RegisteredCodebook:
    """Give every ad a SID under a codebook of the artifact store; it is a standby then. A repeat changes nothing.

    A retired codebook comes back: its SIDs stay as they were, and the ads that came since get theirs.

    Raises:
        NotFoundError: The artifact store has no such codebook.
        DataLossError: Its file is damaged.
        FailedPreconditionError: It is registered with another content, or cannot place an ad that exists.
        ResourceExhaustedError: It has fewer SIDs than there are ads.
    """
    return await _bring_to(STANDBY, database, registry, codebook_id)


async def activate_codebook(database: Database, registry: CodebookRegistry, codebook_id: str) -> RegisteredCodebook:
    """Make a codebook the active one, and the active one a standby, once every ad has a SID under it.

    Raises:
        Gr4adError: As `register_codebook` does; the active one stays what it was.
    """
    return await _bring_to(ACTIVE, database, registry, codebook_id)


async def retire_codebook(database: Database, registry: CodebookRegistry, codebook_id: str) -> RegisteredCodebook:
    """Give no further ad a SID under a codebook. The SIDs stay, for logs that name them. A repeat changes nothing.

    Raises:
        NotFoundError: It is not registered.
        FailedPreconditionError: It is the active one.
    """
    async with database.session() as session:
        await lock_assignment(session)
        found = await registry.find_any(session, codebook_id)
        if found.active:
            remedy = "activate another one first"
            raise FailedPreconditionError("codebook_id", f"{codebook_id!r} is the active codebook", remedy)
        await _set_state(session, codebook_id, RETIRED)
        return await registry.find_any(session, codebook_id)


async def _bring_to(state: str, database: Database, registry: CodebookRegistry, codebook_id: str) -> RegisteredCodebook:
    """Register a codebook where it is not, place every ad, and in the transaction that finds none missing set `state`.

    Where the codebook cannot place an ad, what this call began is taken back.
    """
    loaded = await registry.fetch(codebook_id)
    async with database.session() as session:
        await lock_assignment(session)
        before = {entry.codebook_id: entry for entry in await registry.list(session)}.get(codebook_id)
        if before is None:
            await _insert(session, codebook_id, loaded)
        elif before.sha256 != loaded.sha256:
            problem = f"{codebook_id!r}: sha256 {loaded.sha256} in the artifact store, {before.sha256} registered"
            raise FailedPreconditionError("codebook_id", problem, "publish a changed codebook under a new name")
        elif before.state == RETIRED:
            await _set_state(session, codebook_id, PREPARING)
    try:
        await _place_all(database, loaded, codebook_id, state)
    except FieldError as error:
        # The codebook's own fault; what failed for a moment goes on with the next call.
        if error.field == "codebook_id" and (before is None or before.state == RETIRED):
            await _give_up(database, registry, codebook_id, known_before=before is not None)
        raise
    async with database.session() as session:
        return await registry.find_any(session, codebook_id)


async def _insert(session: AsyncSession, codebook_id: str, loaded: LoadedCodebook) -> None:
    codebook = loaded.codebook
    await session.execute(
        insert(CodebookRow).values(
            codebook_id=codebook_id,
            level_sizes=[int(size) for size in codebook.level_sizes],
            embedding_dim=codebook.embedding_dim,
            sha256=loaded.sha256,
            state=PREPARING,
            create_time=datetime.now(UTC),
        )
    )


async def _set_state(session: AsyncSession, codebook_id: str, state: str) -> None:
    await session.execute(update(CodebookRow).where(CodebookRow.codebook_id == codebook_id).values(state=state))


async def _place_all(database: Database, loaded: LoadedCodebook, codebook_id: str, state: str) -> None:
    """Place the ads that have no SID under the codebook, until none is left; then it enters `state`."""
    placed, last = 0, ""
    while True:
        # Encoding takes long and no lock.
        async with database.session() as session:
            ads = await read_ads_without_sid(session, codebook_id, after=last, limit=PAGE_SIZE)
        if ads:
            placed += await _place(database, loaded, codebook_id, ads)
            last = ads[-1].ad_id
            continue
        async with database.session() as session:
            await lock_assignment(session)
            # Ads that sort before the last page came without a SID if a writer found the codebook full or retired.
            if not await read_ads_without_sid(session, codebook_id, after="", limit=1):
                await _enter(session, codebook_id, state)
                break
        last = ""
    log.info("codebook_registered", codebook_id=codebook_id, placed=placed)


async def _enter(session: AsyncSession, codebook_id: str, state: str) -> None:
    this = CodebookRow.codebook_id == codebook_id
    if state == ACTIVE:
        # Two statements, since at no time may two be active.
        others = update(CodebookRow).where(CodebookRow.state == ACTIVE, ~this)
        await session.execute(others.values(state=STANDBY))
        await _set_state(session, codebook_id, ACTIVE)
    else:
        preparing = update(CodebookRow).where(CodebookRow.state == PREPARING, this)
        await session.execute(preparing.values(state=STANDBY))


async def _place(database: Database, loaded: LoadedCodebook, codebook_id: str, ads: Sequence[Ad]) -> int:
    encoded = await in_thread(partial(encode, loaded.codebook, ads))
    async with database.session() as session:
        await lock_assignment(session)
        # Another call may be at the same ads.
        known = set(
            await session.scalars(
                select(AdSidRow.ad_id).where(
                    AdSidRow.codebook_id == codebook_id, AdSidRow.ad_id.in_([ad.ad_id for ad in ads])
                )
            )
        )
        rows = [row for row, ad in enumerate(ads) if ad.ad_id not in known]
        missing = [ads[row] for row in rows]
        if missing:
            sids_NT = await assign_sids(session, loaded.codebook, missing, encoded.of(rows))
            await insert_sids(session, codebook_id, missing, sids_NT)
            await _tell_readers(session, codebook_id, [ad.ad_id for ad in missing])
    return len(missing)


async def _tell_readers(session: AsyncSession, codebook_id: str, ad_ids: Sequence[str]) -> None:
    """Append ads to the feed once more: readers of a codebook that left them out are past their changes."""
    row = await session.get_one(CodebookRow, codebook_id)
    if row.state == PREPARING:
        return  # nobody reads its catalogue yet
    # As they are now, and to the end of the transaction: a pause may have come since the page was read.
    now = select(AdRow).where(AdRow.ad_id.in_(ad_ids)).order_by(AdRow.ad_id).with_for_update(key_share=True)
    changes = [
        Change(ad.ad_id, ad.state, ad.bid_micros, ad.advertiser_id, ad.conversion_type)
        for ad in await session.scalars(now)
    ]
    await append_changes(session, changes, traceparent="", change_time=datetime.now(UTC))


async def _give_up(database: Database, registry: CodebookRegistry, codebook_id: str, *, known_before: bool) -> None:
    """Take back that a codebook is being prepared, unless another call has brought it further meanwhile."""
    async with database.session() as session:
        await lock_assignment(session)
        found = {entry.codebook_id: entry for entry in await registry.list(session)}.get(codebook_id)
        if found is None or found.state != PREPARING:
            return
        if known_before:
            await _set_state(session, codebook_id, RETIRED)
        else:
            # Nobody was told these SIDs.
            await session.execute(delete(AdSidRow).where(AdSidRow.codebook_id == codebook_id))
            await session.execute(delete(CodebookRow).where(CodebookRow.codebook_id == codebook_id))
