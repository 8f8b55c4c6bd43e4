"""The schema: migrations go up and down, and make what the models say."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from gr4ad_runtime.db import Database
from gr4ad_runtime.errors import FailedPreconditionError
from rspo_trainer.models import SCHEMA, Base
from rspo_trainer.policy_store import PolicyStore
from sqlalchemy import Connection, inspect, text


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


async def test_earlier_activations_go_back_to_the_one_before(database: Database) -> None:
    await database.revert("rspo_trainer", "0002")
    async with database.session() as session:
        for policy_id in ("one", "two"):
            values = {"policy_id": policy_id, "now": datetime.now(UTC)}
            await session.execute(
                text("INSERT INTO policy VALUES (:policy_id, DEFAULT, 'codebook', '', '', '{}', :now)"), values
            )
        await session.execute(text("INSERT INTO channel VALUES ('stable', 2, 'two')"))
        for seq, policy_id in enumerate(("one", "two"), start=1):
            values = {"seq": seq, "policy_id": policy_id, "now": datetime.now(UTC)}
            await session.execute(text("INSERT INTO activation VALUES ('stable', :seq, :policy_id, '', :now)"), values)
    await database.migrate("rspo_trainer")
    policies = PolicyStore(database)
    assert (await policies.roll_back("stable", "two", "")).policy_id == "one"
    with pytest.raises(FailedPreconditionError):
        await policies.roll_back("stable", "one", "")


async def test_migrations_make_what_the_models_say(database: Database) -> None:
    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
