"""What building an ANN index will take, so that it can be said before it begins."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.ddl.vector_index import suitable_lists
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.pg.errors import is_row_refusal, to_error
from amprenta_vectors.pg.types import IndexMethod, IndexStorage
from amprenta_vectors.schema.catalogue import relation
from amprenta_vectors.schema.expressions import to_clause
from amprenta_vectors.schema.vector_table import VectorTable

SECONDS_PER_VALUE = (0.4e-6, 2.5e-6)
"""Time of one core for each row and dimension of an HNSW index with m 16 and ef_construction 64: measured on 8 to 58
thousand rows of 128 to 1536 dimensions, text embeddings and random vectors, on an idle machine and a busy one
(docs/backfill.md). It grows with the logarithm of the rows."""
OVERHEAD_DIMENSIONS = 150
"""What a row costs beside its values, as dimensions."""
MEASURED_ROWS = 20_000
ON_DISK_FACTOR = (1.5, 10)
"""How much longer a build takes whose graph outgrows its memory: 1.6 measured where the page cache holds the index."""
PAGE_BYTES = 8192
WORKER_BYTES = 32 * 1024 * 1024
"""Of maintenance_work_mem for each process, else PostgreSQL starts fewer (plan_create_index_workers in planner.c)."""

_OPCLASS = re.compile(r"\b(vector|halfvec|bit)_\w+_ops\b")
_OPTION = re.compile(r"(m|ef_construction|lists)\s*=\s*'?(\d+)'?")
_DEFAULTS = {"m": 16, "ef_construction": 64, "lists": 100}

_SERVER = sa.text("""
    SELECT pg_size_bytes(current_setting('maintenance_work_mem')) AS memory,
           current_setting('max_parallel_maintenance_workers')::int AS workers,
           current_setting('max_parallel_workers')::int AS all_workers,
           current_setting('shared_buffers') AS shared_buffers,
           current_setting('effective_cache_size') AS effective_cache_size,
           pg_size_bytes(current_setting('min_parallel_table_scan_size')) AS parallel_from,
           pg_relation_size(to_regclass(:relation)) AS table_bytes,
           (SELECT option_value::int FROM pg_class c, pg_options_to_table(c.reloptions)
            WHERE c.oid = to_regclass(:relation) AND option_name = 'parallel_workers') AS table_workers
""")


@dataclass(frozen=True)
class BuildSettings:
    """What a build is given instead of the server's own: None leaves that as it is.

    ``maintenance_work_mem`` is as PostgreSQL writes sizes (``2GB``); ``workers`` work beside the session that builds.
    """

    maintenance_work_mem: str | None = None
    workers: int | None = None

    def apply(self, connection: Connection) -> None:
        """Set them for the session. Raises `ConfigError` for what PostgreSQL does not accept."""
        wanted = {"maintenance_work_mem": self.maintenance_work_mem, "max_parallel_maintenance_workers": self.workers}
        for name, value in wanted.items():
            if value is None:
                continue
            try:
                connection.execute(sa.select(sa.func.set_config(name, str(value), False)))
            except DBAPIError as error:
                if not is_row_refusal(error):
                    raise
                raise ConfigError(str(to_error(error, "setting up the build of the index"))) from None


@dataclass(frozen=True)
class BuildPlan:
    """What a build will take: sizes in bytes, ``seconds`` from fast to slow.

    ``memory_bytes`` is the ``maintenance_work_mem`` in force. ``workers`` are those that PostgreSQL is expected to
    start beside the session that builds; ``workers_limit`` says what keeps them from being more.
    """

    index: str
    target: str
    method: str
    rows: int
    dimension: int
    needed_bytes: int
    memory_bytes: int
    workers: int
    workers_limit: str
    seconds: tuple[float, float]
    disk_bytes: int
    shared_buffers: str
    effective_cache_size: str

    @property
    def fits(self) -> bool:
        """Whether it is built in memory."""
        return self.needed_bytes <= self.memory_bytes


Say = Callable[[BuildPlan], None]
"""Told of each build before it begins."""


@dataclass(frozen=True)
class Shape:
    """What of an index's definition decides what its build takes; ``options`` are those that are given."""

    method: IndexMethod
    options: Mapping[str, int]
    storage: IndexStorage

    @classmethod
    def of(cls, definition: str) -> Shape:
        """That of a CREATE INDEX statement."""
        options = {option: int(value) for option, value in _OPTION.findall(definition)}
        opclass = _OPCLASS.search(definition)
        storage = cast(IndexStorage, opclass[1]) if opclass else "vector"
        return cls("ivfflat" if "USING ivfflat" in definition else "hnsw", options, storage)

    def vector_bytes(self, dimension: int) -> int:
        """What the index keeps of one vector."""
        return -(-dimension // 8) if self.storage == "bit" else dimension * (2 if self.storage == "halfvec" else 4)

    def compared(self, dimension: int) -> int:
        """A comparison of two vectors in dimensions of a whole one: signs go 32 at a time."""
        return -(-dimension // 32) if self.storage == "bit" else dimension


def plan_build(connection: Connection, table: VectorTable, name: str, shape: Shape) -> BuildPlan:
    """The plan for building index ``name`` by the settings in force on ``connection``; counts the table's vectors."""
    server = connection.execute(_SERVER, {"relation": relation(table)}).one()
    target = to_clause(table)
    rows = connection.execute(sa.select(sa.func.count(target.c[table.embedding])).select_from(target)).scalar_one()
    method, options = shape.method, {**_DEFAULTS, **shape.options}
    options["lists"] = options["lists"] or suitable_lists(rows)
    vector_bytes = shape.vector_bytes(table.dimension)
    workers, limit = _workers(server)
    needed = _memory(method, rows, vector_bytes, table.dimension, options)
    return BuildPlan(
        index=name,
        target=table.target,
        method=method,
        rows=rows,
        dimension=table.dimension,
        needed_bytes=needed,
        memory_bytes=server.memory,
        workers=workers,
        workers_limit=limit,
        seconds=_seconds(method, rows, shape.compared(table.dimension), options, workers, fits=needed <= server.memory),
        disk_bytes=_disk(method, rows, vector_bytes, options["m"]),
        shared_buffers=server.shared_buffers,
        effective_cache_size=server.effective_cache_size,
    )


def graph_bytes(rows: int, vector_bytes: int, m: int = _DEFAULTS["m"]) -> int:
    """What an HNSW build keeps: a row's values, and 32 bytes for each of m beside 210 (as pgvector 0.8.5 takes)."""
    return rows * (vector_bytes + 210 + 32 * m)


def _memory(method: str, rows: int, vector_bytes: int, dimension: int, options: dict[str, int]) -> int:
    """ivfflat keeps 50 sampled rows a list, at least 10,000, their distances to each centre, and the centres.

    That is pgvector's ivfkmeans.c.
    """
    if method == "hnsw":
        return graph_bytes(rows, vector_bytes, options["m"])
    lists, samples = options["lists"], min(rows, max(10_000, 50 * options["lists"]))
    return samples * vector_bytes + 4 * (samples * lists + lists * lists + 3 * lists * dimension)


def _seconds(
    method: str, rows: int, dimension: int, options: dict[str, int], workers: int, *, fits: bool
) -> tuple[float, float]:
    """An ivfflat build compares each row with every centre; HNSW with some hundred others."""
    if method == "hnsw":
        care = options["m"] / 16 * options["ef_construction"] / 64
        work = rows * (dimension + OVERHEAD_DIMENSIONS) * care * max(1.0, math.log(max(rows, 2), MEASURED_ROWS))
    else:
        work = rows * dimension * options["lists"] / 1000
    fast, slow = (seconds * work / (workers + 1) for seconds in SECONDS_PER_VALUE)
    return (fast, slow) if fits else (fast * ON_DISK_FACTOR[0], slow * ON_DISK_FACTOR[1])


def _disk(method: str, rows: int, vector_bytes: int, m: int) -> int:
    """An element never spans pages, so that a vector of more than half a page has one to itself."""
    element = vector_bytes + (70 + 10 * m if method == "hnsw" else 24)
    return -(-rows // max(1, (PAGE_BYTES - 40) // element)) * PAGE_BYTES


def _workers(server: sa.Row[tuple[int, int, int, str, str, int, int, int | None]]) -> tuple[int, str]:
    """As PostgreSQL decides: by the table's size unless its parallel_workers is set, then by every limit."""
    by_table, reason = server.table_workers, "the table's parallel_workers"
    if by_table is None:
        share = server.table_bytes / max(server.parallel_from, 1)
        by_table, reason = (1 + int(math.log(share, 3)) if share >= 1 else 0), "the table's size"
    limits = {
        reason: by_table,
        "max_parallel_maintenance_workers": server.workers,
        "max_parallel_workers": server.all_workers,
        "32 MB of maintenance_work_mem for each": max(0, server.memory // WORKER_BYTES - 1),
    }
    limit = min(limits, key=lambda name: limits[name])
    return limits[limit], limit
