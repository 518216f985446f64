"""What an ANN index holds of a column, its values, their halves or their signs, and how that is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BIT
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import column_types, qualified
from amprenta_vectors.ddl.vector_type import VectorType
from amprenta_vectors.errors import SchemaMismatch

IndexStorage = Literal["vector", "halfvec", "bit"]
"""From fine to coarse: four bytes, two bytes or one bit a dimension."""

INDEX_LIMITS: dict[IndexStorage, int] = {"vector": 2000, "halfvec": 4000, "bit": 64_000}
"""Dimensions that pgvector indexes at most (its README)."""

BIT_OPCLASS = "bit_hamming_ops"
"""Of signs, whatever the distance: what it finds is re-ranked by the distance itself."""


@dataclass(frozen=True)
class IndexKey:
    """What is indexed of ``column``, which is of ``type``, and by which distance."""

    column: str
    type: VectorType
    storage: IndexStorage
    distance: str

    @property
    def opclass(self) -> str:
        """The operator class that serves it."""
        return BIT_OPCLASS if self.storage == "bit" else f"{self.storage}_{self.distance}_ops"

    @property
    def is_column(self) -> bool:
        """Whether the column is indexed as it is."""
        return self.storage == self.type.storage

    def of(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """``column``, or the expression of it that is indexed, under its name."""
        if self.is_column:
            return column
        if self.storage == "halfvec":
            return sa.cast(column, VectorType("halfvec", self.type.dimension)).label(self.column)
        return sa.cast(sa.func.binary_quantize(column), BIT(self.type.dimension)).label(self.column)

    @property
    def typed(self) -> str:
        """As a person types it between the parentheses of CREATE INDEX, with the operator class."""
        column, dimension = qualified(self.column), self.type.dimension
        expression = {
            "halfvec": f"({column}::halfvec({dimension}))",
            "bit": f"(binary_quantize({column})::bit({dimension}))",
        }
        return f"{column if self.is_column else expression[self.storage]} {self.opclass}"


def index_key(column: str, type_: VectorType, distance: str, storage: IndexStorage | None = None) -> IndexKey:
    """The key with ``storage``, or with the finest that pgvector indexes at the column's dimension.

    Raises `SchemaMismatch` for one that the column is too long for, or too coarse.
    """
    possible: list[IndexStorage] = [
        each
        for each, limit in INDEX_LIMITS.items()
        if type_.dimension <= limit and (each, type_.storage) != ("vector", "halfvec")
    ]
    chosen = storage or possible[0]
    if chosen not in possible:
        raise SchemaMismatch(
            f"pgvector cannot index {type_.get_col_spec()} as {chosen}; it can as {' or '.join(possible)}",
            hint=f'storage="{possible[0]}", or none, which takes that',
        )
    return IndexKey(column, type_, chosen, distance)


def index_key_of(
    connection: Connection,
    table: str,
    column: str,
    distance: str,
    *,
    storage: IndexStorage | None = None,
    schema: str | None = None,
) -> IndexKey:
    """`index_key` of a column in the database. Raises `SchemaMismatch` for one that is no vector."""
    found = column_types(connection, table, schema).get(column, "no column")
    actual = VectorType.parse(found)
    if actual is None:
        raise SchemaMismatch(
            f"cannot index {table}.{column}: it is {found}; expected vector(n) or halfvec(n)",
            hint="alembic upgrade head",
        )
    return index_key(column, actual, distance, storage)
