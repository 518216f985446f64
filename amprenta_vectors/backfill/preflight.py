"""What must hold before a run: privileges, columns, and figures for what it will cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.planner import count_empty
from amprenta_vectors.errors import SchemaMismatch, ServerUnsuitable
from amprenta_vectors.schema.catalogue import columns_to_fill, relation
from amprenta_vectors.schema.expressions import to_clause
from amprenta_vectors.schema.vector_table import VectorTable

LISTED_PER_SECOND = 20_000
"""Pinecone lists 100 ids a page at 200 pages a second and index (its published limits)."""
LISTED_IN_TURN_PER_SECOND = 2_000
"""What listing comes to where a page takes 50 ms: pages are asked for one after another."""
FETCHED_PER_SECOND = 100_000
"""Pinecone fetches 1000 ids at 100 requests a second and index (its published limits)."""
WRITTEN_PER_SECOND = (4_000, 20_000)
"""Rows of 1536 dimensions this package writes, on a small and on a fast server; docs/performance.md has the figures."""
ROW_OVERHEAD_BYTES = 60


def check_target(connection: Connection, table: VectorTable, *, insert: bool) -> None:
    """Raises `ServerUnsuitable` for a missing privilege, `SchemaMismatch` for a column that an insert cannot fill."""
    name = relation(table)
    row = connection.execute(
        sa.text("""
            SELECT has_table_privilege(:name, 'SELECT') AS "SELECT", has_table_privilege(:name, 'UPDATE') AS "UPDATE",
                   has_table_privilege(:name, 'INSERT') AS "INSERT",
                   has_database_privilege(current_database(), 'TEMP') AS "TEMP",
                   pg_is_in_recovery() AS standby, row_security_active(:name) AS row_security
        """),
        {"name": name},
    ).one()
    if row.standby:
        raise ServerUnsuitable("this server is a read-only standby", hint="point DATABASE_URL at the primary")
    if row.row_security:
        raise ServerUnsuitable(
            f"row security hides rows of {table.qualified_name} from this role",
            hint="connect as the table's owner, or as a role with BYPASSRLS",
        )
    needed = ["SELECT", "UPDATE", *(["INSERT"] if insert else [])]
    lacking = [privilege for privilege in needed if not row._mapping[privilege]]
    if lacking:
        raise ServerUnsuitable(
            f"this role lacks {', '.join(lacking)} on {table.qualified_name}",
            hint=f"GRANT {', '.join(lacking)} ON {name} TO the role in DATABASE_URL",
        )
    if not row.TEMP:
        raise ServerUnsuitable(
            "this role may not make temporary tables", hint="GRANT TEMP ON DATABASE to the role in DATABASE_URL"
        )
    unfilled = columns_to_fill(connection, table) if insert else []
    if unfilled:
        raise SchemaMismatch(
            f"rows cannot be inserted into {table.qualified_name}: no value for NOT NULL {', '.join(unfilled)}",
            hint="--keys-from table, or give those columns a default",
        )


@dataclass(frozen=True)
class Estimate:
    """What a run will take; times in seconds, sizes in bytes."""

    rows: int
    empty_rows: int
    filled_rows: int
    other_models: tuple[str, ...]
    seconds: tuple[float, float]
    read_units: int
    disk_bytes: int
    index_build_bytes: int


def estimate(
    connection: Connection,
    table: VectorTable,
    scope: Mapping[str, str],
    count: int,
    *,
    from_source: bool,
    model: str | None,
) -> Estimate:
    """Figures for a run of ``count`` records at the source.

    Read units: 1 a list page of 100, 1 per 10 vectors fetched (Pinecone's pricing). An HNSW build needs about
    4·dimension + 700 bytes of memory a row.
    """
    empty = count_empty(connection, table, scope)
    target = to_clause(table)
    filled_where = target.c[table.embedding].is_not(None)
    filled = connection.execute(sa.select(sa.func.count()).select_from(target).where(filled_where)).scalar_one()
    others: tuple[str, ...] = ()
    if table.model is not None and model is not None:
        column = target.c[table.model]
        statement = sa.select(column).select_from(target).where(filled_where, column != model).distinct().limit(5)
        others = tuple(connection.execute(statement).scalars())
    rows = count if from_source else min(count, empty)
    read = (LISTED_IN_TURN_PER_SECOND, LISTED_PER_SECOND) if from_source else (FETCHED_PER_SECOND, FETCHED_PER_SECOND)
    scale = 1536 / table.dimension
    slow, fast = (rows / min(most, rate * scale) for most, rate in zip(read, WRITTEN_PER_SECOND, strict=True))
    return Estimate(
        rows=rows,
        empty_rows=empty,
        filled_rows=filled,
        other_models=others,
        seconds=(fast, slow),
        read_units=-(-rows // 10) + (-(-rows // 100) if from_source else 0),
        disk_bytes=rows * (table.dimension * (4 if table.storage == "vector" else 2) + ROW_OVERHEAD_BYTES),
        index_build_bytes=(rows + filled) * (4 * table.dimension + 700),
    )
