"""Tables of the schema `reward`.

Nothing here refers to anything else by a foreign key: trackers and generators report independently, so an event may
come long before or without its list. The join is made by `request_id` when lists are read.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Index,
    LargeBinary,
    MetaData,
    SmallInteger,
    Text,
    func,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = "reward"

CLICK = 1
CONVERSION = 2

# Ids compare as bytes: the order is the same on every machine, and comparisons are cheap.
Identifier = Text(collation="C")


class Base(DeclarativeBase):
    """Base of the tables."""

    metadata = MetaData(
        schema=SCHEMA,
        naming_convention={"pk": "pk_%(table_name)s", "ck": "ck_%(table_name)s_%(constraint_name)s"},
    )


class ServedListRow(Base):
    """A served list, kept as the message it came as: readers get back exactly what the generator sent."""

    __tablename__ = "served_list"
    __table_args__ = (
        Index("ix_served_list_user_id_serve_time", "user_id", "serve_time", postgresql_where=text("user_id <> ''")),
    )

    request_id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    # A serialised gr4ad.reward.v1.ServedList.
    message: Mapped[bytes] = mapped_column(LargeBinary)
    # Of the message, for attribution.
    user_id: Mapped[str] = mapped_column(Identifier, server_default="")
    serve_time: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())


class ListFeedRow(Base):
    """The place of a served list in the feed. Numbers follow commit order without gaps, see `FeedHeadRow`.

    A table of its own, so that the wide rows of `served_list` are written once and before the head is locked.
    """

    __tablename__ = "list_feed"
    __table_args__ = (Index("ix_list_feed_store_time", "store_time"),)

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    request_id: Mapped[str] = mapped_column(Identifier)
    # By the database's clock, read while the head is locked: it rises with seq.
    store_time: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.clock_timestamp())


class FeedHeadRow(Base):
    """The number of the last list; exactly one row, which a writer keeps locked until its commit.

    Hence a reader that has seen number n has seen every number below n: none can still be uncommitted.
    """

    __tablename__ = "feed_head"
    __table_args__ = (CheckConstraint("single", name="one_row"),)

    single: Mapped[bool] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger)


class ImpressionRow(Base):
    """An ad was shown."""

    __tablename__ = "impression"
    __table_args__ = (Index("ix_impression_request_id", "request_id"),)

    event_id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    request_id: Mapped[str] = mapped_column(Identifier)
    ad_id: Mapped[str] = mapped_column(Identifier)
    position: Mapped[int] = mapped_column(SmallInteger)
    event_time: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    # Of the call that reported it; empty where that was not traced.
    traceparent: Mapped[str] = mapped_column(Text, server_default="")


class FeedbackRow(Base):
    """A response to an ad that was shown; one event may be a click and, later, a conversion."""

    __tablename__ = "feedback"
    __table_args__ = (
        CheckConstraint(f"type IN ({CLICK}, {CONVERSION})", name="type"),
        CheckConstraint("revenue_micros >= 0", name="revenue_micros"),
        Index("ix_feedback_request_id", "request_id"),
        Index("ix_feedback_user_id", "user_id", postgresql_where=text("request_id = ''")),
    )

    event_id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    # Numbers of gr4ad.reward.v1.FeedbackType.
    type: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    # Empty where the tracker knows the user alone.
    request_id: Mapped[str] = mapped_column(Identifier)
    ad_id: Mapped[str] = mapped_column(Identifier)
    revenue_micros: Mapped[int] = mapped_column(BigInteger)
    event_time: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    # Whose response; empty where request_id says it.
    user_id: Mapped[str] = mapped_column(Identifier, server_default="")
    traceparent: Mapped[str] = mapped_column(Text, server_default="")
