"""Stores impressions and feedback, once each, whether or not their list is known yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any

from gr4ad_runtime.db import Database
from sqlalchemy.dialects.postgresql import insert

from reward_logger.models import FeedbackRow, ImpressionRow


@dataclass(frozen=True, slots=True)
class Impression:
    """An ad was shown.

    Attributes:
        event_id: Identifies the event.
        request_id: The request whose list the ad came from.
        ad_id: The ad.
        position: Position on the page, from 0.
        event_time: When it was shown.
        traceparent: Of the call that reported it; empty where that was not traced.
    """

    event_id: str
    request_id: str
    ad_id: str
    position: int
    event_time: datetime
    traceparent: str


@dataclass(frozen=True, slots=True)
class Feedback:
    """A response to an ad that was shown.

    Attributes:
        event_id: Identifies the event together with its type.
        type: `models.CLICK` or `models.CONVERSION`.
        request_id: The request whose list the ad came from; empty where only the user is known.
        ad_id: The ad.
        revenue_micros: What the advertiser pays for this event, in micros.
        event_time: When it happened.
        user_id: Whose response; empty where request_id says it.
        traceparent: Of the call that reported it; empty where that was not traced.
    """

    event_id: str
    type: int
    request_id: str
    ad_id: str
    revenue_micros: int
    event_time: datetime
    user_id: str
    traceparent: str


class EventStore:
    """Writes events, a batch in one transaction; of two events with one key the first that came stays."""

    def __init__(self, database: Database) -> None:
        """Write to the tables in `database`."""
        self._database = database

    async def add_impressions(self, impressions: Sequence[Impression]) -> int:
        """Store impressions and return how many were new."""
        return await self._add(ImpressionRow, [asdict(event) for event in impressions], key=("event_id",))

    async def add_feedback(self, feedback: Sequence[Feedback]) -> int:
        """Store clicks and conversions and return how many were new."""
        return await self._add(FeedbackRow, [asdict(event) for event in feedback], key=("event_id", "type"))

    async def _add(
        self, table: type[ImpressionRow] | type[FeedbackRow], rows: list[dict[str, Any]], key: tuple[str, ...]
    ) -> int:
        # In key order: two calls with the same events, say a retry beside its original, then never wait for each other
        # crosswise. The sort is stable, so the first of two equal keys is still the one kept.
        rows.sort(key=itemgetter(*key))
        statement = insert(table).on_conflict_do_nothing().returning(table.event_id)
        async with self._database.session() as session:
            return len((await session.scalars(statement, rows)).all())
