"""Rows of ads and SIDs, written and read in bulk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

import numpy as np
from gr4ad_core.sid.ad_content import AdContent
from numpy.typing import NDArray
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from sid_assigner.ads import Ad
from sid_assigner.models import AdRow, AdSidRow


async def insert_ads(session: AsyncSession, ads: Sequence[Ad], now: datetime) -> None:
    """Insert ads in the order of their ids, so that two writers never wait for each other."""
    rows = [
        {
            "ad_id": ad.ad_id,
            "title": ad.content.title,
            "brand": ad.content.brand,
            "categories": list(ad.content.categories),
            "description": ad.content.description,
            "advertiser_id": ad.content.advertiser_id,
            "ad_type": ad.content.ad_type,
            "conversion_type": ad.conversion_type,
            "bid_micros": ad.bid_micros,
            "state": ad.state,
            "embedding": None if ad.embedding is None else ad.embedding.astype("<f4").tobytes(),
            "create_time": now,
            "update_time": now,
        }
        for ad in sorted(ads, key=lambda ad: ad.ad_id)
    ]
    await session.execute(insert(AdRow.__table__), rows)  # type: ignore[arg-type]  # a Table, declared wider


async def insert_sids(session: AsyncSession, codebook_id: str, ads: Sequence[Ad], sids_NT: NDArray[np.int64]) -> None:
    """Insert SIDs in their order, for the same reason; a SID that is taken fails the transaction."""
    rows = [
        {"codebook_id": codebook_id, "ad_id": ad_id, "semantic_codes": codes[:-1], "business_code": codes[-1]}
        for codes, ad_id in sorted(zip(sids_NT.tolist(), (ad.ad_id for ad in ads), strict=True))
    ]
    await session.execute(insert(AdSidRow.__table__), rows)  # type: ignore[arg-type]  # a Table, declared wider


async def read_ads(session: AsyncSession, page_size: int) -> AsyncIterator[list[Ad]]:
    """Read all ads by their ids, page by page."""
    last = ""
    while True:
        statement = select(AdRow).where(AdRow.ad_id > last).order_by(AdRow.ad_id).limit(page_size)
        rows = (await session.scalars(statement)).all()
        if not rows:
            return
        yield [_ad(row) for row in rows]
        last = rows[-1].ad_id
        session.expunge_all()  # else the session would keep every row of the store


def _ad(row: AdRow) -> Ad:
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
