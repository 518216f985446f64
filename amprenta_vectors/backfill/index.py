"""The ANN index around a load: put off while the column is empty, built once when the last run is done."""

from __future__ import annotations

import logging
import time

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import OperationalError, ProgrammingError

from amprenta_vectors.backfill import progress
from amprenta_vectors.db import sqlstate
from amprenta_vectors.schema.catalogue import relation
from amprenta_vectors.schema.vector_table import VectorTable

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5

_ANN_INDEXES = sa.text("""
    SELECT c.relname AS name, n.nspname AS schema, pg_get_indexdef(i.indexrelid) AS definition,
           obj_description(i.indexrelid, 'pg_class') AS comment
    FROM pg_index i
    JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_am am ON am.oid = c.relam
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname = :column
    WHERE i.indrelid = to_regclass(:relation) AND am.amname IN ('hnsw', 'ivfflat') AND EXISTS (
        SELECT 1 FROM pg_depend d
        WHERE d.objid = i.indexrelid AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum
    )
    ORDER BY c.relname
""")


def column_is_empty(connection: Connection, table: VectorTable) -> bool:
    """Whether no row at all, of any scope, has an embedding."""
    statement = (
        sa.select(sa.literal(1))
        .select_from(sa.table(table.table, schema=table.schema))
        .where(sa.column(table.embedding).is_not(None))
        .limit(1)
    )
    return connection.execute(statement).first() is None


def defer_indexes(engine: Engine, table: VectorTable, *, force: bool = False) -> list[str]:
    """Drop the column's ANN indexes and record them for `build_deferred`; returns their names.

    Only where the column holds no value, unless ``force``. Record and drop are one transaction. Where the role does
    not own the table, or the lock is not had in 2 seconds, the index stays: a slower load, never a failed one.
    """
    with engine.connect() as connection:
        if not (force or column_is_empty(connection, table)):
            return []
        found = connection.execute(_ANN_INDEXES, {"relation": relation(table), "column": table.embedding}).all()
    deferred = []
    for index in found:
        try:
            with engine.begin() as connection:
                connection.execute(sa.text("SET LOCAL lock_timeout = '2s'"))
                progress.defer_index(connection, table.target, index.name, index.definition, index.comment)
                connection.exec_driver_sql("DROP INDEX " + _quoted(connection, index.schema, index.name))
        except (OperationalError, ProgrammingError) as error:
            if sqlstate(error) not in {"55P03", "42501"}:
                raise
            log.warning("index %s stays in place during the load: %s", index.name, str(error.orig).strip())
            continue
        deferred.append(index.name)
    return deferred


def build_deferred(engine: Engine, table: VectorTable) -> list[str]:
    """Build what was deferred, concurrently and without time-outs, then ANALYZE; returns the names built.

    Safe from several processes at once and after an interrupted build: an invalid leftover is dropped, an index being
    built elsewhere is waited for.
    """
    built = []
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for index in progress.deferred_indexes(connection, table.target):
            _build(connection, table, index.index_name, index.definition, index.comment)
            progress.index_built(connection, table.target, index.index_name)
            built.append(index.index_name)
        if built:
            connection.exec_driver_sql("ANALYZE " + relation(table))
    return built


def _build(connection: Connection, table: VectorTable, name: str, definition: str, comment: str | None) -> None:
    quoted = _quoted(connection, table.schema, name)
    create = definition.replace("CREATE INDEX ", "CREATE INDEX CONCURRENTLY IF NOT EXISTS ", 1)
    while (state := _state(connection, quoted)) != "valid":
        if state == "building":
            time.sleep(POLL_SECONDS)
        elif state == "invalid":
            connection.exec_driver_sql("DROP INDEX CONCURRENTLY IF EXISTS " + quoted)
        else:
            connection.exec_driver_sql(create)
    if comment is not None:
        statement = "COMMENT ON INDEX " + quoted.replace("%", "%%") + " IS %(comment)s"
        connection.exec_driver_sql(statement, {"comment": comment})


def _state(connection: Connection, quoted: str) -> str:
    row = connection.execute(
        sa.text("""
            SELECT i.indisvalid AS valid, EXISTS (
                SELECT 1 FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid
            ) AS building
            FROM pg_index i WHERE i.indexrelid = to_regclass(:name)
        """),
        {"name": quoted},
    ).first()
    if row is None:
        return "absent"
    if row.valid:
        return "valid"
    return "building" if row.building else "invalid"


def _quoted(connection: Connection, schema: str | None, name: str) -> str:
    quote = connection.dialect.identifier_preparer.quote_identifier
    return ".".join(quote(part) for part in (schema, name) if part)
