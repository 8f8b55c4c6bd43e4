"""Served lists with their feed, impressions and feedback."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = "reward"


def upgrade() -> None:
    """Create the tables."""
    identifier = sa.Text(collation="C")
    op.create_table(
        "served_list",
        sa.Column("request_id", identifier, nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_served_list"),
        schema=SCHEMA,
    )
    op.create_table(
        "list_feed",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("request_id", identifier, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_list_feed"),
        schema=SCHEMA,
    )
    feed_head = op.create_table(
        "feed_head",
        sa.Column("single", sa.Boolean(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("single", name="pk_feed_head"),
        sa.CheckConstraint("single", name="ck_feed_head_one_row"),
        schema=SCHEMA,
    )
    op.bulk_insert(feed_head, [{"single": True, "seq": 0}])
    op.create_table(
        "impression",
        sa.Column("event_id", identifier, nullable=False),
        sa.Column("request_id", identifier, nullable=False),
        sa.Column("ad_id", identifier, nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("event_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name="pk_impression"),
        schema=SCHEMA,
    )
    op.create_index("ix_impression_request_id", "impression", ["request_id"], schema=SCHEMA)
    op.create_table(
        "feedback",
        sa.Column("event_id", identifier, nullable=False),
        sa.Column("type", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("request_id", identifier, nullable=False),
        sa.Column("ad_id", identifier, nullable=False),
        sa.Column("revenue_micros", sa.BigInteger(), nullable=False),
        sa.Column("event_time", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("event_id", "type", name="pk_feedback"),
        sa.CheckConstraint("type IN (1, 2)", name="ck_feedback_type"),
        sa.CheckConstraint("revenue_micros >= 0", name="ck_feedback_revenue_micros"),
        schema=SCHEMA,
    )
    op.create_index("ix_feedback_request_id", "feedback", ["request_id"], schema=SCHEMA)


def downgrade() -> None:
    """Drop the tables and all that is in them."""
    for table in ("feedback", "impression", "feed_head", "list_feed", "served_list"):
        op.drop_table(table, schema=SCHEMA)
