"""An index of a model as PostgreSQL would write it down, so that two are compared by what they are."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection
from sqlalchemy.schema import CreateIndex

from amprenta_vectors.pg.indexes import Index, index_of
from amprenta_vectors.pg.names import quoted


def index_if_built(connection: Connection, index: sa.Index) -> Index:
    """Return how PostgreSQL would write down ``index`` of a model, had it been built on the table that exists.

    It is: on an empty temporary copy of the table, within a savepoint that is rolled back. Nothing else knows that
    ``state IN ('a', 'b')`` is the same predicate as ``state = ANY (ARRAY['a'::text, 'b'::text])``. Raises SQLAlchemy's
    `DBAPIError` where it cannot be built.
    """
    table = index.table
    assert table is not None and index.name is not None  # noqa: S101, PT018 - an index of a table in a model has both
    # Parameters of this style leave percent signs alone, as does a statement without any.
    dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
    create = CreateIndex(index).compile(
        dialect=dialect, schema_translate_map={table.schema: "pg_temp"}, render_schema_translate=True
    )
    options = {"no_parameters": True}
    savepoint = connection.begin_nested()
    try:
        connection.exec_driver_sql(
            f"CREATE TEMPORARY TABLE {quoted(table.name)} (LIKE {quoted(table.schema, table.name)})",
            execution_options=options,
        )
        connection.exec_driver_sql(create.string.replace("INDEX CONCURRENTLY", "INDEX", 1), execution_options=options)
        built = index_of(connection, index.name, "pg_temp")
    finally:
        savepoint.rollback()
    assert built is not None  # noqa: S101 - it was just made
    return built
