"""Alembic without its boilerplate: a service ships `<package>/migrations/versions/*.py` and nothing else.

A change of the schema is one transaction under a lock, so that several processes may start at the same time and a
failed migration leaves nothing behind.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text
from sqlalchemy.schema import CreateSchema

from gr4ad_runtime.errors import FailedPreconditionError

Change = Callable[[Connection, str, str, str], None]

VERSION_TABLE = "schema_version"


def upgrade(connection: Connection, schema: str, package: str, target: str = "head") -> None:
    """Run the migrations from the schema's version up to `target`.

    Args:
        connection: In a transaction.
        schema: Made if missing; holds the version table.
        package: Package with the folder `migrations/versions`.
        target: A revision, or `head`.

    Raises:
        FailedPreconditionError: The package has no migrations, or the schema's version is none of theirs.
    """
    _run(connection, schema, package, target, up=True)


def downgrade(connection: Connection, schema: str, package: str, target: str = "base") -> None:
    """Run the migrations from the schema's version down to `target`; else as `upgrade`."""
    _run(connection, schema, package, target, up=False)


def current_version(connection: Connection, schema: str) -> str | None:
    """Return the schema's version; None for an empty schema."""
    context = MigrationContext.configure(
        connection, opts={"version_table": VERSION_TABLE, "version_table_schema": schema}
    )
    return context.get_current_revision()


def migrations_folder(package: str) -> Path:
    """Return the folder of a package's migrations.

    Raises:
        FailedPreconditionError: There is none.
    """
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        folder = Path(location) / "migrations"
        if (folder / "versions").is_dir():
            return folder
    raise FailedPreconditionError("package", package, "has no folder migrations/versions; install the service whole")


def _run(connection: Connection, schema: str, package: str, target: str, *, up: bool) -> None:
    folder = migrations_folder(package)
    # Migrations may take long, and so may waiting for another process that runs them.
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text("SET LOCAL lock_timeout = 0"))
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": f"gr4ad {schema}"})
    connection.execute(CreateSchema(schema, if_not_exists=True))
    script = ScriptDirectory(str(folder), version_locations=[str(folder / "versions")])
    version = current_version(connection, schema)
    known = {revision.revision for revision in script.walk_revisions()}
    if version is not None and version not in known:
        raise FailedPreconditionError(
            f"{schema}.{VERSION_TABLE}",
            version,
            f"not among the migrations of {package}; run the release that wrote it",
        )

    def steps(revision: Any, _context: MigrationContext) -> Any:
        return script._upgrade_revs(target, revision) if up else script._downgrade_revs(target, revision)

    with EnvironmentContext(Config(), script, fn=steps, destination_rev=target) as environment:
        environment.configure(
            connection=connection,
            version_table=VERSION_TABLE,
            version_table_schema=schema,
            # The transaction is the caller's.
            transactional_ddl=False,
        )
        environment.run_migrations()
