"""Ads, their SIDs, codebooks and the change feed.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = "sid"


def _identifier() -> sa.Text:
    return sa.Text(collation="C")


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=False)


def upgrade() -> None:
    """Create the tables; the feed starts at 0."""
    op.create_table(
        "codebook",
        sa.Column("codebook_id", _identifier(), nullable=False),
        sa.Column("level_sizes", sa.ARRAY(sa.Integer()), nullable=False),
        sa.Column("embedding_dim", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        _time("create_time"),
        sa.PrimaryKeyConstraint("codebook_id", name="pk_codebook"),
        schema=SCHEMA,
    )
    op.create_index(
        "uq_codebook_active", "codebook", ["active"], unique=True, postgresql_where=sa.text("active"), schema=SCHEMA
    )
    op.create_table(
        "ad",
        sa.Column("ad_id", _identifier(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("brand", sa.Text(), nullable=False),
        sa.Column("categories", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("advertiser_id", sa.Text(), nullable=False),
        sa.Column("ad_type", sa.Text(), nullable=False),
        sa.Column("conversion_type", sa.Text(), nullable=False),
        sa.Column("bid_micros", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("embedding", sa.LargeBinary(), nullable=True),
        _time("create_time"),
        _time("update_time"),
        sa.PrimaryKeyConstraint("ad_id", name="pk_ad"),
        sa.CheckConstraint("bid_micros >= 0", name="ck_ad_bid_micros"),
        sa.CheckConstraint("state IN ('active', 'paused')", name="ck_ad_state"),
        schema=SCHEMA,
    )
    op.create_table(
        "ad_sid",
        sa.Column("codebook_id", _identifier(), nullable=False),
        sa.Column("ad_id", _identifier(), nullable=False),
        sa.Column("semantic_codes", sa.ARRAY(sa.Integer()), nullable=False),
        sa.Column("business_code", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("codebook_id", "ad_id", name="pk_ad_sid"),
        sa.UniqueConstraint("codebook_id", "semantic_codes", "business_code", name="uq_ad_sid_sid"),
        sa.ForeignKeyConstraint(["codebook_id"], [f"{SCHEMA}.codebook.codebook_id"], name="fk_ad_sid_codebook"),
        sa.ForeignKeyConstraint(["ad_id"], [f"{SCHEMA}.ad.ad_id"], name="fk_ad_sid_ad"),
        schema=SCHEMA,
    )
    op.create_table(
        "catalog_change",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("ad_id", _identifier(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("bid_micros", sa.BigInteger(), nullable=False),
        sa.Column("advertiser_id", sa.Text(), nullable=False),
        sa.Column("conversion_type", sa.Text(), nullable=False),
        sa.Column("traceparent", sa.Text(), nullable=False),
        _time("change_time"),
        sa.PrimaryKeyConstraint("seq", name="pk_catalog_change"),
        sa.ForeignKeyConstraint(["ad_id"], [f"{SCHEMA}.ad.ad_id"], name="fk_catalog_change_ad"),
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
        "batch",
        sa.Column("request_id", _identifier(), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=False),
        sa.Column("codebook_id", _identifier(), nullable=False),
        sa.Column("first_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_batch"),
        sa.ForeignKeyConstraint(["codebook_id"], [f"{SCHEMA}.codebook.codebook_id"], name="fk_batch_codebook"),
        schema=SCHEMA,
    )


def downgrade() -> None:
    """Drop the tables with all they hold."""
    for table in ("batch", "feed_head", "catalog_change", "ad_sid", "ad", "codebook"):
        op.drop_table(table, schema=SCHEMA)
