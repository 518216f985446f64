"""Connections beside the one that an operation was given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.pg.names import literal


def like(engine: Engine) -> Engine:
    """Return an engine that connects as ``engine`` does, with a pool of its own."""
    return sa.Engine(engine.pool.recreate(), engine.dialect, engine.url)


def search_also(engine: Engine, schema: str) -> None:
    """Let every connection of ``engine`` look for names in ``schema`` too, after all others."""

    @sa.event.listens_for(engine, "connect")
    def extend_search_path(driver: Any, _: object) -> None:
        cursor = driver.cursor()
        cursor.execute(f"SELECT set_config('search_path', {extended_path(schema)}, false)")
        cursor.close()
        driver.commit()

    engine.dispose()


def extended_path(schema: str) -> str:
    """Return an expression of SQL: the search path with ``schema`` at its end."""
    path = "nullif(current_setting('search_path'), '')"
    return f"concat_ws(', ', {path}, quote_ident({literal(schema)}))"


@contextmanager
def beside(connection: Connection) -> Iterator[Connection]:
    """Open a second session in AUTOCOMMIT, with the role and search path of this one; closed at the end."""
    carried = ("role", "search_path")
    values = {name: connection.execute(sa.select(sa.func.current_setting(name))).scalar_one() for name in carried}
    engine = like(connection.engine)
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as second:
            for name, value in values.items():
                second.execute(sa.select(sa.func.set_config(name, value, False)))
            yield second
    finally:
        engine.dispose()
