"""The estimate of what a run will take: time, read units, disk and memory."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backends.pinecone.limits import PAGE, read_units
from amprenta_vectors.backfill.database.index_plan import graph_bytes
from amprenta_vectors.schema.slice import Slice

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


def estimate(
    connection: Connection,
    slice_: Slice,
    count: int,
    *,
    from_source: bool,
    model: str | None,
) -> Estimate:
    """Estimate a run over the ``count`` records that the source has.

    The comparison reads the whole source once more. An HNSW build needs about 4·dimension + 700 bytes of memory a row.
    """
    table, target = slice_.table, slice_.rows
    empty = slice_.count_empty(connection)
    filled_where = slice_.embedding().is_not(None)
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
    vector_bytes = table.dimension * (4 if table.storage == "vector" else 2)
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
    )


def read_units_of(rows: int, *, listed: bool) -> int:
    """Return the read units that fetching ``rows`` rows costs, and listing them in pages of 100 if ``listed``."""
    if not rows:
        return 0
    return read_units("fetch", rows) + (-(-rows // PAGE) * read_units("list") if listed else 0)
