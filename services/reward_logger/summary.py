"""Counts what the log holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from gr4ad_runtime.db import Database
from sqlalchemy import ColumnElement, ScalarSelect, exists, func, select

from reward_logger.attribution import attributed_count
from reward_logger.models import CLICK, CONVERSION, Base, FeedbackRow, FeedHeadRow, ImpressionRow, ServedListRow


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts of one moment.

    Attributes:
        served_lists: Served lists.
        impressions: Impressions.
        clicks: Clicks.
        conversions: Conversions.
        revenue_micros: Sum of the revenue, in micros.
        unjoined_events: Impressions and feedback with a request_id that no stored list has.
        lists_without_events: Served lists that no event belongs to.
        unattributed_feedback: Feedback that belongs to no list, or came after the attribution window.
        last_cursor: Place of the last list in the feed.
    """

    served_lists: int
    impressions: int
    clicks: int
    conversions: int
    revenue_micros: int
    unjoined_events: int
    lists_without_events: int
    unattributed_feedback: int
    last_cursor: int


async def summarise(database: Database, window: timedelta) -> Summary:
    """Count everything in one statement, so that all figures belong to the same moment. Reads whole tables."""
    statement = select(
        _count(ServedListRow).label("served_lists"),
        _count(ImpressionRow).label("impressions"),
        _count(FeedbackRow, FeedbackRow.type == CLICK).label("clicks"),
        _count(FeedbackRow, FeedbackRow.type == CONVERSION).label("conversions"),
        select(func.coalesce(func.sum(FeedbackRow.revenue_micros), 0)).scalar_subquery().label("revenue_micros"),
        (
            _count(ImpressionRow, ~_has_list(ImpressionRow))
            + _count(FeedbackRow, FeedbackRow.request_id != "", ~_has_list(FeedbackRow))
        ).label("unjoined_events"),
        (_count(FeedbackRow) - attributed_count(window)).label("unattributed_feedback"),
        select(FeedHeadRow.seq).scalar_subquery().label("last_cursor"),
        _count(ServedListRow, ~_has_event_in(ImpressionRow), ~_has_event_in(FeedbackRow)).label("lists_without_events"),
    )
    async with database.session() as session:
        row = (await session.execute(statement)).one()
    return Summary(**{name: int(value) for name, value in row._mapping.items()})


def _count(table: type[Base], *conditions: ColumnElement[bool]) -> ScalarSelect[int]:
    return select(func.count()).select_from(table).where(*conditions).scalar_subquery()


def _has_list(events: type[ImpressionRow] | type[FeedbackRow]) -> ColumnElement[bool]:
    return exists().where(ServedListRow.request_id == events.request_id)


def _has_event_in(events: type[ImpressionRow] | type[FeedbackRow]) -> ColumnElement[bool]:
    return exists().where(events.request_id == ServedListRow.request_id)
