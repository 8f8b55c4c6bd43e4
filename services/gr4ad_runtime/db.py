"""PostgreSQL: transactions, migrations and notifications of one service in its own schema."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import psycopg
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from gr4ad_runtime.back_off import back_off
from gr4ad_runtime.database_errors import database_error
from gr4ad_runtime.errors import InvalidArgumentError
from gr4ad_runtime.log import get_logger
from gr4ad_runtime.migrations import Change, downgrade, upgrade

CONNECT_SECONDS = 5
LONGEST_RECONNECT_SECONDS = 2.0
_log = get_logger("db")


class Database:
    """A pool of connections to the schema of one service.

    Attributes:
        schema: The schema; unqualified names of tables mean those in it.
        engine: The SQLAlchemy engine below.
    """

    def __init__(
        self,
        url: str,
        schema: str,
        *,
        pool_size: int = 8,
        max_overflow: int = 8,
        pool_seconds: float = 10.0,
        statement_seconds: float = 30.0,
        lock_seconds: float = 10.0,
    ) -> None:
        """Describe the pool; the first use connects.

        Args:
            url: postgresql+psycopg://user:password@host:port/database.
            schema: The service's schema.
            pool_size: Connections kept open.
            max_overflow: Further connections under load.
            pool_seconds: Longest wait for a connection of the pool.
            statement_seconds: Longest time of a statement.
            lock_seconds: Longest wait for a lock.

        Raises:
            InvalidArgumentError: The URL is no PostgreSQL URL.
        """
        try:
            parsed = make_url(url)
        except ArgumentError as error:
            raise InvalidArgumentError("database_url", url, _URL_REMEDY) from error
        if parsed.get_backend_name() != "postgresql":
            raise InvalidArgumentError("database_url", parsed.render_as_string(), _URL_REMEDY)
        self.schema = schema
        self._url = parsed.set(drivername="postgresql+psycopg")
        self.engine = create_async_engine(
            self._url,
            pool_size=pool_size,
            max_overflow=max_overflow,
            pool_timeout=pool_seconds,
            # A restarted server leaves dead connections behind: one round trip finds them.
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": CONNECT_SECONDS,
                "application_name": f"gr4ad-{schema}",
                "options": (
                    f"-c search_path={schema} -c timezone=UTC -c statement_timeout={int(statement_seconds * 1000)}"
                    f" -c lock_timeout={int(lock_seconds * 1000)} -c idle_in_transaction_session_timeout=60000"
                ),
            },
        )
        self._sessions = async_sessionmaker(self.engine, expire_on_commit=False)

    @contextlib.asynccontextmanager
    async def session(self, *, isolation: str | None = None) -> AsyncIterator[AsyncSession]:
        """Open a transaction: committed at the end of the block, rolled back if the block raises.

        Args:
            isolation: Isolation level, such as `REPEATABLE READ`; None for the server's default.

        Raises:
            Gr4adError: As `database_errors.database_error` maps what the server said; violated constraints stay
                SQLAlchemy's IntegrityError.
        """
        try:
            async with self._sessions() as session, session.begin():
                if isolation is not None:
                    await session.connection(execution_options={"isolation_level": isolation})
                yield session
        except (DBAPIError, PoolTimeoutError, psycopg.Error) as error:
            mapped = database_error(error)
            if mapped is None:
                raise
            raise mapped from error

    async def migrate(self, package: str, target: str = "head") -> None:
        """Bring the schema up to `target` with the migrations in `package`; see `migrations.upgrade`."""
        await self._change_schema(upgrade, package, target)

    async def revert(self, package: str, target: str = "base") -> None:
        """Bring the schema down to `target`; see `migrations.downgrade`."""
        await self._change_schema(downgrade, package, target)

    async def _change_schema(self, change: Change, package: str, target: str) -> None:
        try:
            async with self.engine.begin() as connection:
                await connection.run_sync(change, self.schema, package, target)
        except (DBAPIError, PoolTimeoutError) as error:
            mapped = database_error(error)
            if mapped is None:
                raise
            raise mapped from error

    async def ping(self) -> None:
        """Ask the server for an answer.

        Raises:
            UnavailableError: It does not answer.
        """
        async with self.session() as session:
            await session.execute(text("SELECT 1"))

    async def notify(self, session: AsyncSession, channel: str, payload: str = "") -> None:
        """Wake the listeners of a channel once the session's transaction is committed."""
        await session.execute(text("SELECT pg_notify(:channel, :payload)"), {"channel": channel, "payload": payload})

    async def listen(self, channel: str, *, idle_seconds: float | None = None) -> AsyncIterator[str]:
        """Listen to a channel on a connection of its own; a lost one is opened again.

        Args:
            channel: Name of the channel.
            idle_seconds: Longest silence; None for no limit.

        Yields:
            The payload of each notification; an empty string after each (re)connection and after each silence, since
            notifications may have been missed.
        """
        attempt = 0
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(
                    self._url.set(drivername="postgresql").render_as_string(hide_password=False),
                    autocommit=True,
                    connect_timeout=CONNECT_SECONDS,
                    application_name=f"gr4ad-{self.schema}-listen",
                    keepalives_idle=10,
                    keepalives_interval=5,
                    keepalives_count=3,
                )
                async with connection:
                    await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))
                    attempt = 0
                    yield ""
                    while True:
                        heard = False
                        async for note in connection.notifies(timeout=idle_seconds, stop_after=1):
                            heard = True
                            yield note.payload
                        if not heard:
                            yield ""
            except psycopg.Error as error:
                wait_s = min(LONGEST_RECONNECT_SECONDS, 0.1 * 2.0**attempt)
                attempt = min(attempt + 1, 8)
                _log.warning("listening lost", channel=channel, reason=str(error).strip(), wait_s=round(wait_s, 3))
                await back_off(wait_s)

    async def close(self) -> None:
        """Close the pool."""
        await self.engine.dispose()


_URL_REMEDY = "give a PostgreSQL URL: postgresql+psycopg://user:password@host:port/database"
