"""Codebooks have a life: preparing, standby, active, retired.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCHEMA = "sid"


def upgrade() -> None:
    """Put a state in the place of the mark of the active one."""
    op.add_column("codebook", sa.Column("state", sa.Text(), nullable=True), schema=SCHEMA)
    op.execute("UPDATE sid.codebook SET state = CASE WHEN active THEN 'active' ELSE 'standby' END")
    op.alter_column("codebook", "state", nullable=False, schema=SCHEMA)
    op.create_check_constraint(
        "ck_codebook_state", "codebook", "state IN ('preparing', 'standby', 'active', 'retired')", schema=SCHEMA
    )
    op.drop_index("uq_codebook_active", "codebook", schema=SCHEMA)
    op.drop_column("codebook", "active", schema=SCHEMA)
    op.create_index(
        "uq_codebook_active",
        "codebook",
        ["state"],
        unique=True,
        postgresql_where=sa.text("state = 'active'"),
        schema=SCHEMA,
    )


def downgrade() -> None:
    """Bring the mark back; a codebook that is neither active nor standby cannot be told from a standby then."""
    op.add_column("codebook", sa.Column("active", sa.Boolean(), nullable=True), schema=SCHEMA)
    op.execute("UPDATE sid.codebook SET active = state = 'active'")
    op.alter_column("codebook", "active", nullable=False, schema=SCHEMA)
    op.drop_index("uq_codebook_active", "codebook", schema=SCHEMA)
    op.drop_column("codebook", "state", schema=SCHEMA)
    op.create_index(
        "uq_codebook_active", "codebook", ["active"], unique=True, postgresql_where=sa.text("active"), schema=SCHEMA
    )
