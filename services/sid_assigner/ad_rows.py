"""Rows of ads and SIDs, written and read in bulk."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import numpy as np
from gr4ad_core.sid.ad_content import AdContent
from numpy.typing import NDArray
from sqlalchemy import exists, select
from sqlalchemy.ext.asyncio import AsyncSession

from sid_assigner.ads import Ad
from sid_assigner.bulk_copy import copy_rows
from sid_assigner.models import AdRow, AdSidRow

AD_COLUMNS = (
    "ad_id",
    "title",
    "brand",
    "categories",
    "description",
    "advertiser_id",
    "ad_type",
    "conversion_type",
    "bid_micros",
    "state",
    "embedding",
    "create_time",
    "update_time",
)
SID_COLUMNS = ("codebook_id", "ad_id", "semantic_codes", "business_code")


async def insert_ads(session: AsyncSession, ads: Sequence[Ad], now: datetime) -> None:
    """Insert ads; one that exists fails the transaction."""
    rows = (
        (
            ad.ad_id,
            ad.content.title,
            ad.content.brand,
            list(ad.content.categories),
            ad.content.description,
            ad.content.advertiser_id,
            ad.content.ad_type,
            ad.conversion_type,
            ad.bid_micros,
            ad.state,
            None if ad.embedding is None else ad.embedding.astype("<f4").tobytes(),
            now,
            now,
        )
        for ad in ads
    )
    await copy_rows(session, "ad", AD_COLUMNS, rows)


async def insert_sids(session: AsyncSession, codebook_id: str, ads: Sequence[Ad], sids_NT: NDArray[np.int64]) -> None:
    """Insert SIDs of ads; one that is taken fails the transaction."""
    rows = ((codebook_id, ad.ad_id, codes[:-1], codes[-1]) for ad, codes in zip(ads, sids_NT.tolist(), strict=True))
    await copy_rows(session, "ad_sid", SID_COLUMNS, rows)


async def read_ads_without_sid(session: AsyncSession, codebook_id: str, *, after: str, limit: int) -> list[Ad]:
    """Read ads that have no SID under a codebook, by their ids from behind `after` on, `limit` at most."""
    has_one = exists().where(AdSidRow.codebook_id == codebook_id, AdSidRow.ad_id == AdRow.ad_id)
    statement = select(AdRow).where(AdRow.ad_id > after, ~has_one).order_by(AdRow.ad_id).limit(limit)
    return [ad_of(row) for row in await session.scalars(statement)]


def ad_of(row: AdRow) -> Ad:
    """Return the ad of a row."""
    return Ad(
        ad_id=row.ad_id,
        content=AdContent(
            title=row.title,
            brand=row.brand,
            categories=tuple(row.categories),
            description=row.description,
            advertiser_id=row.advertiser_id,
            ad_type=row.ad_type,
        ),
        conversion_type=row.conversion_type,
        bid_micros=row.bid_micros,
        state=row.state,
        embedding=None if row.embedding is None else np.frombuffer(row.embedding, dtype="<f4").astype(np.float32),
    )
