"""What the operations ask of the database's catalogue, and how they mark what they made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.errors import AmprentaError

MADE = "made by amprenta_vectors"
"""The comment on what an operation created. Only what bears it is ever dropped."""
RETIRED = "retired by amprenta_vectors at "
"""The comment on what a downgrade kept under a retired name, with the moment it did."""


def retired_name(name: str) -> str:
    """The name a column or table is kept under after a downgrade."""
    return _suffixed(name, "_retired")


def building_name(name: str) -> str:
    """The name that an index has until it is complete and marked as ours."""
    return _suffixed(name, "_building")


def _suffixed(name: str, suffix: str) -> str:
    """``name`` with ``suffix``, in at most 63 bytes, PostgreSQL's limit."""
    return name.encode()[: 63 - len(suffix)].decode(errors="ignore") + suffix


def connection_of(operations: Operations) -> Connection:
    """The live connection. Raises `AmprentaError` in offline mode, which needs one to look at what exists."""
    bind = operations.get_bind() if not operations.get_context().as_sql else None
    if bind is None:
        raise AmprentaError(
            "this revision looks at the database and cannot be written as SQL", hint="alembic upgrade head"
        )
    return bind


def commit_step(operations: Operations) -> None:
    """Commit what was done so far, so that its locks go; what follows must find its way if it is run again."""
    with operations.get_context().autocommit_block():
        pass


def quoted(*parts: str | None) -> str:
    """``parts`` as a dotted, quoted identifier, as ``to_regclass`` reads it; None parts are left out."""
    # SQLAlchemy's own quoting doubles percent signs for the driver, which a bound value must not have.
    return ".".join('"{}"'.format(part.replace('"', '""')) for part in parts if part)


def qualified(name: str, schema: str | None = None) -> str:
    """A name as a person types it: with its schema where one is given, quoted only where it must be."""
    # Not the driver's own dialect, which doubles percent signs.
    quote = PGDialect(paramstyle="named").identifier_preparer.quote  # type: ignore[no-untyped-call]
    return ".".join(quote(part) for part in (schema, name) if part)


def table_exists(connection: Connection, table: str, schema: str | None = None) -> bool:
    """Whether a relation of that name can be seen."""
    name = quoted(schema, table)
    return connection.execute(sa.text("SELECT to_regclass(:name)"), {"name": name}).scalar() is not None


def column_types(connection: Connection, table: str, schema: str | None = None) -> dict[str, str]:
    """The type of every column of ``table`` as SQL writes it, ``vector(1536)`` for instance; empty without a table."""
    rows = connection.execute(
        sa.text("""
            SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
            WHERE attrelid = to_regclass(:name) AND attnum > 0 AND NOT attisdropped ORDER BY attnum
        """),
        {"name": quoted(schema, table)},
    )
    return {row[0]: row[1] for row in rows}


def unique_column_sets(connection: Connection, table: str, schema: str | None = None) -> list[set[str]]:
    """The key columns of every unique index of ``table`` that ON CONFLICT can name: valid, whole and immediate."""
    rows = connection.execute(
        sa.text("""
            SELECT array_agg(a.attname::text) FROM pg_index i
            CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k (attnum, position)
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
            WHERE i.indrelid = to_regclass(:name) AND i.indisunique AND i.indisvalid AND i.indimmediate
              AND i.indpred IS NULL AND i.indexprs IS NULL AND k.position <= i.indnkeyatts
            GROUP BY i.indexrelid
        """),
        {"name": quoted(schema, table)},
    )
    return [set(row[0]) for row in rows]


def has_value(connection: Connection, table: str, column: str | None = None, schema: str | None = None) -> bool:
    """Whether ``table`` has a row, or a row whose ``column`` is not NULL."""
    rows = sa.select(sa.literal(1)).select_from(sa.table(table, schema=schema)).limit(1)
    if column is not None:
        rows = rows.where(sa.column(column).is_not(None))
    return connection.execute(rows).first() is not None


def comment_of(connection: Connection, table: str, column: str | None = None, schema: str | None = None) -> str:
    """The comment on a relation, or on its column; empty where there is none."""
    name = quoted(schema, table)
    if column is None:
        statement = sa.text("SELECT obj_description(to_regclass(:name), 'pg_class')")
    else:
        statement = sa.text("""
            SELECT col_description(attrelid, attnum) FROM pg_attribute
            WHERE attrelid = to_regclass(:name) AND attname = :column AND NOT attisdropped
        """).bindparams(column=column)
    return connection.execute(statement, {"name": name}).scalar() or ""


def is_retired(connection: Connection, table: str, column: str | None = None, schema: str | None = None) -> bool:
    """Whether a downgrade of ours left that table or column; one that merely has such a name is not ours to take."""
    return comment_of(connection, table, column, schema).startswith(RETIRED)


def mark(connection: Connection, described: str) -> None:
    """Comment that an object was made here, so that a downgrade may drop it; Alembic itself comments tables.

    ``described`` is what stands in COMMENT ON: ``INDEX "name"``.
    """
    # Not bound: a driver that leaves binding to the server cannot do it in a COMMENT.
    execute_as_written(connection, f"COMMENT ON {described} IS '{MADE}'")


def execute_as_written(connection: Connection, statement: str) -> None:
    """Run a statement in which no percent sign or colon stands for a parameter."""
    connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def sqlstate(error: DBAPIError) -> str | None:
    """The code that PostgreSQL gave the error, whichever driver an application uses."""
    return getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)


def other_sections(operations: Operations) -> list[str]:
    """The version tables of other sections that have revisions in this database."""
    connection = connection_of(operations)
    own = operations.get_context().version_table
    rows = connection.execute(
        sa.text("""
            SELECT relname FROM pg_class
            WHERE relkind = 'r' AND relname ~ '^amprenta_version_' AND relname <> :own AND pg_table_is_visible(oid)
            ORDER BY relname
        """),
        {"own": own},
    )
    return [name for (name,) in rows if has_value(connection, name)]
