"""Connections beside the one that an operation was given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine


def like(engine: Engine) -> Engine:
    """Return an engine that connects as ``engine`` does, with a pool of its own."""
    return sa.Engine(engine.pool.recreate(), engine.dialect, engine.url)


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
