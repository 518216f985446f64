"""The beginning of a script: for which database it is, and a check of that."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.migration import MigrationContext
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import refuse_unless
from amprenta_vectors.pg.names import compose, literal, qualified
from amprenta_vectors.pg.tables import table_of

_HEADER = """\
-- For a database at {start}, as {known}; psql -X -v ON_ERROR_STOP=1 -f THIS_FILE, on a direct connection, not with -1.
-- A transaction that meets another state fails and changes nothing; then print the rest again, for that database.
\\set ON_ERROR_STOP on"""


def begin_script(context: MigrationContext) -> None:
    """Write where ``context``, configured to write SQL, begins, and a check that the database is there.

    Call it in an ``env.py``, before ``run_migrations``.
    """
    heads = context.get_current_heads()
    connection: Connection | None = context.opts.get("amprenta_connection")
    write = context.impl.static_output
    known = "it was when this was printed" if connection is not None else "docs/offline.md says"
    write(_HEADER.format(start=", ".join(heads) or "base", known=known))
    table = qualified(context.version_table, context.version_table_schema)
    if heads:
        is_at = "{head} IN (SELECT version_num FROM {table})"
        at = " AND ".join(compose(is_at, head=literal(head), table=table) for head in heads)
        write(refuse_unless(at, f"{table} says {', '.join(heads)}") + ";")
    elif connection is not None and table_of(connection, context.version_table, context.version_table_schema):
        context.impl.memo["amprenta_version_table"] = context.version_table
        empty = compose("NOT EXISTS (SELECT FROM {table})", table=table)
        write(refuse_unless(empty, f"{table} is empty") + ";")


def heads_of(connection: Connection, version_table: str) -> list[str]:
    """Return the revisions that a database is at; an empty list at base."""
    if table_of(connection, version_table) is None:
        return []
    versions = sa.table(version_table, sa.column("version_num"))
    return list(connection.execute(sa.select(versions).order_by("version_num")).scalars())
