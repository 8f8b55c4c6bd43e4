from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from textwrap import dedent

import psycopg
import pytest
from gr4ad_runtime.database_errors import database_error
from gr4ad_runtime.db import Database
from gr4ad_runtime.errors import (
    AbortedError,
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    Gr4adError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from gr4ad_runtime.migrations import current_version
from gr4ad_tools.embedded_postgres import EmbeddedPostgres
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, ProgrammingError


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url, "sample", pool_size=2, max_overflow=0, pool_seconds=0.2, statement_seconds=0.5)
    async with opened.session() as session:
        await session.execute(text("CREATE SCHEMA sample"))
        await session.execute(text("CREATE TABLE ad (ad_id text PRIMARY KEY)"))
    yield opened
    await opened.close()


async def count(database: Database) -> int:
    async with database.session() as session:
        return int((await session.execute(text("SELECT count(*) FROM sample.ad"))).scalar_one())


async def test_a_session_is_a_transaction(database: Database) -> None:
    async with database.session() as session:
        await session.execute(text("INSERT INTO ad VALUES ('a')"))
        assert await count(database) == 0
    assert await count(database) == 1
    with pytest.raises(KeyError):
        async with database.session() as session:
            await session.execute(text("INSERT INTO ad VALUES ('b')"))
            raise KeyError
    assert await count(database) == 1


async def test_a_snapshot_stands_still(database: Database) -> None:
    query = text("SELECT count(*) FROM ad")
    async with database.session(isolation="REPEATABLE READ") as session:
        before = (await session.execute(query)).scalar_one()
        async with database.session() as other:
            await other.execute(text("INSERT INTO ad VALUES ('a')"))
        assert (await session.execute(query)).scalar_one() == before == 0
    assert await count(database) == 1


@pytest.mark.parametrize(
    ("state", "kind", "remedy"),
    [
        ("53100", ResourceExhaustedError, "no disk space for the database: free some"),
        ("53200", ResourceExhaustedError, "repeat the call later"),
        ("53300", ResourceExhaustedError, "repeat the call later"),
        ("40001", AbortedError, "repeat the call"),
        ("40P01", AbortedError, "repeat the call"),
        ("55P03", AbortedError, "repeat the call"),
        ("58030", DataLossError, "restore it"),
        ("XX001", DataLossError, "restore it"),
        ("57P03", UnavailableError, "repeat the call"),
        ("08006", UnavailableError, "repeat the call"),
    ],
)
async def test_what_the_server_says_becomes_an_error_with_a_remedy(
    database: Database, state: str, kind: type[Gr4adError], remedy: str
) -> None:
    raised_by_server = f"DO $$ BEGIN RAISE EXCEPTION 'the server said so' USING ERRCODE = '{state}'; END $$"
    with pytest.raises(kind, match=remedy) as raised:
        async with database.session() as session:
            await session.execute(text("INSERT INTO ad VALUES ('a')"))
            await session.execute(text(raised_by_server))
    assert str(raised.value).startswith("database: the server said so")
    assert await count(database) == 0


async def test_constraints_and_wrong_statements_are_left_to_the_caller(database: Database) -> None:
    with pytest.raises(IntegrityError):
        async with database.session() as session:
            await session.execute(text("INSERT INTO ad VALUES ('a'), ('a')"))
    with pytest.raises(ProgrammingError):
        async with database.session() as session:
            await session.execute(text("SELECT * FROM nowhere"))
    assert database_error(ValueError("not of the database")) is None


async def test_statements_and_waits_are_bounded(database: Database) -> None:
    with pytest.raises(DeadlineExceededError, match="took too long"):
        async with database.session() as session:
            await session.execute(text("SELECT pg_sleep(5)"))
    async with database.session() as first, database.session() as second:
        for session in (first, second):
            await session.execute(text("SELECT 1"))
        with pytest.raises(ResourceExhaustedError, match="no free connection"):
            await database.ping()


async def test_locks_are_not_waited_for_without_end(database_url: str, database: Database) -> None:
    impatient = Database(database_url, "sample", lock_seconds=0.1)
    async with database.session() as session:
        await session.execute(text("LOCK TABLE ad"))
        with pytest.raises(AbortedError):
            async with impatient.session() as other:
                await other.execute(text("SELECT count(*) FROM ad"))
    await impatient.close()


async def test_a_lost_connection_is_replaced(database: Database, postgres_server: EmbeddedPostgres) -> None:
    await database.ping()
    with pytest.raises(UnavailableError):
        async with database.session() as session:
            pid = (await session.execute(text("SELECT pg_backend_pid()"))).scalar_one()
            _terminate(postgres_server, "pid = %s", pid)
            await session.execute(text("SELECT 1"))
    await database.ping()


async def test_a_server_that_is_down_is_told(tmp_path: Path) -> None:
    for url in ("postgresql+psycopg://user:hush@127.0.0.1:1/x", f"postgresql+psycopg://u@/x?host={tmp_path}"):
        database = Database(url, "sample")
        with pytest.raises(UnavailableError, match="GR4AD_DATABASE_URL") as raised:
            await database.ping()
        assert "hush" not in str(raised.value)
        await database.close()


async def test_an_unknown_database_is_told(postgres_server: EmbeddedPostgres) -> None:
    database = Database(postgres_server.url("nowhere"), "sample")
    with pytest.raises(UnavailableError, match='database "nowhere" does not exist'):
        await database.ping()
    await database.close()


@pytest.mark.parametrize("url", ["", "sqlite:///x.db", "nonsense", "mysql://u@h/d"])
def test_only_postgresql_will_do(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^database_url: .*postgresql\+psycopg"):
        Database(url, "sample")


async def heard(database: Database, channel: str, payloads: list[str], idle: float | None = None) -> None:
    async for payload in database.listen(channel, idle_seconds=idle):
        payloads.append(payload)


async def until(payloads: list[str], size: int) -> None:
    async with asyncio.timeout(10.0):
        while len(payloads) < size:
            await asyncio.sleep(0.01)


async def notify(database: Database, payload: str) -> None:
    async with database.session() as session:
        await database.notify(session, "changes", payload)


async def test_a_commit_wakes_the_listeners(database: Database) -> None:
    payloads: list[str] = []
    listening = asyncio.create_task(heard(database, "changes", payloads))
    await until(payloads, 1)
    with pytest.raises(KeyError):
        async with database.session() as session:
            await database.notify(session, "changes", "rolled back")
            raise KeyError
    start = time.monotonic()
    for payload in ("1", "2", "3"):
        await notify(database, payload)
    await until(payloads, 4)
    assert time.monotonic() - start < 1.0
    assert payloads == ["", "1", "2", "3"]
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


async def test_listening_goes_on_after_a_lost_connection(database: Database, postgres_server: EmbeddedPostgres) -> None:
    payloads: list[str] = []
    listening = asyncio.create_task(heard(database, "changes", payloads))
    await until(payloads, 1)
    _terminate(postgres_server, "application_name = %s", "gr4ad-sample-listen")
    await until(payloads, 2)
    await notify(database, "after")
    await until(payloads, 3)
    assert payloads == ["", "", "after"]
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


async def test_silence_wakes_as_well(database: Database) -> None:
    payloads: list[str] = []
    listening = asyncio.create_task(heard(database, "changes", payloads, 0.05))
    await until(payloads, 4)
    assert set(payloads) == {""}
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


def _terminate(server: EmbeddedPostgres, condition: str, value: object) -> None:
    with psycopg.connect(server.url().replace("+psycopg", ""), autocommit=True) as connection:
        query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {condition}"
        assert connection.execute(query, (value,)).fetchall()


FIRST = """
    from alembic import op
    import sqlalchemy as sa

    revision = "0001"
    down_revision = None

    def upgrade():
        op.create_table("thing", sa.Column("thing_id", sa.Text, primary_key=True), schema="sample")

    def downgrade():
        op.drop_table("thing", schema="sample")
"""
SECOND = """
    from alembic import op
    import sqlalchemy as sa

    revision = "0002"
    down_revision = "0001"

    def upgrade():
        op.add_column("thing", sa.Column("size", sa.Integer), schema="sample")

    def downgrade():
        op.drop_column("thing", "size", schema="sample")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with two migrations, importable by the name `migrated_sample`."""
    versions = tmp_path / "migrated_sample" / "migrations" / "versions"
    versions.mkdir(parents=True)
    (tmp_path / "migrated_sample" / "__init__.py").touch()
    (versions / "0001_thing.py").write_text(dedent(FIRST))
    (versions / "0002_size.py").write_text(dedent(SECOND))
    monkeypatch.syspath_prepend(tmp_path)
    return versions


@pytest.fixture
async def empty(database_url: str) -> AsyncIterator[Database]:
    opened = Database(database_url, "sample")
    yield opened
    await opened.close()


async def version(database: Database) -> str | None:
    async with database.engine.connect() as connection:
        return await connection.run_sync(current_version, "sample")


async def columns(database: Database) -> list[str]:
    query = "SELECT column_name FROM information_schema.columns WHERE table_schema = 'sample' AND table_name = 'thing'"
    async with database.session() as session:
        return sorted((await session.execute(text(query))).scalars())


async def test_migrations_go_up_and_down(empty: Database, package: Path) -> None:
    await empty.migrate("migrated_sample")
    assert (await version(empty), await columns(empty)) == ("0002", ["size", "thing_id"])
    await empty.migrate("migrated_sample")  # nothing left to do
    await empty.revert("migrated_sample", "0001")
    assert (await version(empty), await columns(empty)) == ("0001", ["thing_id"])
    await empty.revert("migrated_sample")
    assert (await version(empty), await columns(empty)) == (None, [])
    await empty.migrate("migrated_sample", "0001")
    assert (await version(empty), await columns(empty)) == ("0001", ["thing_id"])


async def test_processes_that_start_together_migrate_once(database_url: str, package: Path) -> None:
    databases = [Database(database_url, "sample") for _ in range(4)]
    await asyncio.gather(*(database.migrate("migrated_sample") for database in databases))
    assert await columns(databases[0]) == ["size", "thing_id"]
    for database in databases:
        await database.close()


async def test_a_failed_migration_leaves_nothing_behind(empty: Database, package: Path) -> None:
    path = package / "0002_size.py"
    path.write_text(path.read_text().replace("op.add_column(", 'op.execute("SELECT 1 / 0"); op.add_column('))
    with pytest.raises(Exception, match="division by zero"):
        await empty.migrate("migrated_sample")
    assert (await version(empty), await columns(empty)) == (None, [])


async def test_an_older_release_refuses_a_newer_schema(empty: Database, package: Path) -> None:
    await empty.migrate("migrated_sample")
    (package / "0002_size.py").unlink()
    with pytest.raises(FailedPreconditionError, match=r"sample\.schema_version: 0002: not among"):
        await empty.migrate("migrated_sample")


async def test_a_package_without_migrations_is_named(empty: Database) -> None:
    with pytest.raises(FailedPreconditionError, match="^package: gr4ad_core: "):
        await empty.migrate("gr4ad_core")
