"""The plan of an ANN index build: what it will take, so that a person can be told before it starts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.pg.errors import is_row_refusal, to_error
from amprenta_vectors.pg.ivfflat import suitable_lists
from amprenta_vectors.pg.types import IndexMethod, IndexStorage
from amprenta_vectors.schema.catalogue import relation
from amprenta_vectors.schema.expressions import to_clause
from amprenta_vectors.schema.vector_table import VectorTable

SECONDS_PER_VALUE = (0.4e-6, 2.5e-6)
"""Seconds of one core per row and dimension of an HNSW index with m 16 and ef_construction 64: measured on 8 to 58
thousand rows of 128 to 1536 dimensions, text embeddings and random vectors, on an idle machine and a busy one
(docs/backfill.md). It grows with the logarithm of the rows."""
OVERHEAD_DIMENSIONS = 150
"""The cost of a row beside its values, counted in dimensions."""
MEASURED_ROWS = 20_000
ON_DISK_FACTOR = (1.5, 10)
"""A build whose graph outgrows its memory takes this many times longer; 1.6 was measured with the index in the page
cache."""
PAGE_BYTES = 8192
WORKER_BYTES = 32 * 1024 * 1024
"""The maintenance_work_mem that each process needs, else PostgreSQL starts fewer (plan_create_index_workers in
planner.c)."""

_OPCLASS = re.compile(r"\b(vector|halfvec|bit)_\w+_ops\b")
_OPTION = re.compile(r"(m|ef_construction|lists)\s*=\s*'?(\d+)'?")
_TOKEN = re.compile(r"""[()]|"(?:[^"]|"")*"|'(?:[^']|'')*'|[^()"']+""")
"""A name or string in quotes may hold what looks like a clause."""
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
    """The settings of a build that replace the server's own; None leaves the server's own in force.

    ``maintenance_work_mem`` is as PostgreSQL writes sizes (``2GB``); ``workers`` work beside the session that builds.
    """

    maintenance_work_mem: str | None = None
    workers: int | None = None

    def apply(self, connection: Connection) -> None:
        """Apply the settings to the session. Raises `ConfigError` for a value that PostgreSQL does not accept."""
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
    """The plan of a build: sizes in bytes, ``seconds`` from fast to slow.

    ``memory_bytes`` is the ``maintenance_work_mem`` in force. ``workers`` is the number that PostgreSQL is expected to
    start beside the session that builds; ``workers_limit`` names the setting or size that limits it.
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
        """Whether the index is built in memory."""
        return self.needed_bytes <= self.memory_bytes


Say = Callable[[BuildPlan], None]
"""A callback that is given the plan of each build before the build starts."""


@dataclass(frozen=True)
class Shape:
    """The parts of an index's definition that decide what its build takes; ``options`` has only those it states."""

    method: IndexMethod
    options: Mapping[str, int]
    storage: IndexStorage

    @classmethod
    def of(cls, definition: str) -> Shape:
        """Return the shape of the index that a CREATE INDEX statement defines."""
        clauses = _Clauses.of(definition)
        options = {option: int(value) for option, value in _OPTION.findall(clauses.options)}
        opclass = _OPCLASS.search(clauses.columns)
        storage = cast(IndexStorage, opclass[1]) if opclass else "vector"
        return cls("ivfflat" if clauses.head.endswith(" USING ivfflat ") else "hnsw", options, storage)

    @property
    def lists(self) -> int | None:
        """The lists of an ivfflat index; None for any other."""
        return self.options.get("lists", _DEFAULTS["lists"]) if self.method == "ivfflat" else None

    def vector_bytes(self, dimension: int) -> int:
        """Return the bytes that the index keeps of one vector."""
        return -(-dimension // 8) if self.storage == "bit" else dimension * (2 if self.storage == "halfvec" else 4)

    def compared(self, dimension: int) -> int:
        """Return what comparing two vectors costs, counted in float dimensions: signs are compared 32 at a time."""
        return -(-dimension // 32) if self.storage == "bit" else dimension


def with_lists(definition: str, lists: int) -> str:
    """Return the CREATE INDEX statement of an ivfflat index with so many lists, its only option."""
    clauses = _Clauses.of(definition)
    return f"{clauses.head}{clauses.columns} WITH (lists='{lists}'){clauses.rest}"


@dataclass(frozen=True)
class _Clauses:
    """A CREATE INDEX statement as `pg_get_indexdef` writes it, cut in four; ``options`` is empty if it has none."""

    head: str
    columns: str
    options: str
    rest: str

    @classmethod
    def of(cls, definition: str) -> _Clauses:
        begin = depth = 0
        groups: list[slice] = []
        for token in _TOKEN.finditer(definition):
            if token[0] == "(":
                begin, depth = (begin if depth else token.start()), depth + 1
            elif token[0] == ")":
                depth -= 1
                if depth == 0:
                    groups.append(slice(begin, token.end()))
        columns = groups[0]
        end = columns.stop
        if len(groups) > 1 and definition[columns.stop : groups[1].start] == " WITH ":
            end = groups[1].stop
        return cls(definition[: columns.start], definition[columns], definition[columns.stop : end], definition[end:])


def plan_build(connection: Connection, table: VectorTable, name: str, shape: Shape, to_come: int = 0) -> BuildPlan:
    """Plan the build of index ``name`` under the settings in force on ``connection``.

    It counts the table's vectors, and ``to_come`` more that are not in it yet.
    """
    server = connection.execute(_SERVER, {"relation": relation(table)}).one()
    target = to_clause(table)
    found = connection.execute(sa.select(sa.func.count(target.c[table.embedding])).select_from(target)).scalar_one()
    rows = found + to_come
    method, options = shape.method, {**_DEFAULTS, **shape.options}
    options["lists"] = options["lists"] or suitable_lists(rows)
    vector_bytes = shape.vector_bytes(table.dimension)
    workers, limit = _workers(server, server.table_bytes + to_come * vector_bytes)
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
    """Return the bytes of memory that an HNSW build needs: per row its values, 210, and 32 for each of m.

    The figures are pgvector 0.8.5's.
    """
    return rows * (vector_bytes + 210 + 32 * m)


def _memory(method: str, rows: int, vector_bytes: int, dimension: int, options: dict[str, int]) -> int:
    """Return the bytes of memory that a build needs.

    An ivfflat build keeps 50 sampled rows a list, at least 10,000, their distances to each centre, and the centres
    (pgvector's ivfkmeans.c).
    """
    if method == "hnsw":
        return graph_bytes(rows, vector_bytes, options["m"])
    lists, samples = options["lists"], min(rows, max(10_000, 50 * options["lists"]))
    return samples * vector_bytes + 4 * (samples * lists + lists * lists + 3 * lists * dimension)


def _seconds(
    method: str, rows: int, dimension: int, options: dict[str, int], workers: int, *, fits: bool
) -> tuple[float, float]:
    """Return the fast and the slow estimate: ivfflat compares a row with every centre, HNSW with some hundred rows."""
    if method == "hnsw":
        care = options["m"] / 16 * options["ef_construction"] / 64
        work = rows * (dimension + OVERHEAD_DIMENSIONS) * care * max(1.0, math.log(max(rows, 2), MEASURED_ROWS))
    else:
        work = rows * dimension * options["lists"] / 1000
    fast, slow = (seconds * work / (workers + 1) for seconds in SECONDS_PER_VALUE)
    return (fast, slow) if fits else (fast * ON_DISK_FACTOR[0], slow * ON_DISK_FACTOR[1])


def _disk(method: str, rows: int, vector_bytes: int, m: int) -> int:
    """Return the bytes on disk: no element spans pages, so a vector of more than half a page has one to itself."""
    element = vector_bytes + (70 + 10 * m if method == "hnsw" else 24)
    return -(-rows // max(1, (PAGE_BYTES - 40) // element)) * PAGE_BYTES


def _workers(server: sa.Row[tuple[int, int, int, str, str, int, int, int | None]], table_bytes: int) -> tuple[int, str]:
    """Return how many workers PostgreSQL will start on a table of that size, and what limits them.

    PostgreSQL goes by the table's size unless its parallel_workers is set, then by every limit.
    """
    by_table, reason = server.table_workers, "the table's parallel_workers"
    if by_table is None:
        share = table_bytes / max(server.parallel_from, 1)
        by_table, reason = (1 + int(math.log(share, 3)) if share >= 1 else 0), "the table's size"
    limits = {
        reason: by_table,
        "max_parallel_maintenance_workers": server.workers,
        "max_parallel_workers": server.all_workers,
        "32 MB of maintenance_work_mem for each": max(0, server.memory // WORKER_BYTES - 1),
    }
    limit = min(limits, key=lambda name: limits[name])
    return limits[limit], limit
