"""The statements of the pgvector store on one table, every one of them bound to one scope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.types import TypeEngine

from amprenta_vectors.errors import ConfigError, FilterError
from amprenta_vectors.schema.vector_table import OPERATORS, VectorTable
from amprenta_vectors.stores.filter_sql import to_sql
from amprenta_vectors.stores.filters import Condition

UPDATED_AT = "updated_at"
"""A timestamp column of this name is set when a row is replaced."""

SEARCH_SETTINGS = sa.select(
    sa.func.set_config("hnsw.iterative_scan", "relaxed_order", True),
    sa.func.set_config("hnsw.ef_search", sa.cast(sa.bindparam("ef_search", type_=sa.Integer), sa.Text), True),
)
"""For the transaction only. Relaxed order finds more than strict order does; the store sorts the hits itself."""


class Statements:
    """Statements on ``table``, which has been resolved, for the rows whose scope columns equal ``scope``.

    ``types`` are the table's columns with their types. Columns that the table does not have are selected as NULL. A
    filter on ``text_field`` is one on the text column.
    """

    def __init__(
        self, table: VectorTable, types: Mapping[str, TypeEngine[Any]], scope: Mapping[str, str], text_field: str
    ) -> None:
        self.table = table
        self._text_field = text_field
        self._types = {name: _cast_type(type_) for name, type_ in types.items()}
        self._vector_type = (HALFVEC if table.storage == "halfvec" else VECTOR)(table.dimension)
        self._table = sa.table(table.table, *(sa.column(name) for name in types), schema=table.schema)
        self._scope = {name: self._bound(name, scope[name]) for name in table.scope}
        (key,) = table.key
        self._key = self._table.c[key]
        self._embedding = self._table.c[table.embedding]
        self._in_scope = sa.and_(sa.true(), *(self._table.c[name] == value for name, value in self._scope.items()))
        self._stored = sa.and_(self._in_scope, self._embedding.is_not(None))

    def nearest(
        self, vector: NDArray[np.float32], top_k: int, condition: Condition | None, *, exact: bool
    ) -> sa.Select[Any]:
        """``(key, distance, text, metadata)`` of the nearest rows; with ``exact``, without the vector index."""
        distance = self._distance(vector)
        if exact:
            # No index is ordered by this, so PostgreSQL looks at every row that the scope and filter leave.
            distance = distance + sa.literal_column("0.0")
        statement = sa.select(*self._identity(), distance.label("distance"), *self._payload()).where(self._stored)
        if condition is not None:
            statement = statement.where(self._matching(condition))
        return statement.order_by(sa.literal_column("distance")).limit(top_k)

    def distances(self, vector: NDArray[np.float32], keys: Sequence[str]) -> sa.Select[Any]:
        """``(key, distance)`` of those ``keys``."""
        return sa.select(*self._identity(), self._distance(vector).label("distance")).where(
            self._stored, self._among(keys)
        )

    def fetch(self, keys: Sequence[str]) -> sa.Select[Any]:
        """``(key, vector as text, text, metadata)`` of those ``keys``."""
        vector = sa.cast(self._embedding, sa.Text).label("vector")
        return sa.select(*self._identity(), vector, *self._payload()).where(self._stored, self._among(keys))

    def sample(self, rows: int, seed: int) -> sa.Select[Any]:
        """``(vector as text)`` of rows chosen by a hash of their key: the same for the same seed and rows."""
        lottery = sa.func.hashtextextended(sa.cast(self._key, sa.Text), seed)
        vector = sa.cast(self._embedding, sa.Text).label("vector")
        return sa.select(vector).where(self._stored).order_by(lottery, self._key).limit(rows)

    def count(self) -> sa.Select[Any]:
        """``(number of rows with a vector)``."""
        return sa.select(sa.func.count()).select_from(self._table).where(self._stored)

    def delete(self, keys: Sequence[str]) -> sa.Delete:
        """Deletes those ``keys``."""
        return sa.delete(self._table).where(self._in_scope, self._among(keys))

    def upsert(
        self,
        keys: Sequence[str],
        vectors: Sequence[str],
        texts: Sequence[str | None],
        metadata: Sequence[str],
        model: str | None,
    ) -> sa.Insert:
        """Inserts or replaces rows, all in one statement; ``vectors`` and ``metadata`` are text."""
        table = self.table
        arrays = [_text_array(column) for column in (keys, vectors, texts, metadata)]
        rows = sa.func.unnest(*arrays).table_valued("key", "vector", "text", "metadata", name="given").render_derived()
        values: dict[str, sa.ColumnElement[Any]] = dict(self._scope)
        values[self._key.name] = sa.cast(rows.c.key, self._types[self._key.name])
        values[table.embedding] = sa.cast(rows.c.vector, self._vector_type)
        if table.text is not None:
            values[table.text] = sa.cast(rows.c.text, sa.Text)
        if table.metadata is not None:
            values[table.metadata] = sa.cast(rows.c.metadata, self._types[table.metadata])
        if table.model is not None and model is not None:
            values[table.model] = sa.cast(sa.literal(model), sa.Text)
        statement = insert(self._table).from_select(list(values), sa.select(*values.values()).select_from(rows))
        replaced: dict[str, Any] = {
            name: statement.excluded[name] for name in values if name not in table.unique_columns
        }
        if isinstance(self._types.get(UPDATED_AT), sa.DateTime):
            replaced[UPDATED_AT] = sa.func.now()
        return statement.on_conflict_do_update(index_elements=list(table.unique_columns), set_=replaced)

    def _identity(self) -> tuple[sa.ColumnElement[Any], ...]:
        return (sa.cast(self._key, sa.Text).label("key"),)

    def _payload(self) -> tuple[sa.ColumnElement[Any], ...]:
        text = self._table.c[self.table.text] if self.table.text else sa.null()
        return sa.type_coerce(text, sa.Text).label("text"), self._metadata().label("metadata")

    def _metadata(self) -> sa.ColumnElement[Any]:
        column = self._table.c[self.table.metadata] if self.table.metadata else sa.null()
        return sa.cast(column, JSONB)

    def _matching(self, condition: Condition) -> sa.ColumnElement[bool]:
        if self.table.metadata is None:
            raise FilterError(
                f"table {self.table.qualified_name} has no metadata column to filter by",
                hint="add one, or query without a filter",
            )
        text = self._table.c[self.table.text] if self.table.text else None
        return to_sql(condition, self._metadata(), text_field=self._text_field, text_column=text)

    def _distance(self, vector: NDArray[np.float32]) -> sa.ColumnElement[float]:
        bound = sa.cast(sa.literal(to_text(vector), sa.Text), self._vector_type)
        return self._embedding.op(OPERATORS[self.table.distance], return_type=sa.Float())(bound)

    def _among(self, keys: Sequence[str]) -> sa.ColumnElement[bool]:
        array = sa.cast(_text_array(keys), ARRAY(self._types[self._key.name]))
        return self._key == sa.func.any(array)

    def _bound(self, column: str, value: str) -> sa.ColumnElement[Any]:
        return sa.cast(sa.literal(value, sa.Text), self._types[column])


def check_key(table: VectorTable) -> None:
    """Raises `ConfigError` for a table whose key is not one column, for a store's key is one string."""
    if len(table.key) != 1:
        raise ConfigError(
            f"table {table.qualified_name} is keyed by {', '.join(table.key)}; a store needs a key of one column"
        )


def to_text(vector: NDArray[np.float32]) -> str:
    """As pgvector reads it; every float32 survives."""
    return str(vector.tolist())


def from_text(text: str) -> NDArray[np.float32]:
    """As pgvector writes it."""
    return np.fromstring(text[1:-1], dtype=np.float32, sep=",")


def _cast_type(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    # An explicit cast to varchar(n) cuts a longer text short, and would find another row by what is left of its key.
    return sa.Text() if isinstance(type_, sa.String) else type_


def _text_array(items: Sequence[str | None]) -> sa.ColumnElement[Any]:
    return sa.cast(sa.literal(list(items), ARRAY(sa.Text)), ARRAY(sa.Text))
