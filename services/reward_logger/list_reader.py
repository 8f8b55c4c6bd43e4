"""Reads served lists in the order they were stored, each with the outcomes known by now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from gr4ad_runtime.db import Database
from gr4ad_runtime.errors import OutOfRangeError
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from reward_logger.models import CLICK, CONVERSION, FeedbackRow, FeedHeadRow, ImpressionRow, ListFeedRow, ServedListRow


@dataclass(slots=True)
class Outcome:
    """What became of one ad of one list.

    Attributes:
        impressions: Impressions of it under the list's request.
        clicks: Clicks.
        conversions: Conversions.
        revenue_micros: What the advertiser pays for them, in micros.
    """

    impressions: int = 0
    clicks: int = 0
    conversions: int = 0
    revenue_micros: int = 0


@dataclass(frozen=True, slots=True)
class RewardedList:
    """A served list with the outcomes of its ads.

    Attributes:
        seq: Its place in the feed.
        message: A serialised gr4ad.reward.v1.ServedList.
        outcomes: Outcomes by ad id, of the ads that have any event.
    """

    seq: int
    message: bytes
    outcomes: dict[str, Outcome]


class ListReader:
    """Streams the log. Each chunk is read in a transaction of its own, so a slow consumer holds nothing open."""

    def __init__(self, database: Database, chunk: int) -> None:
        """Read from `database`, `chunk` lists at a time."""
        self._database = database
        self._chunk = chunk

    async def read(self, cursor: int) -> AsyncGenerator[list[RewardedList], None]:
        """Yield the lists after `cursor` up to the last one stored when the call began.

        Raises:
            OutOfRangeError: The cursor lies beyond the last list, so it is not one of this log.
        """
        async with self._database.session() as session:
            last = (await session.execute(select(FeedHeadRow.seq))).scalar_one()
        if cursor > last:
            raise OutOfRangeError(
                "cursor", str(cursor), f"the last list is {last}: send a cursor received from this log"
            )
        while cursor < last:
            async with self._database.session() as session:
                lists = await self._chunk_after(session, cursor, last)
            yield lists
            cursor = lists[-1].seq

    async def _chunk_after(self, session: AsyncSession, cursor: int, last: int) -> list[RewardedList]:
        rows = await session.execute(
            select(ListFeedRow.seq, ServedListRow.request_id, ServedListRow.message)
            .join(ServedListRow, ServedListRow.request_id == ListFeedRow.request_id)
            .where(ListFeedRow.seq > cursor, ListFeedRow.seq <= last)
            .order_by(ListFeedRow.seq)
            .limit(self._chunk)
        )
        lists = rows.all()
        outcomes = await _outcomes(session, [row.request_id for row in lists])
        return [RewardedList(row.seq, row.message, outcomes.get(row.request_id, {})) for row in lists]


async def _outcomes(session: AsyncSession, request_ids: Sequence[str]) -> dict[str, dict[str, Outcome]]:
    """Count the events of some requests, by request and ad."""
    counted: dict[str, dict[str, Outcome]] = defaultdict(lambda: defaultdict(Outcome))
    impressions = await session.execute(
        select(ImpressionRow.request_id, ImpressionRow.ad_id, func.count())
        .where(ImpressionRow.request_id.in_(request_ids))
        .group_by(ImpressionRow.request_id, ImpressionRow.ad_id)
    )
    for request_id, ad_id, shown in impressions:
        counted[request_id][ad_id].impressions = shown
    feedback = await session.execute(
        select(
            FeedbackRow.request_id,
            FeedbackRow.ad_id,
            _count_of(CLICK),
            _count_of(CONVERSION),
            func.sum(FeedbackRow.revenue_micros),
        )
        .where(FeedbackRow.request_id.in_(request_ids))
        .group_by(FeedbackRow.request_id, FeedbackRow.ad_id)
    )
    for request_id, ad_id, clicks, conversions, revenue_micros in feedback:
        outcome = counted[request_id][ad_id]
        outcome.clicks, outcome.conversions, outcome.revenue_micros = clicks, conversions, int(revenue_micros)
    return counted


def _count_of(kind: int) -> ColumnElement[int]:
    return func.count().filter(FeedbackRow.type == kind)
