"""Rows into a table by COPY, in the transaction of a session."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncSession

from sid_assigner.models import SCHEMA


async def copy_rows(
    session: AsyncSession, table: str, columns: Sequence[str], rows: Iterable[Sequence[object]]
) -> None:
    """Append rows to a table; one that a constraint refuses fails the transaction.

    Args:
        session: Its transaction gets the rows.
        table: Table of the schema.
        columns: Names of the columns.
        rows: Values in the order of the columns.

    Raises:
        psycopg.Error: The database refused; the errors of SQLAlchemy are for its own statements.
    """
    pooled = await (await session.connection()).get_raw_connection()
    driver: psycopg.AsyncConnection[Any] = pooled.driver_connection  # type: ignore[assignment]
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(SCHEMA, table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    async with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for row in rows:
            await copy.write_row(row)
