"""New ads with their SIDs, all of a batch or none, in one transaction that no two writers can get wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import numpy as np
import psycopg
from gr4ad_runtime import semconv
from gr4ad_runtime.db import Database
from gr4ad_runtime.errors import (
    AbortedError,
    AlreadyExistsError,
    Gr4adError,
    ResourceExhaustedError,
)
from gr4ad_runtime.log import get_logger
from gr4ad_runtime.telemetry import meter
from numpy.typing import NDArray
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from sid_assigner.ad_rows import insert_ads, insert_sids
from sid_assigner.ads import Ad, AdSid
from sid_assigner.assignment import assign_sids, in_thread, lock_assignment
from sid_assigner.batch_check import check_ads, check_new, known_ads
from sid_assigner.catalog_feed import Change, append_changes
from sid_assigner.codebook_registry import CodebookRegistry, RegisteredCodebook, active_codebook
from sid_assigner.embeddings import Encoded, check_vectors, encode
from sid_assigner.models import AdSidRow, BatchRow, CatalogChangeRow

log = get_logger(__name__)
_left_out = meter("sid_assigner").create_counter(
    semconv.METRIC_ADS_LEFT_OUT,
    description="Ads that a codebook other than the active one could not place.",
)

# Writers wait for each other, so that a collision takes one that knows another lock, such as another release. The
# constraints hold against it; a fresh look finds what it took.
ATTEMPTS = 4
QUEUE = "queue"  # field of the refusal that a later attempt may not meet
# Unique violation, serialisation failure, deadlock.
COLLISIONS = frozenset({"23505", "40001", "40P01"})


@dataclass(frozen=True, slots=True)
class Batch:
    """Ads to create, all or none.

    Attributes:
        request_id: Identifies the batch for ever.
        fingerprint: Digest of the request, which tells a repeated batch from another one of the same id.
        ads: The ads.
        traceparent: Trace of the call; empty if there is none.
    """

    request_id: str
    fingerprint: bytes
    ads: Sequence[Ad]
    traceparent: str


@dataclass(frozen=True, slots=True)
class CreatedBatch:
    """Ads in the order of the batch, with the number of the last change that they made."""

    ad_sids: list[AdSid]
    cursor: int


def _leave_out(entry: RegisteredCodebook, ads: Sequence[Ad], error: Gr4adError) -> None:
    log.error("ads_left_out", codebook_id=entry.codebook_id, ads=len(ads), reason=error.message)
    _left_out.add(len(ads), {semconv.CODEBOOK_ID: entry.codebook_id})


class _CollisionError(Exception):
    """Another transaction was faster; this one has to be tried anew."""


class BatchCreator:
    """Creates ads in batches."""

    def __init__(
        self, database: Database, registry: CodebookRegistry, *, concurrent_batches: int, waiting_batches: int
    ) -> None:
        """Write to `database`; SIDs come from the codebooks of `registry`.

        Args:
            database: Holds the ads.
            registry: Holds the codebooks.
            concurrent_batches: Batches written at a time.
            waiting_batches: Batches that wait for their turn at most; more are refused.
        """
        self._database = database
        self._registry = registry
        # Batches that wait for each other's locks hold connections; some must be left for everybody else.
        self._writing = asyncio.Semaphore(concurrent_batches)
        self._under_way = 0
        self._most_under_way = concurrent_batches + waiting_batches

    async def create(self, batch: Batch) -> CreatedBatch:
        """Create ads with SIDs under every codebook that is not retired; return those under the active one.

        A batch that was created before changes nothing and returns the first answer.

        Raises:
            InvalidArgumentError: An ad is in the batch twice, or its text or vector cannot be used.
            AlreadyExistsError: An ad exists, or `request_id` stands for another batch.
            FailedPreconditionError: No codebook is active.
            ResourceExhaustedError: A codebook is full, or too many batches wait.
            AbortedError: Other writers were faster every time.
        """
        check_ads(batch.request_id, batch.ads)
        if self._under_way >= self._most_under_way:
            remedy = "send the batch again after a back-off, or add replicas"
            raise ResourceExhaustedError(QUEUE, f"{self._under_way} batches under way", remedy)
        self._under_way += 1
        try:
            return await self._create_in_turn(batch)
        finally:
            self._under_way -= 1

    async def _create_in_turn(self, batch: Batch) -> CreatedBatch:
        # Encoding takes long and no lock: so it is done before the transaction that writes.
        async with self._database.session() as session:
            if await session.get(BatchRow, batch.request_id) is not None:
                repeated = await self._created_before(session, batch)
                if repeated is not None:
                    return repeated
            registered = await self._registry.assigning(session)
        encoded = await self._encode(registered, batch.ads, {})
        for attempt in range(ATTEMPTS):
            try:
                async with self._writing:
                    return await self._try_create(batch, encoded)
            except _CollisionError as collision:
                log.info("batch_collided", request_id=batch.request_id, attempt=attempt, reason=str(collision))
        raise AbortedError("request_id", repr(batch.request_id), "other writers were faster, send the batch again")

    async def _try_create(self, batch: Batch, encoded: dict[str, Encoded | None]) -> CreatedBatch:
        async with self._database.session() as session:
            try:
                await lock_assignment(session)
                return await self._create(session, batch, encoded)
            except (DBAPIError, psycopg.Error) as error:
                driver_error = error.orig if isinstance(error, DBAPIError) else error
                if getattr(driver_error, "sqlstate", None) in COLLISIONS:
                    raise _CollisionError(str(driver_error)) from error
                raise

    async def _create(self, session: AsyncSession, batch: Batch, encoded: dict[str, Encoded | None]) -> CreatedBatch:
        repeated = await self._created_before(session, batch)
        if repeated is not None:
            return repeated
        registered = await self._registry.assigning(session)
        active = active_codebook(registered)
        encoded = await self._encode(registered, batch.ads, encoded)
        sids = await self._assign(session, registered, batch, encoded)
        now = datetime.now(UTC)
        await insert_ads(session, batch.ads, now)
        for codebook_id, sids_NT in sids.items():
            await insert_sids(session, codebook_id, batch.ads, sids_NT)
        changes = [
            Change(
                ad_id=ad.ad_id,
                state=ad.state,
                bid_micros=ad.bid_micros,
                advertiser_id=ad.content.advertiser_id,
                conversion_type=ad.conversion_type,
            )
            for ad in batch.ads
        ]
        last = await append_changes(session, changes, traceparent=batch.traceparent, change_time=now)
        session.add(
            BatchRow(
                request_id=batch.request_id,
                fingerprint=batch.fingerprint,
                codebook_id=active.codebook_id,
                first_seq=last - len(changes) + 1,
                last_seq=last,
            )
        )
        await session.flush()
        return CreatedBatch(
            [
                AdSid(
                    ad_id=ad.ad_id,
                    codebook_id=active.codebook_id,
                    codes=tuple(codes),
                    advertiser_id=ad.content.advertiser_id,
                    conversion_type=ad.conversion_type,
                    bid_micros=ad.bid_micros,
                    state=ad.state,
                    create_time=now,
                    update_time=now,
                )
                for ad, codes in zip(batch.ads, sids[active.codebook_id].tolist(), strict=True)
            ],
            last,
        )

    async def _assign(
        self,
        session: AsyncSession,
        registered: Sequence[RegisteredCodebook],
        batch: Batch,
        encoded: dict[str, Encoded | None],
    ) -> dict[str, NDArray[np.int64]]:
        """Return SIDs [N, T] by codebook. One that is full holds no ad up, unless it is the active one."""
        sids = {}
        for entry in registered:
            seen = encoded[entry.codebook_id]
            if seen is None:
                continue
            codebook = await self._registry.load(entry)
            try:
                sids[entry.codebook_id] = await assign_sids(session, codebook, batch.ads, seen)
            except ResourceExhaustedError as error:
                if entry.active:
                    raise
                _leave_out(entry, batch.ads, error)
        return sids

    async def _encode(
        self, registered: Sequence[RegisteredCodebook], ads: Sequence[Ad], known: dict[str, Encoded | None]
    ) -> dict[str, Encoded | None]:
        """Return the ads as each codebook sees them, by its id; those in `known` as they are.

        One that cannot see them, or cannot be read, leaves them out, unless it is the active one.
        """
        active = active_codebook(registered)
        check_vectors(ads, await self._registry.load(active))
        encoded: dict[str, Encoded | None] = {}
        for entry in registered:
            seen = known.get(entry.codebook_id)
            if seen is not None or (entry.codebook_id in known and not entry.active):
                encoded[entry.codebook_id] = seen
                continue
            try:
                codebook = await self._registry.load(entry)
                encoded[entry.codebook_id] = await in_thread(partial(encode, codebook, ads))
            except Gr4adError as error:
                if entry.active:
                    raise
                _leave_out(entry, ads, error)
                encoded[entry.codebook_id] = None
        return encoded

    async def _created_before(self, session: AsyncSession, batch: Batch) -> CreatedBatch | None:
        """Return the first answer to this batch: its changes hold the ads as they were created. None for a new batch.

        Raises:
            AlreadyExistsError: An ad exists, or `request_id` stands for another batch.
        """
        # In this order: ads that this very batch has created meanwhile would else look like somebody else's.
        known = await known_ads(session, batch.ads)
        row = await session.get(BatchRow, batch.request_id)
        if row is None:
            check_new(batch.ads, known)
            return None
        if row.fingerprint != batch.fingerprint:
            remedy = "this request_id created other ads, send a new one"
            raise AlreadyExistsError("request_id", repr(batch.request_id), remedy)
        created = await session.execute(
            select(CatalogChangeRow, AdSidRow)
            .join(AdSidRow, AdSidRow.ad_id == CatalogChangeRow.ad_id)
            .where(AdSidRow.codebook_id == row.codebook_id)
            .where(CatalogChangeRow.seq.between(row.first_seq, row.last_seq))
            .order_by(CatalogChangeRow.seq)
        )
        ad_sids = [
            AdSid(
                ad_id=change.ad_id,
                codebook_id=sid.codebook_id,
                codes=(*sid.semantic_codes, sid.business_code),
                advertiser_id=change.advertiser_id,
                conversion_type=change.conversion_type,
                bid_micros=change.bid_micros,
                state=change.state,
                create_time=change.change_time,
                update_time=change.change_time,
            )
            for change, sid in created
        ]
        return CreatedBatch(ad_sids, row.last_seq)
