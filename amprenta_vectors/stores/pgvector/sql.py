"""The statements of the pgvector store on one table, each of them bound to one scope."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import orjson
import sqlalchemy as sa
from numpy.typing import NDArray
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy.dialects.postgresql import BIT, JSONB

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.pg.types import IndexStorage
from amprenta_vectors.schema.expressions import among, text_array, to_clause, to_column_value
from amprenta_vectors.schema.key_values import canonical
from amprenta_vectors.schema.row_marks import VERSION_COLUMNS
from amprenta_vectors.schema.slice import Slice
from amprenta_vectors.schema.vector_table import OPERATORS, UPDATED_AT, VectorTable
from amprenta_vectors.stores.filters.columns import FilterColumn
from amprenta_vectors.stores.filters.language import Condition
from amprenta_vectors.stores.filters.sql import to_sql


class Statements:
    """Statements on the rows of one slice.

    A key is one string: a composite key is its parts joined by the separator, the key of a table with a look-up column
    is what that column holds. Columns that the table does not have are selected as NULL. A filter on ``text_field`` is
    applied to the text column, a filter on a field of ``filter_columns`` to that column.
    """

    def __init__(self, slice_: Slice, text_field: str) -> None:
        self.slice = slice_
        self.table = table = slice_.table
        self._text_field = text_field
        self._vector_type = (HALFVEC if table.storage == "halfvec" else VECTOR)(table.dimension)
        self.rows = self._table = to_clause(table, *table.filter_columns.values(), *VERSION_COLUMNS, UPDATED_AT)
        self._key_columns = (table.key_rule.lookup,) if table.key_rule.lookup else table.key
        self.key = self._key = self._joined()
        self._embedding = self._table.c[table.embedding]
        self._in_scope = sa.and_(sa.true(), *slice_.in_scope(self._table))
        self._stored = sa.and_(self._in_scope, self._embedding.is_not(None))

    def nearest(self, condition: Condition | None, *, by: IndexStorage | None) -> sa.Select[Any]:
        """Select ``(key, distance, text, metadata)`` of the nearest rows, by an index holding ``by`` or none.

        Its parameters ``vector``, as `to_text` writes it, ``top_k`` and, with an index, ``candidates`` are yet to be
        given: so many rows are taken from the index, and the nearest of them by exact distance are the answer.
        """
        vector = sa.bindparam("vector", type_=sa.Text)
        distance = self._distance(vector)
        order: sa.ColumnElement[Any] = sa.literal_column("distance")
        if by is None:
            # No index is ordered by this, so PostgreSQL reads every row that the scope and filter leave.
            distance = distance + sa.literal_column("0.0")
        elif by == "bit":
            order = self._signs(self._embedding).op("<~>", return_type=sa.Float())(
                self._signs(sa.cast(vector, self._vector_type))
            )
        elif by != self.table.storage:
            # The index is on the cast; the distances returned are those of the vectors themselves.
            order = self._distance(vector, HALFVEC(self.table.dimension))
        statement = sa.select(*self._identity(), distance.label("distance"), *self._payload()).where(self._stored)
        if condition is not None:
            statement = statement.where(self._matching(condition))
        top_k = sa.bindparam("top_k", type_=sa.Integer)
        if by is None:
            return statement.order_by(order).limit(top_k)
        near = statement.order_by(order).limit(sa.bindparam("candidates", type_=sa.Integer)).subquery("near")
        # PostgreSQL takes the order of an index scan for strict, and would not sort by the distance itself again.
        return sa.select(*near.c).order_by(near.c.distance + sa.literal_column("0.0")).limit(top_k)

    def distances(self, vector: NDArray[np.float32], keys: Sequence[str]) -> sa.Select[Any]:
        """Select ``(key, distance)`` of the rows of ``keys``."""
        distance = self._distance(sa.literal(to_text(vector), sa.Text))
        return sa.select(*self._identity(), distance.label("distance")).where(self._stored, self._among(keys))

    def fetch(self, keys: Sequence[str]) -> sa.Select[Any]:
        """Select ``(key, vector as text, text, metadata)`` of the rows of ``keys``."""
        vector = sa.cast(self._embedding, sa.Text).label("vector")
        return sa.select(*self._identity(), vector, *self._payload()).where(self._stored, self._among(keys))

    def sample(self, rows: int, seed: int) -> sa.Select[Any]:
        """Select ``(vector as text)`` of rows chosen by a hash of their key: the same for the same seed and rows."""
        lottery = sa.func.hashtextextended(self._key, seed)
        vector = sa.cast(self._embedding, sa.Text).label("vector")
        return sa.select(vector).where(self._stored).order_by(lottery, self._key).limit(rows)

    def sample_keys(self, rows: int, seed: int) -> sa.Select[Any]:
        """Select ``(key)`` of rows chosen by a hash of their key: the same for the same seed and rows."""
        lottery = sa.func.hashtextextended(self._key, seed)
        return sa.select(self._key).where(self._stored).order_by(lottery, self._key).limit(rows)

    def few(self, rows: int) -> sa.Select[Any]:
        """Select ``(vector as text)`` of whichever rows come first."""
        vector = sa.cast(self._embedding, sa.Text).label("vector")
        return sa.select(vector).where(self._stored).limit(rows)

    def located(self, keys: Sequence[str], condition: Condition | None) -> sa.Select[Any]:
        """Select ``(key, matches)`` of the rows of ``keys``, without a vector too."""
        matches = sa.true() if condition is None else sa.func.coalesce(self._matching(condition), sa.false())
        return sa.select(*self._identity(), matches.label("matches")).where(self._in_scope, self._among(keys))

    def count(self) -> sa.Select[Any]:
        """Select ``(number of rows with a vector)``."""
        return sa.select(sa.func.count()).select_from(self._table).where(self._stored)

    def is_among(self, keys: Sequence[str]) -> sa.ColumnElement[bool]:
        """Return that a row of the scope has one of those ``keys``, with a vector or without."""
        return sa.and_(self._in_scope, self._among(keys))

    def is_row_of(self, given: Any) -> sa.ColumnElement[bool]:
        """Return that a row of the scope has the key whose `parts` are ``key_0`` … of ``given``."""
        values = (
            to_column_value(self.table, name, given.c[f"key_{position}"])
            for position, name in enumerate(self._key_columns)
        )
        same = (self._table.c[name] == value for name, value in zip(self._key_columns, values, strict=True))
        return sa.and_(self._in_scope, *same)

    def _identity(self) -> tuple[sa.ColumnElement[Any], ...]:
        return (self._key.label("key"),)

    def _joined(self) -> sa.ColumnElement[Any]:
        first, *rest = (sa.cast(self._table.c[name], sa.Text) for name in self._key_columns)
        key: sa.ColumnElement[Any] = first
        for part in rest:
            key = key.concat(sa.literal(self.table.key_rule.separator, sa.Text)).concat(part)
        return key

    def parts(self, key: str) -> list[str]:
        """Return the value of each key column, as it is given. Raises `ConfigError` for a key of other parts."""
        separator = self.table.key_rule.separator
        parts = key.rsplit(separator, len(self._key_columns) - 1) if separator else [key]
        if len(parts) != len(self._key_columns):
            raise ConfigError(f"key {key!r} has no {len(self._key_columns)} parts between {separator!r}")
        return parts

    def spelled(self, keys: Iterable[str]) -> dict[str, str]:
        """Return how rows spell each of ``keys``, by the key asked for; keys that no row can have are left out."""
        found: dict[str, str] = {}
        for key in keys:
            separator = self.table.key_rule.separator or ""
            parts = key.rsplit(separator, len(self._key_columns) - 1) if separator else [key]
            typed = zip(parts, self._key_columns, strict=False)
            values = [canonical(part, self.table.column_types[name]) for part, name in typed]
            if len(values) == len(self._key_columns) and None not in values:
                found[key] = separator.join(value for value in values if value is not None)
        return found

    def _payload(self) -> tuple[sa.ColumnElement[Any], ...]:
        return self.text().label("text"), self.metadata().label("metadata")

    def text(self) -> sa.ColumnElement[Any]:
        """Return the text column, NULL where there is none."""
        return sa.type_coerce(self._table.c[self.table.text] if self.table.text else sa.null(), sa.Text)

    def metadata(self) -> sa.ColumnElement[Any]:
        """Return the metadata column as jsonb, NULL where there is none."""
        column = self._table.c[self.table.metadata] if self.table.metadata else sa.null()
        return sa.cast(column, JSONB)

    def _matching(self, condition: Condition) -> sa.ColumnElement[bool]:
        table = self.table
        columns = {
            field: FilterColumn(self._table.c[name], table.column_types[name])
            for field, name in table.filter_columns.items()
        }
        if table.text is not None:
            columns[self._text_field] = FilterColumn(self._table.c[table.text], "text")
        return to_sql(condition, None if table.metadata is None else self.metadata(), columns)

    def _distance(self, vector: sa.ColumnElement[str], cast_to: HALFVEC | None = None) -> sa.ColumnElement[float]:
        bound = sa.cast(vector, cast_to or self._vector_type)
        stored = self._embedding if cast_to is None else sa.cast(self._embedding, cast_to)
        return stored.op(OPERATORS[self.table.distance], return_type=sa.Float())(bound)

    def _signs(self, vector: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Return one bit a dimension: whether its value is above zero."""
        return sa.cast(sa.func.binary_quantize(vector), BIT(self.table.dimension))

    def _among(self, keys: Sequence[str]) -> sa.ColumnElement[bool]:
        """Return the condition that a row has one of ``keys``, which `spelled` has passed."""
        table = self.table
        if len(self._key_columns) == 1:
            return among(table, self._table, self._key_columns[0], keys)
        parts = list(zip(*(self.parts(key) for key in keys), strict=True)) or [()] * len(self._key_columns)
        named = [f"key_{position}" for position in range(len(self._key_columns))]
        arrays = sa.func.unnest(*(text_array(column) for column in parts))
        asked = arrays.table_valued(*named, name="asked").render_derived()
        typed = (
            to_column_value(table, name, asked.c[given]) for name, given in zip(self._key_columns, named, strict=True)
        )
        return sa.tuple_(*(self._table.c[name] for name in self._key_columns)).in_(sa.select(*typed))


def check_key(table: VectorTable) -> None:
    """Raise `ConfigError` if the table's key is not one string: one column, or several with a separator."""
    if len(table.key) != 1 and table.key_rule.kind not in ("split", "lookup"):
        raise ConfigError(
            f"table {table.qualified_name} is keyed by {', '.join(table.key)}; a store needs a key of one column, "
            'or key_map = "split"'
        )


def to_text(vector: NDArray[np.float32]) -> str:
    """Write a vector as pgvector reads it; every float32 survives, as the shortest number that is read as it."""
    return orjson.dumps(np.ascontiguousarray(vector), option=orjson.OPT_SERIALIZE_NUMPY).decode()


def from_text(text: str) -> NDArray[np.float32]:
    """Read a vector as pgvector writes it."""
    return np.fromstring(text[1:-1], dtype=np.float32, sep=",")
