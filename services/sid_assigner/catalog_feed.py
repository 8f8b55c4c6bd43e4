"""The write side of the catalogue feed: numbers in commit order, and the wake-up of the readers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypedDict

from sqlalchemy import JSON, bindparam, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from sid_assigner.models import FeedHeadRow

# Notifications of this channel carry the number of the last change.
CHANNEL = "sid_catalog"


class Change(TypedDict):
    """An ad's state after a change, as it is stored."""

    ad_id: str
    state: str
    bid_micros: int
    advertiser_id: str
    conversion_type: str


INSERT_CHANGES = text(
    """
    INSERT INTO sid.catalog_change (
        seq, ad_id, state, bid_micros, advertiser_id, conversion_type, traceparent, change_time
    )
    SELECT :before + number, ad_id, state, bid_micros, advertiser_id, conversion_type, :traceparent, :change_time
    FROM ROWS FROM (json_to_recordset(:rows) AS (
        ad_id text, state text, bid_micros bigint, advertiser_id text, conversion_type text
    )) WITH ORDINALITY AS new (ad_id, state, bid_micros, advertiser_id, conversion_type, number)
    """
).bindparams(bindparam("rows", type_=JSON))


async def append_changes(
    session: AsyncSession, changes: Sequence[Change], *, traceparent: str, change_time: datetime
) -> int:
    """Append to the feed and return the number of the last change; the others go before it, in order.

    From here to the end of its transaction the caller holds the lock of the feed's head, which is what makes the
    numbers follow commit order. So this comes last in a transaction, after everything that takes time.
    """
    take = update(FeedHeadRow).values(seq=FeedHeadRow.seq + len(changes)).returning(FeedHeadRow.seq)
    last: int = (await session.execute(take)).scalar_one()
    await session.execute(
        INSERT_CHANGES,
        {
            "before": last - len(changes),
            "rows": list(changes),
            "traceparent": traceparent,
            "change_time": change_time,
        },
    )
    await session.execute(select(func.pg_notify(CHANNEL, str(last))))
    return last


async def feed_end(session: AsyncSession) -> int:
    """Return the number of the last change, 0 before the first."""
    return (await session.execute(select(FeedHeadRow.seq))).scalar_one()
