"""Online runs: where in the reward log they are, and the state they go on from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCHEMA = "training"


def upgrade() -> None:
    """Add the columns; earlier runs were none."""
    op.add_column(
        "training_run", sa.Column("cursor", sa.BigInteger(), nullable=False, server_default="0"), schema=SCHEMA
    )
    op.add_column("training_run", sa.Column("checkpoint", sa.Text(), nullable=False, server_default=""), schema=SCHEMA)


def downgrade() -> None:
    """Drop the columns; online runs under way are then runs that an unknown source feeds, and fail."""
    op.drop_column("training_run", "checkpoint", schema=SCHEMA)
    op.drop_column("training_run", "cursor", schema=SCHEMA)
