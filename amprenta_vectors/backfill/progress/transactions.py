"""Short transactions on the progress tables, and the check that those exist."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.errors import NotUpgraded
from amprenta_vectors.sections import upgrade_command

_SHORT = sa.text("""
    SELECT set_config('lock_timeout', '10s', true), set_config('statement_timeout', '1min', true),
           set_config('idle_in_transaction_session_timeout', '10s', true)
""")
_SHORT_AND_LOST = sa.text(f"{_SHORT.text.rstrip()}, set_config('synchronous_commit', 'off', true)")


@contextmanager
def transaction(engine: Engine, *, durable: bool = True) -> Iterator[Connection]:
    """Open a short transaction on the progress tables.

    The server ends it if its client is stopped midway, so that nobody waits for a process that does not move. What is
    not ``durable`` does not wait for the disk either: a crash of the server may lose it, with all that was committed
    after it.
    """
    with engine.begin() as connection:
        connection.execute(_SHORT if durable else _SHORT_AND_LOST)
        yield connection


def require_tables(connection: Connection) -> None:
    """Raise `NotUpgraded` if the progress tables do not exist."""
    if connection.execute(sa.text("SELECT to_regclass('migration_run')")).scalar() is None:
        raise NotUpgraded("the database has no table migration_run", hint=upgrade_command(connection))


def serialize_starts(connection: Connection, target: str) -> None:
    """Let one process at a time decide, until the transaction's end, which run into ``target`` it works on."""
    connection.execute(
        sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:target, 7230561180403327))"), {"target": target}
    )
