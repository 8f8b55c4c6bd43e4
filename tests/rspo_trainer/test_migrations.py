"""The schema: migrations go up and down, and make what the models say."""

from __future__ import annotations

from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from gr4ad_runtime.db import Database
from rspo_trainer.models import SCHEMA, Base
from sqlalchemy import Connection, inspect


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names(schema=SCHEMA)) - {"schema_version"}


def differences(connection: Connection) -> list[Any]:
    options = {
        "include_schemas": True,
        "version_table": "schema_version",
        "version_table_schema": SCHEMA,
        "compare_type": True,
        "include_name": lambda name, kind, parents: kind != "schema" or name == SCHEMA,
    }
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata))


async def test_migrations_go_up_and_down(database: Database) -> None:
    everything = {table.name for table in Base.metadata.sorted_tables}
    for _ in range(2):
        await database.migrate("rspo_trainer")
        async with database.engine.connect() as connection:
            assert await connection.run_sync(tables) == everything
        await database.revert("rspo_trainer")
        async with database.engine.connect() as connection:
            assert await connection.run_sync(tables) == set()


async def test_migrations_make_what_the_models_say(database: Database) -> None:
    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
