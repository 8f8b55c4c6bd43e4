"""Where a roll-back of each activation goes back to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SCHEMA = "training"


def upgrade() -> None:
    """Add the column; every activation so far goes back to the one before it."""
    op.add_column("activation", sa.Column("earlier_seq", sa.BigInteger(), nullable=True), schema=SCHEMA)
    op.execute(f"UPDATE {SCHEMA}.activation SET earlier_seq = seq - 1")
    op.alter_column("activation", "earlier_seq", nullable=False, schema=SCHEMA)


def downgrade() -> None:
    """Drop the column; a roll-back is then an activation like any other."""
    op.drop_column("activation", "earlier_seq", schema=SCHEMA)
