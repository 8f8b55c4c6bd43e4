"""Which list a response belongs to: last touch, one window.

A response that names its request belongs to that list. One that names only a user belongs to the last list that showed
the ad to the user before it. Either way it must come within the window after the list was served. All of this is worked
out when lists are read, so the order in which lists, impressions and responses arrive does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import CompoundSelect, ScalarSelect, Select, func, select, true, union_all

from reward_logger.models import FeedbackRow, ImpressionRow, ServedListRow

COLUMNS = (
    FeedbackRow.ad_id,
    FeedbackRow.type,
    FeedbackRow.revenue_micros,
    FeedbackRow.event_time,
    FeedbackRow.traceparent,
)


def attributed_feedback(request_ids: Sequence[str], user_ids: Sequence[str], window: timedelta) -> CompoundSelect[Any]:
    """Return the query of all responses that belong to some lists, each with its list's `request_id` first.

    Args:
        request_ids: The lists.
        user_ids: Their users.
        window: Longest time from a list to a response.
    """
    named = _named(window).where(FeedbackRow.request_id.in_(request_ids))
    touched = _touched(window)
    by_user = touched.where(FeedbackRow.user_id.in_(user_ids), touched.selected_columns[0].in_(request_ids))
    return union_all(named, by_user)


def attributed_count(window: timedelta) -> ScalarSelect[int]:
    """Return the subquery of how many responses belong to any list. Reads the whole log."""
    both = union_all(_named(window), _touched(window)).subquery()
    return select(func.count()).select_from(both).scalar_subquery()


def _named(window: timedelta) -> Select[str, str, int, int, datetime, str]:
    return (
        select(FeedbackRow.request_id, *COLUMNS)
        .join(ServedListRow, ServedListRow.request_id == FeedbackRow.request_id)
        .where(FeedbackRow.event_time <= ServedListRow.serve_time + window)
    )


def _touched(window: timedelta) -> Select[str, str, int, int, datetime, str]:
    last = (
        select(ServedListRow.request_id)
        .join(ImpressionRow, ImpressionRow.request_id == ServedListRow.request_id)
        .where(
            ServedListRow.user_id == FeedbackRow.user_id,
            ServedListRow.user_id != "",  # lets the partial index serve
            ImpressionRow.ad_id == FeedbackRow.ad_id,
            ServedListRow.serve_time <= FeedbackRow.event_time,
            ServedListRow.serve_time >= FeedbackRow.event_time - window,
        )
        .order_by(ServedListRow.serve_time.desc(), ServedListRow.request_id.desc())
        .limit(1)
        .lateral("last_touch")
    )
    return (
        select(last.c.request_id, *COLUMNS)
        .select_from(FeedbackRow)
        .join(last, true())
        .where(FeedbackRow.request_id == "")
    )
