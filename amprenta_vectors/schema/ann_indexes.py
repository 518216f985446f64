"""The vector indexes of a column, and which of them searches use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from sqlalchemy.engine import Connection

from amprenta_vectors.pg.indexes import Index, indexes_of
from amprenta_vectors.pg.types import IndexMethod, IndexStorage
from amprenta_vectors.schema.models import MODEL_SCOPE
from amprenta_vectors.schema.vector_table import VectorTable


@dataclass(frozen=True)
class Serving:
    """The index that searches are written for, with the indexes like it that PostgreSQL may use for the same search."""

    storage: IndexStorage
    methods: frozenset[IndexMethod]
    lists: int | None


def ann_indexes(connection: Connection, table: VectorTable) -> list[Index]:
    """Return every vector index of the column on a relation that holds rows, partitions among them, by name."""
    found = indexes_of(connection, table.table, table.schema)
    return [index for index in found if index.is_ann and not index.partitioned and table.embedding in index.columns]


def serving(table: VectorTable, indexes: Sequence[Index], scope: Mapping[str, str] | None = None) -> Serving | None:
    """Return what searches of ``table`` use of ``indexes``; None if no index serves.

    With ``scope``, a partial index serves whose predicate says that the rows are of its model, and before another.
    Of several kinds the one built last is used, so that a second index serves before the first one is dropped.
    """
    of_model = {f"{MODEL_SCOPE} = {scope[MODEL_SCOPE]}"} if scope and MODEL_SCOPE in scope else set()
    able = [index for index in indexes if index.valid and index.fits(table.distance) and index.predicate in of_model]
    able = able or [index for index in indexes if index.serves(table.distance)]
    if not able:
        return None
    chosen = max(able, key=lambda index: index.oid).storage
    alike = [index for index in able if index.storage == chosen]
    lists = [index.lists for index in alike if index.lists is not None]
    assert chosen is not None  # noqa: S101 - one that serves has a storage
    return Serving(chosen, frozenset(cast(IndexMethod, index.method) for index in alike), max(lists, default=None))
