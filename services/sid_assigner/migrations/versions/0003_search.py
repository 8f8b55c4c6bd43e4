"""Ads can be searched by account and by state, in the order of their ids.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SCHEMA = "sid"


def upgrade() -> None:
    """Add the indexes."""
    op.create_index("ix_ad_advertiser_id", "ad", ["advertiser_id", "ad_id"], schema=SCHEMA)
    op.create_index("ix_ad_state", "ad", ["state", "ad_id"], schema=SCHEMA)


def downgrade() -> None:
    """Drop them."""
    for name in ("ix_ad_state", "ix_ad_advertiser_id"):
        op.drop_index(name, "ad", schema=SCHEMA)
