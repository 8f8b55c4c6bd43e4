"""Attribution: whose list it is and when it was served; when a list was stored; whose response, and in which trace."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SCHEMA = "reward"


def upgrade() -> None:
    """Add the columns. Lists and places of before count as served and stored now, and belong to no user."""
    identifier = sa.Text(collation="C")
    time = sa.DateTime(timezone=True)

    def add(table: str, name: str, kind: sa.types.TypeEngine[str] | sa.DateTime, default: str) -> None:
        op.add_column(table, sa.Column(name, kind, nullable=False, server_default=sa.text(default)), schema=SCHEMA)

    add("served_list", "user_id", identifier, "''")
    add("served_list", "serve_time", time, "now()")
    op.create_index(
        "ix_served_list_user_id_serve_time",
        "served_list",
        ["user_id", "serve_time"],
        schema=SCHEMA,
        postgresql_where=sa.text("user_id <> ''"),
    )
    add("list_feed", "store_time", time, "clock_timestamp()")
    op.create_index("ix_list_feed_store_time", "list_feed", ["store_time"], schema=SCHEMA)
    add("impression", "traceparent", sa.Text(), "''")
    add("feedback", "user_id", identifier, "''")
    add("feedback", "traceparent", sa.Text(), "''")
    op.create_index(
        "ix_feedback_user_id", "feedback", ["user_id"], schema=SCHEMA, postgresql_where=sa.text("request_id = ''")
    )


def downgrade() -> None:
    """Drop the columns, and the responses that only a user's id ties to a list."""
    op.execute(f"DELETE FROM {SCHEMA}.feedback WHERE request_id = ''")
    for table, name in (
        ("feedback", "traceparent"),
        ("feedback", "user_id"),
        ("impression", "traceparent"),
        ("list_feed", "store_time"),
        ("served_list", "serve_time"),
        ("served_list", "user_id"),
    ):
        op.drop_column(table, name, schema=SCHEMA)
