"""The write side of the catalogue feed: numbers in commit order, and the wake-up of the readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from sid_assigner.models import CatalogChangeRow, FeedHeadRow

# Notifications of this channel carry the number of the last change.
CHANNEL = "sid_catalog"


@dataclass(frozen=True, slots=True)
class Change:
    """An ad's state after a change."""

    ad_id: str
    state: str
    bid_micros: int
    advertiser_id: str
    conversion_type: str


async def append_changes(
    session: AsyncSession, changes: Sequence[Change], *, traceparent: str, change_time: datetime
) -> int:
    """Append to the feed and return the number of the last change; the others go before it, in order.

    From here to the end of its transaction the caller holds the lock of the feed's head, which is what makes the
    numbers follow commit order. So this comes last in a transaction, after everything that takes time.
    """
    take = update(FeedHeadRow).values(seq=FeedHeadRow.seq + len(changes)).returning(FeedHeadRow.seq)
    last: int = (await session.execute(take)).scalar_one()
    first = last - len(changes) + 1
    rows: list[dict[str, Any]] = [
        {
            "seq": first + offset,
            "ad_id": change.ad_id,
            "state": change.state,
            "bid_micros": change.bid_micros,
            "advertiser_id": change.advertiser_id,
            "conversion_type": change.conversion_type,
            "traceparent": traceparent,
            "change_time": change_time,
        }
        for offset, change in enumerate(changes)
    ]
    await session.execute(insert(CatalogChangeRow.__table__), rows)  # type: ignore[arg-type]  # a Table, declared wider
    await session.execute(select(func.pg_notify(CHANNEL, str(last))))
    return last


async def feed_end(session: AsyncSession) -> int:
    """Return the number of the last change, 0 before the first."""
    return (await session.execute(select(FeedHeadRow.seq))).scalar_one()
