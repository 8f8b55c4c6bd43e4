"""Tables of the schema `sid`.

Numbers in `catalog_change.seq` follow commit order without gaps: every writer takes them from the single row of
`feed_head`, whose lock it then holds until its commit.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = "sid"

# Ids compare as bytes: the order is the same on every machine, and comparisons are cheap.
Identifier = Text(collation="C")


class Base(DeclarativeBase):
    """Base of the tables; constraint names are fixed, since a violated one is told by its name."""

    metadata = MetaData(
        schema=SCHEMA,
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(referred_table_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
        },
    )


class CodebookRow(Base):
    """A registered codebook and where it is in its life; one is the active one.

    Preparing: new ads get SIDs under it, and those known before get theirs page by page. Standby: every ad has one.
    Active: the same, and it is the default. Retired: its SIDs stay, and no ad gets another.
    """

    __tablename__ = "codebook"
    __table_args__ = (
        CheckConstraint("state IN ('preparing', 'standby', 'active', 'retired')", name="state"),
        Index("uq_codebook_active", "state", unique=True, postgresql_where=text("state = 'active'")),
    )

    codebook_id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    level_sizes: Mapped[list[int]] = mapped_column(ARRAY(Integer))
    embedding_dim: Mapped[int]
    sha256: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    create_time: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class AdRow(Base):
    """An ad: the content its SIDs are made from, which never changes, and its bid and state, which do."""

    __tablename__ = "ad"
    __table_args__ = (
        CheckConstraint("bid_micros >= 0", name="bid_micros"),
        CheckConstraint("state IN ('active', 'paused')", name="state"),
        Index("ix_ad_advertiser_id", "advertiser_id", "ad_id"),
        Index("ix_ad_state", "state", "ad_id"),
    )

    ad_id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    title: Mapped[str] = mapped_column(Text)
    brand: Mapped[str] = mapped_column(Text)
    categories: Mapped[list[str]] = mapped_column(ARRAY(Text))
    description: Mapped[str] = mapped_column(Text)
    advertiser_id: Mapped[str] = mapped_column(Text)
    ad_type: Mapped[str] = mapped_column(Text)
    conversion_type: Mapped[str] = mapped_column(Text)
    bid_micros: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[str] = mapped_column(Text)
    # The caller's own vector, float32 little-endian. Encoded ones are not stored: a codebook brings its own encoder.
    embedding: Mapped[bytes | None] = mapped_column(LargeBinary)
    create_time: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    update_time: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class AdSidRow(Base):
    """The SID of an ad under one codebook, written once. No two ads of a codebook share one."""

    __tablename__ = "ad_sid"
    __table_args__ = (UniqueConstraint("codebook_id", "semantic_codes", "business_code", name="uq_ad_sid_sid"),)

    codebook_id: Mapped[str] = mapped_column(Identifier, ForeignKey(CodebookRow.codebook_id), primary_key=True)
    ad_id: Mapped[str] = mapped_column(Identifier, ForeignKey(AdRow.ad_id), primary_key=True)
    # Codes s_1 … s_{T-1}, apart from s_T, so that one index finds a SID as well as the codes taken under a prefix.
    semantic_codes: Mapped[list[int]] = mapped_column(ARRAY(Integer))
    business_code: Mapped[int]


class CatalogChangeRow(Base):
    """One change of one ad: its state after the change. The SIDs, which never move, are joined when it is read."""

    __tablename__ = "catalog_change"

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    ad_id: Mapped[str] = mapped_column(Identifier, ForeignKey(AdRow.ad_id))
    state: Mapped[str] = mapped_column(Text)
    bid_micros: Mapped[int] = mapped_column(BigInteger)
    advertiser_id: Mapped[str] = mapped_column(Text)
    conversion_type: Mapped[str] = mapped_column(Text)
    traceparent: Mapped[str] = mapped_column(Text)
    change_time: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class FeedHeadRow(Base):
    """The number of the last change; exactly one row."""

    __tablename__ = "feed_head"
    __table_args__ = (CheckConstraint("single", name="one_row"),)

    single: Mapped[bool] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger)


class BatchRow(Base):
    """A batch that was created: what a repeated request is answered from, together with the batch's changes."""

    __tablename__ = "batch"

    request_id: Mapped[str] = mapped_column(Identifier, primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary)
    codebook_id: Mapped[str] = mapped_column(Identifier, ForeignKey(CodebookRow.codebook_id))
    first_seq: Mapped[int] = mapped_column(BigInteger)
    last_seq: Mapped[int] = mapped_column(BigInteger)
