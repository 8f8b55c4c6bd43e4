"""Reads served lists in the order they were stored, each with the outcomes known by now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from gr4ad_runtime.db import Database
from gr4ad_runtime.errors import OutOfRangeError
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from reward_logger.attribution import attributed_feedback
from reward_logger.models import CLICK, CONVERSION, FeedHeadRow, ImpressionRow, ListFeedRow, ServedListRow

MOST_TRACES = 8


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
        traceparents: Of the traced calls that reported these, the latest few.
    """

    seq: int
    message: bytes
    outcomes: dict[str, Outcome]
    traceparents: list[str]


class ListReader:
    """Streams the log. Each chunk is read in a transaction of its own, so a slow consumer holds nothing open."""

    def __init__(self, database: Database, chunk: int, window: timedelta) -> None:
        """Read from `database`, `chunk` lists at a time, and attribute responses within `window`."""
        self._database = database
        self._chunk = chunk
        self._window = window

    async def read(self, cursor: int, min_age: timedelta) -> AsyncGenerator[list[RewardedList], None]:
        """Yield the lists after `cursor` up to the last one stored when the call began, and at least `min_age` before.

        Raises:
            OutOfRangeError: The cursor lies beyond the last list, so it is not one of this log.
        """
        async with self._database.session() as session:
            last = (await session.execute(select(FeedHeadRow.seq))).scalar_one()
            young = func.clock_timestamp() - min_age
            first_young = await session.scalar(
                select(func.min(ListFeedRow.seq)).where(ListFeedRow.store_time > young, ListFeedRow.seq > cursor)
            )
        if cursor > last:
            raise OutOfRangeError(
                "cursor", str(cursor), f"the last list is {last}: send a cursor received from this log"
            )
        if min_age and first_young is not None:
            last = first_young - 1
        while cursor < last:
            async with self._database.session() as session:
                lists = await self._chunk_after(session, cursor, last)
            yield lists
            cursor = lists[-1].seq

    async def _chunk_after(self, session: AsyncSession, cursor: int, last: int) -> list[RewardedList]:
        rows = await session.execute(
            select(ListFeedRow.seq, ServedListRow.request_id, ServedListRow.user_id, ServedListRow.message)
            .join(ServedListRow, ServedListRow.request_id == ListFeedRow.request_id)
            .where(ListFeedRow.seq > cursor, ListFeedRow.seq <= last)
            .order_by(ListFeedRow.seq)
            .limit(self._chunk)
        )
        lists = rows.all()
        events = _Events()
        request_ids = [row.request_id for row in lists]
        await events.read_impressions(session, request_ids)
        await events.read_feedback(session, request_ids, sorted({row.user_id for row in lists} - {""}), self._window)
        return [
            RewardedList(row.seq, row.message, events.outcomes.get(row.request_id, {}), events.traces(row.request_id))
            for row in lists
        ]


class _Events:
    """The events of a chunk of lists, by request and ad."""

    def __init__(self) -> None:
        self.outcomes: dict[str, dict[str, Outcome]] = defaultdict(lambda: defaultdict(Outcome))
        self._traces: dict[str, dict[str, datetime]] = defaultdict(dict)

    async def read_impressions(self, session: AsyncSession, request_ids: Sequence[str]) -> None:
        rows = await session.execute(
            select(
                ImpressionRow.request_id,
                ImpressionRow.ad_id,
                func.count(),
                ImpressionRow.traceparent,
                func.max(ImpressionRow.event_time),
            )
            .where(ImpressionRow.request_id.in_(request_ids))
            .group_by(ImpressionRow.request_id, ImpressionRow.ad_id, ImpressionRow.traceparent)
        )
        for request_id, ad_id, shown, traceparent, latest in rows:
            self.outcomes[request_id][ad_id].impressions += shown
            self._note(request_id, traceparent, latest)

    async def read_feedback(
        self, session: AsyncSession, request_ids: Sequence[str], user_ids: Sequence[str], window: timedelta
    ) -> None:
        rows = await session.execute(attributed_feedback(request_ids, user_ids, window))
        for request_id, ad_id, kind, revenue_micros, event_time, traceparent in rows:
            outcome = self.outcomes[request_id][ad_id]
            outcome.clicks += kind == CLICK
            outcome.conversions += kind == CONVERSION
            outcome.revenue_micros += revenue_micros
            self._note(request_id, traceparent, event_time)

    def traces(self, request_id: str) -> list[str]:
        """Return the traceparents of a list's events, the latest `MOST_TRACES` of them, the latest first."""
        seen = self._traces.get(request_id, {})
        return sorted(seen, key=lambda traceparent: seen[traceparent], reverse=True)[:MOST_TRACES]

    def _note(self, request_id: str, traceparent: str, time: datetime) -> None:
        if traceparent:
            seen = self._traces[request_id]
            seen[traceparent] = max(time, seen.get(traceparent, time))
