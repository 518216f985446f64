"""The rows of a product table: the columns shown with a hit, and the rows that wait for an embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.pg.types import parse_sized
from amprenta_vectors.schema.catalogue import columns_of
from amprenta_vectors.schema.expressions import among, to_clause
from amprenta_vectors.schema.key_values import canonical
from amprenta_vectors.schema.vector_table import VectorTable

ACTIVE, NAME = "active", "name"
"""The columns that every product table has: whether a product is sold, and what it is called."""


@dataclass(frozen=True)
class Coverage:
    """How many active products there are, and how many of them have an embedding."""

    products: int
    embedded: int

    @property
    def missing(self) -> int:
        """The number of active products without an embedding, which no search finds."""
        return self.products - self.embedded

    @property
    def share(self) -> float:
        """The share of active products with an embedding, 0 to 1; 1 if there are no products."""
        return self.embedded / self.products if self.products else 1.0


@dataclass(frozen=True)
class Named:
    """A product as a message names it."""

    id: str
    name: str | None


def coverage(connection: Connection, table: VectorTable) -> Coverage:
    """Return how many active products there are, and how many have an embedding."""
    target = _products(table)
    counts = sa.select(sa.func.count(), sa.func.count(target.c[table.embedding])).where(target.c[ACTIVE])
    return Coverage(*connection.execute(counts).one())


def without_embedding(connection: Connection, table: VectorTable, limit: int) -> list[Named]:
    """Return the first ``limit`` active products without an embedding, by key."""
    target = _products(table)
    key = target.c[table.key[0]]
    wanted = sa.select(sa.cast(key, sa.Text), target.c[NAME]).where(
        target.c[ACTIVE], target.c[table.embedding].is_(None)
    )
    return [Named(*row) for row in connection.execute(wanted.order_by(key).limit(limit))]


def spot_check(connection: Connection, table: VectorTable, products: int) -> list[tuple[Named, bool]]:
    """Return some active products with an embedding, chosen by chance, and whether its length is not zero."""
    target = _products(table)
    embedding = target.c[table.embedding]
    norm = sa.func.vector_norm(embedding) if table.storage == "vector" else sa.func.l2_norm(embedding)
    some = (
        sa.select(sa.cast(target.c[table.key[0]], sa.Text), target.c[NAME], norm > 0)
        .where(target.c[ACTIVE], embedding.is_not(None))
        .order_by(sa.func.random())
        .limit(products)
    )
    return [(Named(key, name), bool(valid)) for key, name, valid in connection.execute(some)]


def filled_by_id(connection: Connection, table: VectorTable, ids: Sequence[str]) -> dict[str, bool]:
    """Return whether each product among ``ids`` has an embedding; an id without a product is left out."""
    target = _products(table)
    key = target.c[table.key[0]]
    typed = [spelled for given in ids if (spelled := canonical(given, table.column_types[table.key[0]])) is not None]
    found = sa.select(sa.cast(key, sa.Text), target.c[table.embedding].is_not(None)).where(
        among(table, target, table.key[0], typed)
    )
    return {row[0]: row[1] for row in connection.execute(found)}


def active_rows(connection: Connection, table: VectorTable, ids: Sequence[str]) -> Mapping[str, dict[str, Any]]:
    """Return the rows of active products by id: every column but vectors, of which the table may have none."""
    columns = columns_of(connection, table)
    names = [name for name, column in columns.items() if parse_sized(column.type) is None]
    target = to_clause(table, *names)
    key = table.key[0]
    typed = table.with_columns(column_types={key: columns[key].base})
    spelled = [value for given in ids if (value := canonical(given, columns[key].base)) is not None]
    wanted = sa.select(sa.cast(target.c[key], sa.Text).label("_key"), *(target.c[name] for name in names)).where(
        among(typed, target, key, spelled), target.c[ACTIVE]
    )
    return {row[0]: dict(zip(names, row[1:], strict=True)) for row in connection.execute(wanted)}


def _products(table: VectorTable) -> sa.TableClause:
    return to_clause(table, ACTIVE, NAME)
