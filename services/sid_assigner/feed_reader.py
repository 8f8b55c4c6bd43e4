"""The read side of the catalogue feed: a consistent snapshot, then every change after it, in order and once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gr4ad_runtime.db import Database
from gr4ad_runtime.errors import FailedPreconditionError, OutOfRangeError
from sqlalchemy import Select, select

from sid_assigner.ads import CatalogEntry
from sid_assigner.catalog_feed import feed_end
from sid_assigner.codebook_registry import RETIRED, CodebookRegistry, RegisteredCodebook
from sid_assigner.feed_watch import FeedWatch
from sid_assigner.models import AdRow, AdSidRow, CatalogChangeRow


@dataclass(frozen=True, slots=True)
class CatalogPart:
    """A message of the stream; the fields are those of `ReadCatalogResponse`."""

    codebook_id: str
    entries: Sequence[CatalogEntry]
    cursor: int
    snapshot_complete: bool


class FeedReader:
    """Reads the catalogue for any number of readers at a time."""

    def __init__(
        self,
        database: Database,
        registry: CodebookRegistry,
        watch: FeedWatch,
        *,
        chunk: int,
        heartbeat_seconds: float,
        concurrent_snapshots: int,
    ) -> None:
        """Read `database`, at most `chunk` entries at a time; see `SidAssignerSettings` for the other limits."""
        self._database = database
        self._registry = registry
        self._watch = watch
        self._chunk = chunk
        self._heartbeat_seconds = heartbeat_seconds
        # A snapshot holds a connection for as long as its reader takes, at the longest until the server ends a
        # transaction that idles. The other connections are left for everybody else.
        self._snapshots = asyncio.Semaphore(concurrent_snapshots)

    async def read(self, codebook_id: str, cursor: int, *, until_current: bool) -> AsyncGenerator[CatalogPart, None]:
        """Read the catalogue under a codebook (empty for the active one).

        Args:
            codebook_id: Codebook of the SIDs.
            cursor: Last cursor received, 0 for a snapshot first.
            until_current: End after the changes that were committed before the call, instead of waiting for more.

        Yields:
            Parts; one without entries at least every heartbeat.

        Raises:
            NotFoundError: The codebook is not registered.
            FailedPreconditionError: None is active, or it is being prepared or retired.
            OutOfRangeError: The cursor lies behind the end of the feed.
        """
        async with self._database.session() as session:
            codebook = await self._registry.find(session, codebook_id)
            _check_life(codebook)
            end = await feed_end(session)
        if cursor > end:
            remedy = f"the feed ends at {end}, the store is not the one the cursor came from: read again from cursor 0"
            raise OutOfRangeError("cursor", str(cursor), remedy)
        if cursor == 0:
            async with aclosing(self._snapshot(codebook)) as parts:
                async for part in parts:
                    yield part
                    cursor = part.cursor
        else:
            # Tells a reader that has missed nothing that it is connected.
            yield CatalogPart(codebook.codebook_id, (), cursor, True)
        while not (until_current and cursor >= end):
            part = await self._changes(codebook, cursor)
            cursor = part.cursor
            if part.entries or not await self._watch.wait_beyond(cursor, self._heartbeat_seconds):
                yield part

    async def _snapshot(self, codebook: RegisteredCodebook) -> AsyncGenerator[CatalogPart, None]:
        while not await self._enter_snapshot():
            yield CatalogPart(codebook.codebook_id, (), 0, False)
        try:
            # One moment for both: the end of the feed, and the state that the changes up to it led to.
            async with self._database.session(isolation="REPEATABLE READ") as session:
                end = await feed_end(session)
                rows = await session.stream(_entries(codebook.codebook_id).execution_options(yield_per=self._chunk))
                try:
                    async for chunk in rows.partitions():
                        yield CatalogPart(codebook.codebook_id, [_entry(row) for row in chunk], 0, False)
                finally:
                    await rows.close()
        finally:
            self._snapshots.release()
        yield CatalogPart(codebook.codebook_id, (), end, True)

    async def _enter_snapshot(self) -> bool:
        try:
            async with asyncio.timeout(self._heartbeat_seconds):
                return await self._snapshots.acquire()
        except TimeoutError:
            return False

    async def _changes(self, codebook: RegisteredCodebook, cursor: int) -> CatalogPart:
        async with self._database.session() as session:
            _check_life(await self._registry.find(session, codebook.codebook_id))
            rows = (await session.execute(changes_after(codebook.codebook_id, cursor, self._chunk))).all()
        entries = [_entry(row, row.traceparent, row.change_time) for row in rows]
        return CatalogPart(codebook.codebook_id, entries, rows[-1].seq if rows else cursor, True)


def _check_life(codebook: RegisteredCodebook) -> None:
    if codebook.state == RETIRED:
        remedy = "follow the active codebook, with a policy of it, or register this one again"
        raise FailedPreconditionError("codebook_id", f"{codebook.codebook_id!r} is retired", remedy)


def changes_after(codebook_id: str, cursor: int, limit: int) -> Select[*tuple[Any, ...]]:
    """Select the next changes, with the SIDs of a codebook."""
    return (
        select(
            CatalogChangeRow.seq,
            CatalogChangeRow.ad_id,
            AdSidRow.semantic_codes,
            AdSidRow.business_code,
            CatalogChangeRow.state,
            CatalogChangeRow.bid_micros,
            CatalogChangeRow.advertiser_id,
            CatalogChangeRow.conversion_type,
            CatalogChangeRow.traceparent,
            CatalogChangeRow.change_time,
        )
        .join(AdSidRow, AdSidRow.ad_id == CatalogChangeRow.ad_id)
        .where(AdSidRow.codebook_id == codebook_id)
        .where(CatalogChangeRow.seq > cursor)
        .order_by(CatalogChangeRow.seq)
        .limit(limit)
    )


def _entries(codebook_id: str) -> Select[*tuple[Any, ...]]:
    return (
        select(
            AdRow.ad_id,
            AdSidRow.semantic_codes,
            AdSidRow.business_code,
            AdRow.state,
            AdRow.bid_micros,
            AdRow.advertiser_id,
            AdRow.conversion_type,
        )
        .join(AdSidRow, AdSidRow.ad_id == AdRow.ad_id)
        .where(AdSidRow.codebook_id == codebook_id)
    )


def _entry(row: Any, traceparent: str = "", change_time: datetime | None = None) -> CatalogEntry:
    return CatalogEntry(
        ad_id=row.ad_id,
        codes=(*row.semantic_codes, row.business_code),
        state=row.state,
        bid_micros=row.bid_micros,
        advertiser_id=row.advertiser_id,
        conversion_type=row.conversion_type,
        traceparent=traceparent,
        change_time=change_time,
    )
