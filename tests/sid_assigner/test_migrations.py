"""The schema: migrations go up and down, and make what the models say."""

from __future__ import annotations

from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from gr4ad_runtime.db import Database
from sid_assigner.models import SCHEMA, Base
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError


async def tables(database: Database) -> set[str]:
    async with database.session() as session:
        names = await session.scalars(
            text("SELECT table_name FROM information_schema.tables WHERE table_schema = :schema"), {"schema": SCHEMA}
        )
        return set(names) - {"schema_version"}


async def test_up_down_up(database: Database) -> None:
    everything = {table.name for table in Base.metadata.sorted_tables}
    assert await tables(database) == everything
    await database.migrate("sid_assigner")  # up to date already
    await database.revert("sid_assigner")
    assert await tables(database) == set()
    await database.migrate("sid_assigner")
    assert await tables(database) == everything


async def test_the_migrations_make_what_the_models_say(database: Database) -> None:
    def differences(connection: Connection) -> list[Any]:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "version_table": "schema_version",
                "version_table_schema": SCHEMA,
                "compare_type": True,
                "include_name": lambda name, kind, parents: kind != "schema" or name == SCHEMA,
            },
        )
        return list(compare_metadata(context, Base.metadata))

    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_one_codebook_at_most_is_active_and_a_sid_has_one_ad(database: Database) -> None:

    async def run(*statements: str) -> None:
        async with database.session() as session:
            for statement in statements:
                await session.execute(text(statement))

    codebook = "INSERT INTO sid.codebook VALUES ('{}', '{{2,2}}', 4, '', now(), 'active')"
    with pytest.raises(IntegrityError, match="uq_codebook_active"):
        await run(codebook.format("a"), codebook.format("b"))
    await run(codebook.format("a"))
    ad = "INSERT INTO sid.ad VALUES ('{}', '', '', '{{}}', '', '', 'product', 'click', 0, 'active', NULL, now(), now())"
    sid = "INSERT INTO sid.ad_sid VALUES ('a', '{}', '{{1}}', 0)"
    with pytest.raises(IntegrityError, match="uq_ad_sid_sid"):
        await run(ad.format("x"), ad.format("y"), sid.format("x"), sid.format("y"))
