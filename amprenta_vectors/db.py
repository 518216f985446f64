"""Connections: the engine, the migration lock, and what the server must be."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, InvalidatePoolError, OperationalError

from amprenta_vectors.config import Settings
from amprenta_vectors.errors import AmprentaError, ConfigError, ServerUnsuitable
from amprenta_vectors.extras import require_extra
from amprenta_vectors.interrupts import INTERRUPTS
from amprenta_vectors.pg.errors import to_line
from amprenta_vectors.pg.poolers import is_pooled
from amprenta_vectors.tls import hosts_of, may_be_unencrypted

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

Driver = Literal["psycopg2", "psycopg", "asyncpg"]

COMMAND_SESSION = "amprenta_command"
"""The application_name of this package's commands; an application that uses its stores is ``amprenta_vectors``."""


class UnencryptedConnection(UserWarning):
    """A remote PostgreSQL is reached without TLS."""


def engine_url(settings: Settings, *, migrations: bool = False, reads: bool = False) -> URL:
    """Return the URL to connect by, TLS parameters included: ``DATABASE_URL``, else composed from ``POSTGRES_*``.

    With ``migrations``, ``MIGRATION_DATABASE_URL`` comes first, with ``reads`` ``READ_DATABASE_URL``. Raises
    `ConfigError` if none of them is set, or for a malformed URL. Contains the password: never log it.
    """
    secret, variable = settings.database_url, "DATABASE_URL"
    if migrations and settings.migration_database_url is not None:
        secret, variable = settings.migration_database_url, "MIGRATION_DATABASE_URL"
    if reads and settings.read_database_url is not None:
        secret, variable = settings.read_database_url, "READ_DATABASE_URL"
    url = _composed_url(settings) if secret is None else _parsed_url(secret.get_secret_value(), variable)
    return url.update_query_dict({name: value for name, value in settings.tls.items() if name not in url.query})


def _composed_url(settings: Settings) -> URL:
    host, password = settings.postgres_host, settings.postgres_password
    if host is None:
        raise ConfigError(
            "no database is configured: neither DATABASE_URL nor POSTGRES_HOST is set",
            hint="export DATABASE_URL=postgresql://user:password@host:5432/database",
        )
    socket = {"host": host, "port": str(settings.postgres_port)} if host.startswith("/") else {}
    return URL.create(
        "postgresql+psycopg2",
        username=settings.postgres_user,
        password=password.get_secret_value() if password is not None else None,
        host=None if socket else host,
        port=None if socket else settings.postgres_port,
        database=settings.postgres_db,
        query=socket,
    )


def _parsed_url(text: str, variable: str) -> URL:
    example = f"export {variable}=postgresql://user:password@host:5432/database"
    try:
        url = make_url(text)
        url.port  # noqa: B018 - a port that is no number is only noticed when read
    except (ArgumentError, ValueError):
        raise ConfigError(f"{variable} is not a database URL", hint=example) from None
    if url.drivername not in _DRIVERS:
        raise ConfigError(f"{variable} is of kind {url.drivername!r}; expected postgresql", hint=example)
    database = url.database or ""
    if (
        text.count("@") > 1
        or any("@" in host[1:] for host in hosts_of(url))
        or ("@" in database and f"/{database}" in text)
    ):
        # What stands before the last @ belongs to the password; it would be printed as part of a host's or database's
        # name.
        raise ConfigError(f"{variable} has an @ in its password or in a name", hint="write it as %40")
    return _as_libpq_reads_it(url)


_DRIVERS: dict[str, Driver | None] = {
    **dict.fromkeys(("postgres", "postgresql"), None),
    "postgresql+psycopg2": "psycopg2",
    **dict.fromkeys(("postgresql+psycopg", "postgresql+psycopg_async"), "psycopg"),
    "postgresql+asyncpg": "asyncpg",
}
"""The driver that each kind of URL names."""
_OF_ASYNCPG = ("prepared_statement_cache_size", "prepared_statement_name_func", "statement_cache_size")
"""Parameters that tune asyncpg's prepared statements, of which none is kept here."""


def _as_libpq_reads_it(url: URL) -> URL:
    """Return an application's URL with libpq's parameters alone: asyncpg has some of its own, and SSL by its name."""
    if _DRIVERS[url.drivername] == "asyncpg":
        ssl = {"sslmode": url.query["ssl"]} if "ssl" in url.query else {}
        url = url.difference_update_query([*_OF_ASYNCPG, "ssl"]).update_query_dict(ssl)
    return url.set(drivername="postgresql+psycopg2")


def named_driver(settings: Settings, *, reads: bool = False) -> Driver | None:
    """Return the driver that the URL to connect by names; None if it names none, or there is no URL."""
    secret = settings.read_database_url if reads and settings.read_database_url is not None else settings.database_url
    return None if secret is None else _DRIVERS.get(make_url(secret.get_secret_value()).drivername)


CONNECT_SECONDS = 10
_KEEPALIVES = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
"""A host that vanishes without a word is noticed in a minute, not in the hours that TCP takes by itself."""


def create_engine(
    settings: Settings,
    *,
    migrations: bool = False,
    reads: bool = False,
    application_name: str = "amprenta_vectors",
    ping_after_seconds: float = 0.0,
    driver: Literal["psycopg2", "psycopg"] = "psycopg2",
    **options: Any,
) -> sa.Engine:
    """Return an engine for ``settings``; nothing is connected yet.

    Prepared statements and session settings are not relied on, so the engine works behind PgBouncer. A connection that
    has waited for ``ping_after_seconds`` is tried before it is used again, and replaced if it is lost.
    """
    url = engine_url(settings, migrations=migrations, reads=reads)
    _warn_if_unencrypted(url, settings.postgres_sslmode)
    if driver == "psycopg":
        require_extra("psycopg", "async")
    engine = sa.create_engine(
        url.set(drivername=f"postgresql+{driver}"),
        connect_args=_libpq_arguments(driver, application_name),
        # Else each new connection asks the catalogue for a type that nothing here reads.
        use_native_hstore=False,
        **_pool_options(settings, ping_after_seconds, options),
    )
    sa.event.listen(engine, "connect", lambda driver, _: INTERRUPTS.connections.add(driver))
    if ping_after_seconds:
        _ping_after(engine, ping_after_seconds)
    return engine


def create_async_engine(
    settings: Settings,
    *,
    reads: bool = False,
    application_name: str = "amprenta_vectors",
    ping_after_seconds: float = 0.0,
    **options: Any,
) -> AsyncEngine:
    """Return an asynchronous engine for ``settings``, on psycopg 3 if the URL names it, else on asyncpg.

    It is as `create_engine` makes one: it works behind PgBouncer, and names no statement. Raises `MissingExtra`.
    """
    url = engine_url(settings, reads=reads)
    _warn_if_unencrypted(url, settings.postgres_sslmode)
    driver: Driver = "psycopg" if named_driver(settings, reads=reads) == "psycopg" else "asyncpg"
    require_extra(driver, "async")
    make: Any = require_extra("sqlalchemy.ext.asyncio", "async").create_async_engine
    if driver == "psycopg":
        arguments = _libpq_arguments(driver, application_name)
        options["use_native_hstore"] = False
    else:
        url, arguments = _asyncpg_arguments(url, application_name)
    engine: AsyncEngine = make(
        url.set(drivername=f"postgresql+{driver}"),
        connect_args=arguments,
        **_pool_options(settings, ping_after_seconds, options),
    )
    if ping_after_seconds:
        _ping_after(engine.sync_engine, ping_after_seconds)
    return engine


def _libpq_arguments(driver: Driver, application_name: str) -> dict[str, Any]:
    # psycopg 3 would name a statement that it has sent five times.
    unnamed = {"prepare_threshold": None} if driver == "psycopg" else {}
    return {**_KEEPALIVES, "connect_timeout": CONNECT_SECONDS, "application_name": application_name, **unnamed}


def _asyncpg_arguments(url: URL, application_name: str) -> tuple[URL, dict[str, Any]]:
    """Return the URL, and what is passed beside it: asyncpg reads libpq's parameters in a URL of its own alone."""
    places = {name: value for name, value in url.query.items() if name in ("host", "port")}
    others = {name: value for name, value in url.query.items() if name not in places}
    return url.set(query=places), {
        "dsn": URL.create("postgresql", query=others).render_as_string(hide_password=False),
        "timeout": CONNECT_SECONDS,
        "server_settings": {"application_name": application_name},
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
    }


def _pool_options(settings: Settings, ping_after_seconds: float, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "pool_size": settings.pool_size,
        "max_overflow": 2,
        "pool_pre_ping": not ping_after_seconds,
        # No error's text has vectors, texts or the operands of a filter.
        "hide_parameters": True,
        # The connection used last is used first: a few server processes stay warm, instead of all of them half so.
        "pool_use_lifo": True,
        **options,
    }


def _ping_after(engine: sa.Engine, seconds: float) -> None:
    """Ping a connection before it is used only if it has waited: a round trip is a good part of a short query."""

    @sa.event.listens_for(engine, "checkin")
    def note(_: Any, record: Any) -> None:
        record.info["idle_since"] = time.monotonic()

    @sa.event.listens_for(engine, "checkout")
    def ping(driver: Any, record: Any, _: Any) -> None:
        if time.monotonic() - record.info.get("idle_since", math.inf) > seconds:
            try:
                engine.dialect.do_ping(driver)
            except (engine.dialect.loaded_dbapi.Error, OSError):
                # What lost this one has most likely lost the others that wait.
                raise InvalidatePoolError from None


def _warn_if_unencrypted(url: URL, setting: str | None) -> None:
    # libpq reads its variables itself when it connects, so they are no settings.
    found = may_be_unencrypted(url, os.environ)
    if found is None:
        return
    hosts, mode = found
    # What the URL itself says comes before the setting.
    in_its_url = url.query.get("sslmode") not in (None, setting)
    mend = "write sslmode=verify-full into its URL" if in_its_url else "set POSTGRES_SSLMODE=verify-full"
    warnings.warn(
        f"the connection to {', '.join(hosts)} may be unencrypted (sslmode={mode}); {mend}",
        UnencryptedConnection,
        stacklevel=3,
    )


def check_connection(engine: sa.Engine) -> None:
    """Connect once. Raises `ConfigError` with libpq's own reason, never the password."""
    try:
        with engine.connect():
            pass
    except OperationalError as error:
        where = f"database {engine.url.database!r} at {', '.join(hosts_of(engine.url)) or 'the local socket'}"
        raise ConfigError(
            f"cannot connect to {where}: {to_line(error.orig)}",
            hint="check that the server runs and that DATABASE_URL names its host, port, database, user and password",
        ) from None


def check_direct(engine: sa.Engine) -> None:
    """Refuse to migrate through a pooler, on which session state and concurrent builds are not safe.

    Raises `ConfigError`, also if no connection can be made.
    """
    check_connection(engine)
    with engine.connect() as connection:
        if not is_pooled(connection):
            return
    raise ConfigError(
        "migrations reach PostgreSQL through a connection pooler; they need a direct connection",
        hint="export MIGRATION_DATABASE_URL=postgresql://user:password@host:5432/database",
    )


def check_may_migrate(engine: sa.Engine, version_table: str) -> None:
    """Raise `ServerUnsuitable` if nothing can be changed, or ``version_table`` is missing and may not be made."""
    with engine.connect() as connection:
        row = connection.execute(
            sa.text("""
                SELECT pg_is_in_recovery() AS standby, current_setting('transaction_read_only') = 'on' AS read_only,
                       current_user AS role, current_database() AS database, current_schema() AS schema,
                       to_regclass(:version_table) IS NULL
                           AND has_schema_privilege(current_schema(), 'CREATE') IS NOT TRUE AS forbidden
            """),
            {"version_table": version_table},
        ).one()
        quote = connection.dialect.identifier_preparer.quote
        role, database, schema = (quote(name) for name in (row.role, row.database, row.schema or "public"))
    if row.standby:
        raise ServerUnsuitable(
            "this server is a read-only standby", hint="point DATABASE_URL, or MIGRATION_DATABASE_URL, at the primary"
        )
    if row.read_only:
        raise ServerUnsuitable(
            f"role {row.role} may only read: default_transaction_read_only is on",
            hint=f"ALTER ROLE {role} IN DATABASE {database} SET default_transaction_read_only = off",
        )
    if row.forbidden:
        raise ServerUnsuitable(
            f"role {row.role} may not make tables in schema {row.schema or 'public'}",
            hint=f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {role}",
        )


MIGRATION_LOCK = 7230561180403327314
"""The advisory lock that one upgrade at a time holds; any number would do, this one is ours."""

_LOCK_HOLDER = sa.text("""
    SELECT pid FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND classid::bigint << 32 | objid::bigint = :lock
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
""")


@contextmanager
def migration_lock(engine: sa.Engine, timeout: float) -> Iterator[None]:
    """Hold the migration lock of this database, waiting up to ``timeout`` seconds for another upgrade.

    The lock is polled on a connection of its own: a blocking lock, or one on Alembic's connection, stands in the way of
    concurrent index builds. It goes with the connection, so a killed upgrade frees it. Raises `AmprentaError` when time
    runs out.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("SET idle_session_timeout = 0"))
        try_lock = sa.select(sa.func.pg_try_advisory_lock(MIGRATION_LOCK))
        deadline = time.monotonic() + timeout
        while not connection.execute(try_lock).scalar_one():
            if time.monotonic() > deadline:
                holder = connection.execute(_LOCK_HOLDER, {"lock": MIGRATION_LOCK}).scalar()
                raise AmprentaError(
                    f"another migration of this database has run for more than {timeout:.0f} s"
                    + (f" (pid {holder})" if holder else ""),
                    hint="wait for it, or raise AMPRENTA_MIGRATION_LOCK_TIMEOUT",
                )
            time.sleep(0.2)
        try:
            yield
        finally:
            # The lock goes with its session, even if the server is gone.
            connection.invalidate()


def name_database(connection: sa.Connection) -> dict[str, str | int | None]:
    """Return the database that a report is about: its name, and the host and port by which it was reached."""
    driver: Any = connection.connection.dbapi_connection
    name: str = connection.execute(sa.select(sa.func.current_database())).scalar_one()
    return {"name": name, "host": driver.info.host or "the local socket", "port": driver.info.port}
