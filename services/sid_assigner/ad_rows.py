"""Rows of ads and SIDs, written and read in bulk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

import numpy as np
from gr4ad_core.sid.ad_content import AdContent
from numpy.typing import NDArray
from sqlalchemy import JSON, bindparam, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from sid_assigner.ads import Ad
from sid_assigner.models import AdRow

# The rows of a batch travel as one JSON document: a statement a row would take several times as long.
INSERT_ADS = text(
    """
    INSERT INTO sid.ad (
        ad_id, title, brand, categories, description, advertiser_id, ad_type, conversion_type, bid_micros, state,
        embedding, create_time, update_time
    )
    SELECT ad_id, title, brand, categories, description, advertiser_id, ad_type, conversion_type, bid_micros, state,
        decode(embedding, 'hex'), :now, :now
    FROM json_to_recordset(:rows) AS new (
        ad_id text, title text, brand text, categories text[], description text, advertiser_id text, ad_type text,
        conversion_type text, bid_micros bigint, state text, embedding text
    )
    """
).bindparams(bindparam("rows", type_=JSON))
INSERT_SIDS = text(
    """
    INSERT INTO sid.ad_sid (codebook_id, ad_id, semantic_codes, business_code)
    SELECT :codebook_id, ad_id, semantic_codes, business_code
    FROM json_to_recordset(:rows) AS new (ad_id text, semantic_codes integer[], business_code integer)
    """
).bindparams(bindparam("rows", type_=JSON))


async def insert_ads(session: AsyncSession, ads: Sequence[Ad], now: datetime) -> None:
    """Insert ads; one that exists fails the transaction."""
    rows = [
        {
            "ad_id": ad.ad_id,
            "title": ad.content.title,
            "brand": ad.content.brand,
            "categories": ad.content.categories,
            "description": ad.content.description,
            "advertiser_id": ad.content.advertiser_id,
            "ad_type": ad.content.ad_type,
            "conversion_type": ad.conversion_type,
            "bid_micros": ad.bid_micros,
            "state": ad.state,
            "embedding": None if ad.embedding is None else ad.embedding.astype("<f4").tobytes().hex(),
        }
        for ad in ads
    ]
    await session.execute(INSERT_ADS, {"rows": rows, "now": now})


async def insert_sids(session: AsyncSession, codebook_id: str, ads: Sequence[Ad], sids_NT: NDArray[np.int64]) -> None:
    """Insert SIDs of ads; one that is taken fails the transaction."""
    rows = [
        {"ad_id": ad.ad_id, "semantic_codes": codes[:-1], "business_code": codes[-1]}
        for ad, codes in zip(ads, sids_NT.tolist(), strict=True)
    ]
    await session.execute(INSERT_SIDS, {"rows": rows, "codebook_id": codebook_id})


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
