"""The estimate of what a run will take: time, read units, disk and memory."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backends.pinecone.limits import PAGE, read_units
from amprenta_vectors.backfill.database.index import column_is_empty
from amprenta_vectors.backfill.database.index_plan import Shape, graph_bytes, plan_build
from amprenta_vectors.backfill.progress.indexes import deferred_indexes
from amprenta_vectors.pg.tables import table_of
from amprenta_vectors.schema.ann_indexes import ann_indexes
from amprenta_vectors.schema.slice import Slice
from amprenta_vectors.schema.vector_table import VectorTable

LISTED_PER_SECOND = 20_000
"""Pinecone lists 100 ids a page at 200 pages a second and index (its published limits)."""
LISTED_IN_TURN_PER_SECOND = 2_000
"""The ids listed per second if a page takes 50 ms: pages are asked for one after another."""
FETCHED_PER_SECOND = 100_000
"""Pinecone fetches 1000 ids at 100 requests a second and index (its published limits)."""
WRITTEN_PER_SECOND = (4_000, 20_000)
"""Rows of 1536 dimensions this package writes, on a small and on a fast server; docs/performance.md has the figures."""
ROW_OVERHEAD_BYTES = 60


@dataclass(frozen=True)
class Estimate:
    """The estimate of a run: times in seconds, sizes in bytes."""

    rows: int
    empty_rows: int
    filled_rows: int
    other_models: tuple[str, ...]
    seconds: tuple[float, float]
    read_units: int
    comparison_read_units: int
    disk_bytes: int
    index_build_bytes: int
    index_seconds: tuple[float, float]
    absent_here: int
    """The records of the source for which the table has no row, at least: a run by the table's keys leaves them out."""
    absent_there: int
    """The rows to be filled for which the source has no record, at least: they are quarantined."""


def estimate(
    connection: Connection,
    slice_: Slice,
    count: int,
    *wanted: sa.ColumnElement[bool],
    from_source: bool,
    model: str | None,
    limit: int | None = None,
    builds_index: bool = True,
    defers_index: bool = False,
) -> Estimate:
    """Estimate a run over the ``count`` records that the source has, at most ``limit`` of them, into rows ``wanted``.

    The comparison reads the whole source once more. An HNSW build needs about 4·dimension + 700 bytes of memory a row.
    """
    table, target = slice_.table, slice_.rows
    empty = slice_.count_empty(connection, *wanted)
    filled_where = slice_.embedding().is_not(None)
    filled = connection.execute(sa.select(sa.func.count()).select_from(target).where(filled_where)).scalar_one()
    others: tuple[str, ...] = ()
    if table.model is not None and model is not None:
        column = target.c[table.model]
        statement = sa.select(column).select_from(target).where(filled_where, column != model).distinct().limit(5)
        others = tuple(connection.execute(statement).scalars())
    rows = min(count if from_source else min(count, empty), count if limit is None else limit)
    read = (LISTED_IN_TURN_PER_SECOND, LISTED_PER_SECOND) if from_source else (FETCHED_PER_SECOND, FETCHED_PER_SECOND)
    scale = 1536 / table.dimension
    slow, fast = (rows / min(most, rate * scale) for most, rate in zip(read, WRITTEN_PER_SECOND, strict=True))
    vector_bytes = table.dimension * (4 if table.storage == "vector" else 2)
    here = connection.execute(sa.select(sa.func.count()).select_from(target).where(filled_where, *slice_.in_scope()))
    new = max(0, rows - here.scalar_one()) if from_source else rows
    indexes = _to_build(connection, table, every=defers_index) if builds_index else []
    builds = [plan_build(connection, table, name, Shape.of(definition), new) for name, definition in indexes]
    return Estimate(
        rows=rows,
        empty_rows=empty,
        filled_rows=filled,
        other_models=others,
        seconds=(fast, slow),
        read_units=read_units_of(rows, listed=from_source),
        comparison_read_units=read_units_of(count, listed=True),
        disk_bytes=rows * (vector_bytes + ROW_OVERHEAD_BYTES),
        index_build_bytes=graph_bytes(rows + filled, vector_bytes),
        index_seconds=(sum(each.seconds[0] for each in builds), sum(each.seconds[1] for each in builds)),
        absent_here=0 if from_source else max(0, count - empty - filled),
        absent_there=0 if from_source else max(0, empty - count),
    )


def _to_build(connection: Connection, table: VectorTable, *, every: bool) -> list[tuple[str, str]]:
    """Return name and definition of each index that the run builds: deferred by now, or by the run itself.

    A run defers the indexes of a column without a value, and of any if it is told to; none of a partitioned table.
    """
    found = table_of(connection, table.table, table.schema)
    deferred = [(index.index_name, index.definition) for index in deferred_indexes(connection, table.target)]
    if found is None or found.partitioned or not (every or column_is_empty(connection, table)):
        return deferred
    return [*deferred, *((index.name, index.definition) for index in ann_indexes(connection, table))]


def read_units_of(rows: int, *, listed: bool) -> int:
    """Return the read units that fetching ``rows`` rows costs, and listing them in pages of 100 if ``listed``."""
    if not rows:
        return 0
    return read_units("fetch", rows) + (-(-rows // PAGE) * read_units("list") if listed else 0)
