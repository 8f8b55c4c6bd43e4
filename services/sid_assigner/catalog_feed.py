"""The write side of the catalogue feed: numbers in commit order, and the wake-up of the readers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from sid_assigner.bulk_copy import copy_rows
from sid_assigner.models import FeedHeadRow

# Notifications of this channel carry the number of the last change.
CHANNEL = "sid_catalog"


class Change(NamedTuple):
    """An ad's state after a change, as it is stored."""

    ad_id: str
    state: str
    bid_micros: int
    advertiser_id: str
    conversion_type: str


CHANGE_COLUMNS = (
    "seq",
    "ad_id",
    "state",
    "bid_micros",
    "advertiser_id",
    "conversion_type",
    "traceparent",
    "change_time",
)


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
    rows = ((seq, *change, traceparent, change_time) for seq, change in enumerate(changes, start=first))
    await copy_rows(session, "catalog_change", CHANGE_COLUMNS, rows)
    await session.execute(select(func.pg_notify(CHANNEL, str(last))))
    return last


async def feed_end(session: AsyncSession) -> int:
    """Return the number of the last change, 0 before the first."""
    return (await session.execute(select(FeedHeadRow.seq))).scalar_one()
