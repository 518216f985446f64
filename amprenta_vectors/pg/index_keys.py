"""The key of an ANN index: a column's values, their halves or their signs, and how SQL writes that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import BIT

from amprenta_vectors.errors import SchemaMismatch
from amprenta_vectors.pg.indexes import BIT_OPCLASS, Index
from amprenta_vectors.pg.names import qualified
from amprenta_vectors.pg.types import INDEX_LIMITS, IndexStorage, VectorType


@dataclass(frozen=True)
class IndexKey:
    """What an index holds of ``column``, which is of ``type``, and by which distance."""

    column: str
    type: VectorType
    storage: IndexStorage
    distance: str

    @property
    def opclass(self) -> str:
        """The operator class that serves this key."""
        return BIT_OPCLASS if self.storage == "bit" else f"{self.storage}_{self.distance}_ops"

    @property
    def is_column(self) -> bool:
        """Return whether the column is indexed as it is."""
        return self.storage == self.type.storage

    def of(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Return ``column``, or the expression of it that is indexed, under its name."""
        if self.is_column:
            return column
        if self.storage == "halfvec":
            return sa.cast(column, VectorType("halfvec", self.type.dimension)).label(self.column)
        return sa.cast(sa.func.binary_quantize(column), BIT(self.type.dimension)).label(self.column)

    @property
    def typed(self) -> str:
        """The key as a person types it between the parentheses of CREATE INDEX, with the operator class."""
        column, dimension = qualified(self.column), self.type.dimension
        expression = {
            "halfvec": f"({column}::halfvec({dimension}))",
            "bit": f"(binary_quantize({column})::bit({dimension}))",
        }
        return f"{column if self.is_column else expression[self.storage]} {self.opclass}"

    def is_of(self, index: Index) -> bool:
        """Return whether ``index`` is on this key, by this distance."""
        if index.indexed is None or index.includes or index.unique or index.opclasses != (self.opclass,):
            return False
        column, cast, dimension = index.indexed
        wanted = None if self.is_column else self.storage
        return (column, cast) == (self.column, wanted) and dimension in (None, self.type.dimension)


def index_key(column: str, type_: VectorType, distance: str, storage: IndexStorage | None = None) -> IndexKey:
    """Return the key with ``storage``, or with the finest that pgvector indexes at the column's dimension.

    Raises `SchemaMismatch` for a storage that the column is too long or too coarse for.
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


def index_key_of(table: str, column: str, found: str | None, distance: str, storage: IndexStorage | None) -> IndexKey:
    """Return the `index_key` of a column of the type ``found``. Raises `SchemaMismatch` if that is no vector."""
    actual = None if found is None else VectorType.parse(found)
    if actual is None:
        raise SchemaMismatch(
            f"cannot index {table}.{column}: it is {found or 'no column'}; expected vector(n) or halfvec(n)",
            hint=f"op.add_vector_column({table!r}, {column!r}, …) in an earlier revision",
        )
    return index_key(column, actual, distance, storage)
