"""Policies, training runs, channels and their activations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = "training"


def upgrade() -> None:
    """Create the tables."""
    identifier = sa.Text(collation="C")
    time = sa.DateTime(timezone=True)
    op.create_table(
        "policy",
        sa.Column("policy_id", identifier, nullable=False),
        sa.Column("number", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("codebook_id", identifier, nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("metrics", JSONB(), nullable=False),
        sa.Column("create_time", time, nullable=False),
        sa.PrimaryKeyConstraint("policy_id", name="pk_policy"),
        sa.UniqueConstraint("number", name="uq_policy_number"),
        schema=SCHEMA,
    )
    op.create_table(
        "training_run",
        sa.Column("run_id", identifier, nullable=False),
        sa.Column("number", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("request_id", identifier, nullable=False),
        sa.Column("request", sa.LargeBinary(), nullable=False),
        sa.Column("traceparent", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("total_steps", sa.BigInteger(), nullable=False),
        sa.Column("loss_steps", sa.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("loss_values", sa.ARRAY(sa.Double()), nullable=False),
        sa.Column("metrics", JSONB(), nullable=False),
        sa.Column("policy_id", identifier, nullable=True),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("create_time", time, nullable=False),
        sa.Column("end_time", time, nullable=True),
        sa.PrimaryKeyConstraint("run_id", name="pk_training_run"),
        sa.UniqueConstraint("number", name="uq_training_run_number"),
        sa.UniqueConstraint("request_id", name="uq_training_run_request_id"),
        sa.ForeignKeyConstraint(["policy_id"], [f"{SCHEMA}.policy.policy_id"], name="fk_training_run_policy"),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="ck_training_run_state"
        ),
        schema=SCHEMA,
    )
    op.create_table(
        "channel",
        sa.Column("channel", identifier, nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("policy_id", identifier, nullable=False),
        sa.PrimaryKeyConstraint("channel", name="pk_channel"),
        sa.ForeignKeyConstraint(["policy_id"], [f"{SCHEMA}.policy.policy_id"], name="fk_channel_policy"),
        schema=SCHEMA,
    )
    op.create_table(
        "activation",
        sa.Column("channel", identifier, nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("policy_id", identifier, nullable=False),
        sa.Column("traceparent", sa.Text(), nullable=False),
        sa.Column("activate_time", time, nullable=False),
        sa.PrimaryKeyConstraint("channel", "seq", name="pk_activation"),
        sa.ForeignKeyConstraint(["channel"], [f"{SCHEMA}.channel.channel"], name="fk_activation_channel"),
        sa.ForeignKeyConstraint(["policy_id"], [f"{SCHEMA}.policy.policy_id"], name="fk_activation_policy"),
        schema=SCHEMA,
    )


def downgrade() -> None:
    """Drop the tables and all that is in them."""
    for table in ("activation", "channel", "training_run", "policy"):
        op.drop_table(table, schema=SCHEMA)
