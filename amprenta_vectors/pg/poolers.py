"""Whether a pooler is between a connection and PostgreSQL, and what a driver must not do behind one."""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy as sa

from amprenta_vectors.errors import ConfigError


def is_pooled(connection: sa.Connection) -> bool:
    """Return whether a pooler is between this client and PostgreSQL.

    A pooler answers the start of a session with a process id of its own making; the server itself knows the real one.
    """
    driver: Any = connection.connection.driver_connection
    real: int = connection.execute(sa.select(sa.func.pg_backend_pid())).scalar_one()
    told = driver.get_server_pid() if connection.dialect.driver == "asyncpg" else driver.info.backend_pid
    return bool(told != real)


def check_unnamed(connection: sa.Connection) -> None:
    """Refuse a driver that names its statements behind a pooler, where the next one meets another server process.

    Raises `ConfigError`. psycopg 2 names none.
    """
    driver: Any = connection.connection.driver_connection
    match connection.dialect.driver:
        case "psycopg" | "psycopg_async":
            names, mend = driver.prepare_threshold is not None, 'connect_args={"prepare_threshold": None}'
        case "asyncpg":
            names, mend = (
                _names_its_statements(connection),
                ('connect_args={"statement_cache_size": 0, "prepared_statement_cache_size": 0}'),
            )
        case _:
            return
    if names and is_pooled(connection):
        raise ConfigError(
            "a connection pooler is between this engine and PostgreSQL, and the engine names its prepared statements, "
            "which another client would meet",
            hint=f"create_async_engine(…, {mend})" if connection.dialect.is_async else f"create_engine(…, {mend})",
        )


def _names_its_statements(connection: sa.Connection) -> bool:
    """Return whether PostgreSQL holds this very statement by a name that the driver gave it, and no pooler."""
    mark = uuid.uuid4().hex
    own = sa.text(
        "SELECT EXISTS (SELECT FROM pg_prepared_statements "  # noqa: S608 - digits of our own
        f"WHERE strpos(statement, '{mark}') > 0 AND name NOT LIKE 'PGBOUNCER%')"
    )
    return bool(connection.execute(own).scalar_one())
