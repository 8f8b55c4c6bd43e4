"""Stores served lists, once each, and numbers them in commit order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from gr4ad_runtime.db import Database
from sqlalchemy import insert, update
from sqlalchemy.dialects.postgresql import insert as insert_or_skip

from reward_logger.models import FeedHeadRow, ListFeedRow, ServedListRow


@dataclass(frozen=True, slots=True)
class ServedList:
    """A served list on its way into the log.

    Attributes:
        request_id: Identifies it.
        message: It all, as a serialised gr4ad.reward.v1.ServedList.
        traceparent: Of the request it answered; empty where that was not traced.
        user_id: Whose it is; may be empty.
        serve_time: When it was returned.
    """

    request_id: str
    message: bytes
    traceparent: str
    user_id: str
    serve_time: datetime


class ListStore:
    """Writes lists, a batch in one transaction."""

    def __init__(self, database: Database) -> None:
        """Write to the tables in `database`."""
        self._database = database

    async def add(self, lists: Sequence[ServedList]) -> list[ServedList]:
        """Store the lists whose request_id is new and return them in the order given; others change nothing."""
        first: dict[str, ServedList] = {}
        for served in lists:
            first.setdefault(served.request_id, served)
        # In key order, so that two calls with the same lists never wait for each other crosswise.
        columns = ("request_id", "message", "user_id", "serve_time")
        rows = [{name: getattr(first[key], name) for name in columns} for key in sorted(first)]
        add = insert_or_skip(ServedListRow).on_conflict_do_nothing().returning(ServedListRow.request_id)
        async with self._database.session() as session:
            new = set(await session.scalars(add, rows))
            stored = [served for served in first.values() if served.request_id in new]
            if stored:
                # Last, as the lock on the head keeps every other writer waiting until this transaction has ended.
                head = update(FeedHeadRow).values(seq=FeedHeadRow.seq + len(stored)).returning(FeedHeadRow.seq)
                last = (await session.execute(head)).scalar_one()
                numbers = range(last - len(stored) + 1, last + 1)
                places = [
                    {"seq": seq, "request_id": served.request_id} for seq, served in zip(numbers, stored, strict=True)
                ]
                await session.execute(insert(ListFeedRow), places)
        return stored
