"""The queries that stores are compared on: a user's file, recorded ones, or ones made from stored vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from amprenta_vectors.errors import AmprentaError, ConfigError
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.comparison import perturbed
from amprenta_vectors.stores.filters.language import parse_filter
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Filter
from amprenta_vectors.stores.vectors import to_query_vector

_FIELDS = {"vector", "filter"}
_FORM = 'one JSON object a line: {"vector": [0.1, …], "filter": {…}}, the filter optional; or .npy, one row a query'

_RECORDED = sa.text("""
    SELECT query, filter FROM shadow_query WHERE cardinality(query) = :dimension ORDER BY id DESC LIMIT :most
""")


@dataclass(frozen=True, eq=False)
class Query:
    """A query to compare stores on; ``vector`` is ``(dimension,)`` float32."""

    vector: NDArray[np.float32]
    filter: Filter | None = None


def queries_of_file(path: Path, table: VectorTable, most: int | None) -> list[Query]:
    """Return the first ``most`` queries of a file, or all: JSON lines, or ``.npy`` of shape ``(n, dimension)``.

    Raises `ConfigError` naming the line, or the row, that is no query.
    """
    rows = _rows_of_npy(path) if path.suffix == ".npy" else _rows_of_lines(path)
    queries: list[Query] = []
    for place, vector, asked_filter in rows:
        if len(queries) == most:
            break
        try:
            asked = to_query_vector(vector, table.dimension, cosine=table.distance == "cosine")
            if asked_filter:
                parse_filter(asked_filter)
        except AmprentaError as error:
            raise ConfigError(f"{path}, {place}: {error.message}", hint=_FORM) from None
        queries.append(Query(asked, asked_filter or None))
    if not queries:
        raise ConfigError(f"{path} has no query", hint=_FORM)
    return queries


def recorded_queries(connection: Connection, table: VectorTable, most: int) -> list[Query]:
    """Return the latest ``most`` queries, of the table's dimension, that ``VECTOR_MODE=shadow`` recorded.

    Raises `ConfigError` if there are none.
    """
    rows = connection.execute(_RECORDED, {"dimension": table.dimension, "most": most})
    queries = [Query(np.array(row.query, dtype=np.float32), row.filter) for row in rows]
    if not queries:
        raise ConfigError(
            f"no query of {table.dimension} dimensions is recorded",
            hint="VECTOR_MODE=shadow in the application records them; or --from stored, or --from FILE",
        )
    return queries


def stored_queries(store: PgVectorStore, most: int, seed: int) -> list[Query]:
    """Return at most ``most`` stored vectors, each moved a little, so that no row equals it.

    Raises `ConfigError` if there are none.
    """
    vectors = store.sample(most, seed=seed)
    # Under cosine a zero vector is stored and has no direction to ask for.
    vectors = vectors[np.any(vectors, axis=1)]
    if not len(vectors):
        raise ConfigError("there is no stored vector to make queries of", hint="run the backfill, or --from FILE")
    return [Query(vector) for vector in perturbed(vectors, seed=seed)]


def _rows_of_npy(path: Path) -> Iterator[tuple[str, Any, Filter | None]]:
    try:
        matrix = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as .npy: {error}", hint=_FORM) from None
    if matrix.ndim != 2:
        raise ConfigError(f"{path} has shape {matrix.shape}; expected (queries, dimension)", hint=_FORM)
    for number, row in enumerate(matrix):
        yield f"row {number}", row, None


def _rows_of_lines(path: Path) -> Iterator[tuple[str, Any, Filter | None]]:
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"line {number}", *_of_line(f"{path}, line {number}", line)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", hint="--from FILE, --from shadow or --from stored"
        ) from None


def _of_line(place: str, line: str) -> tuple[Any, Filter | None]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        raise ConfigError(f"{place} is no JSON", hint=_FORM) from None
    if not isinstance(found, Mapping) or "vector" not in found or found.keys() - _FIELDS:
        raise ConfigError(f"{place} is no query", hint=_FORM)
    asked_filter = found.get("filter")
    if asked_filter is not None and not isinstance(asked_filter, Mapping):
        raise ConfigError(f"{place}: the filter is no object", hint=_FORM)
    return found["vector"], asked_filter
