"""The rows that a run or a store is about: one scope of a vector table, and how source keys find them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.batch import Key, VectorBatch, Vectors
from amprenta_vectors.pg.types import SEND_HEAD
from amprenta_vectors.schema.expressions import column_type, in_scope, text_array, to_clause, to_column_value
from amprenta_vectors.schema.key_values import canonical, is_checked
from amprenta_vectors.schema.keymaps import KeyMap, open_key_map
from amprenta_vectors.schema.row_marks import VERSION_COLUMNS, RowMarks
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.storable import HINT

_CAN_ASK_OF_INPUT = (16,)
"""The release of PostgreSQL that introduced ``pg_input_is_valid``."""


@dataclass(frozen=True)
class Slice:
    """One scope of a vector table from the catalogue: the one object that builds SQL on its rows.

    A method's ``rows`` is the table under another name in the statement; without it, the table itself.
    """

    table: VectorTable
    scope: Mapping[str, str]
    key_map: KeyMap

    @property
    def target(self) -> str:
        """The vector table's ``schema.table.column``."""
        return self.table.target

    @cached_property
    def rows(self) -> sa.TableClause:
        """The table with every column that its description names, and what tells a version of a row."""
        return to_clause(self.table, *VERSION_COLUMNS, *self.table.old_names)

    @property
    def marks(self) -> RowMarks:
        """The marks on rows of this slice."""
        return RowMarks(self.table, self.scope)

    def in_scope(self, rows: Any = None) -> list[sa.ColumnElement[bool]]:
        """Return one condition for each scope column."""
        return in_scope(self.table, self._or_own(rows), self.scope)

    def embedding(self, rows: Any = None) -> sa.ColumnElement[Any]:
        """Return the embedding column."""
        column: sa.ColumnElement[Any] = self._or_own(rows).c[self.table.embedding]
        return column

    def sent_embedding(self, rows: Any = None) -> sa.ColumnElement[Any]:
        """Return the embedding as its type's send function puts it on the wire."""
        return self.send(self.embedding(rows))

    def send(self, value: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """Return a value of the embedding's type as its send function puts it on the wire."""
        send = sa.func.vector_send if self.table.storage == "vector" else sa.func.halfvec_send
        sent: sa.ColumnElement[Any] = send(value)
        return sent

    def sent(self, rows: Any = None) -> sa.ColumnElement[Any]:
        """Return the bytes that a row's digest is of: its embedding on the wire, and after it its sparse values."""
        dense = self.sent_embedding(rows)
        if self.table.sparse is None:
            return dense
        sparse = sa.func.sparsevec_send(self._or_own(rows).c[self.table.sparse])
        return dense.op("||")(sa.func.coalesce(sparse, sa.cast(b"", sa.LargeBinary)))

    def received(self, sent: Sequence[bytes | memoryview]) -> Vectors:
        """Return what `sent_embedding` gave, as vectors, ``(n, dimension)`` float32."""
        type_ = ">f4" if self.table.storage == "vector" else ">f2"
        vectors = [np.frombuffer(bytes(raw)[SEND_HEAD:], type_).astype(np.float32) for raw in sent]
        return np.array(vectors, np.float32).reshape(len(vectors), self.table.dimension)

    def embedded_here(self, rows: Any = None) -> sa.ColumnElement[bool]:
        """Return the condition that a row was embedded from its own text: only the hash of such a text is odd."""
        if self.table.text_hash is None:
            return sa.false()
        kept = sa.cast(self._or_own(rows).c[self.table.text_hash], sa.BigInteger)
        return sa.func.coalesce(kept.bitwise_and(1), 0) == 1

    def is_emptied(self, rows: Any = None) -> sa.ColumnElement[bool]:
        """Return whether a store emptied the row of an application, which has not written it again since."""
        if self.table.rows == "ours":
            return sa.false()
        return self.marks.is_marked("emptied", self._or_own(rows))

    def lacks_embedding(self, rows: Any = None) -> sa.ColumnElement[bool]:
        """Return whether a row is to be filled: it has no embedding, and no store took it away."""
        return sa.and_(self.embedding(rows).is_(None), sa.not_(self.is_emptied(rows)))

    def key_texts(self, rows: Any = None) -> list[sa.ColumnElement[str]]:
        """Return the key columns as text."""
        return [sa.cast(self._or_own(rows).c[name], sa.Text) for name in self.table.key]

    def key_values(self, given: Any) -> dict[str, sa.ColumnElement[Any]]:
        """Return the value of each key column, by its name, from the texts ``key_0`` … of ``given``."""
        return {
            name: to_column_value(self.table, name, given.c[f"key_{position}"])
            for position, name in enumerate(self.table.key)
        }

    def is_row_of(self, given: Any, rows: Any = None) -> list[sa.ColumnElement[bool]]:
        """Return the conditions that a row of the scope has the key in the columns ``key_0`` … of ``given``."""
        own = self._or_own(rows)
        return [*self.in_scope(rows), *(own.c[name] == value for name, value in self.key_values(given).items())]

    def has_key(self, connection: Connection, given: Any, rows: Any = None) -> list[sa.ColumnElement[bool]]:
        """Return the conditions that a row of any scope has the key of ``given``, whatever text that is.

        Keys are compared as the values that the columns hold, never as text: a UUID has many spellings. A text that is
        no value of the column's type equals nothing; a server before 16 refuses the statement then, for types that the
        key map does not know.
        """
        own = self._or_own(rows)
        old = (connection.dialect.server_version_info or (0,)) < _CAN_ASK_OF_INPUT
        conditions = []
        for position, name in enumerate(self.table.key):
            type_, text = column_type(self.table, name), given.c[f"key_{position}"]
            value: sa.ColumnElement[Any] = sa.cast(text, type_)
            if not (old or is_checked(type_.name)):
                value = sa.case((sa.func.pg_input_is_valid(text, type_.name), value))
            conditions.append(own.c[name] == value)
        return conditions

    def among(self, keys: Sequence[Key], rows: Any = None) -> sa.ColumnElement[bool]:
        """Return the condition that a row of the scope has one of ``keys``."""
        given = given_keys(keys, width=len(self.table.key))
        own = sa.tuple_(*(self._or_own(rows).c[name] for name in self.table.key))
        return sa.and_(own.in_(sa.select(*self.key_values(given).values())), *self.in_scope(rows))

    def fit(self, batch: VectorBatch) -> VectorBatch:
        """Return the rows that the table can hold; the others are in ``quarantined`` with their reason."""
        table = self.table
        valid = batch.validated(cosine=table.distance == "cosine", storage=table.storage, hint=HINT)
        return valid if table.sparse_dimension is None else valid.with_sparse(table.sparse_dimension)

    def listed(self) -> tuple[sa.FromClause, list[Any], list[sa.ColumnElement[bool]]]:
        """Return what rows are listed from, their key columns there, and the conditions that they are of the scope.

        Where the texts lie in another table, every row of that is listed, whether it has a row here or not.
        """
        if self.table.texts is None:
            return self.rows, [self.rows.c[name] for name in self.table.key], self.in_scope()
        texts = self.text_rows
        keys = [texts.c[name] for name in self.table.texts.key]
        same = [key == self.rows.c[name] for key, name in zip(keys, self.table.key, strict=True)]
        return texts.outerjoin(self.rows, sa.and_(*same, *self.in_scope())), keys, []

    @cached_property
    def text_rows(self) -> sa.TableClause:
        """The table that the texts lie in: the vector table, or the other one that it names."""
        texts = self.table.texts
        if texts is None:
            return to_clause(self.table, *self.table.text_columns)
        return sa.table(texts.table, *map(sa.column, dict.fromkeys((*texts.key, *texts.columns))), schema=texts.schema)

    def count_empty(self, connection: Connection, *wanted: sa.ColumnElement[bool]) -> int:
        """Return how many rows are to be filled, of those that are ``wanted``."""
        listed, _, in_scope = self.listed()
        statement = sa.select(sa.func.count()).select_from(listed)
        return connection.execute(statement.where(self.lacks_embedding(), *wanted, *in_scope)).scalar_one()

    def has_empty(self, connection: Connection, *wanted: sa.ColumnElement[bool]) -> bool:
        """Return whether any row is to be filled, of those that are ``wanted``."""
        listed, _, in_scope = self.listed()
        found = sa.select(sa.literal(1)).select_from(listed).where(self.lacks_embedding(), *wanted, *in_scope)
        return connection.execute(found.limit(1)).first() is not None

    def is_unfilled(self, connection: Connection) -> bool:
        """Return whether no row has an embedding."""
        return not self._has(connection, self.embedding().is_not(None))

    def emptied_among(self, connection: Connection, keys: Sequence[Key]) -> set[Key]:
        """Return those of ``keys``, as they are given, whose rows a store emptied; nobody empties more of them.

        Call it in the transaction that fills the rows, before it locks any.
        """
        if self.table.rows == "ours":
            return set()
        self.marks.lock(connection, keys, emptying=False)
        if not self.marks.has_any(connection):
            return set()
        types = [column_type(self.table, name).name for name in self.table.key]
        # What is no value of its column is no row's key; it is refused when it is written.
        keys = [key for key in keys if None not in map(canonical, key, types)]
        if not keys:
            return set()
        given = given_keys(keys)
        named = [given.c[f"key_{position}"] for position in range(len(self.table.key))]
        found = sa.select(*named).select_from(given.join(self.rows, sa.and_(*self.has_key(connection, given))))
        rows = connection.execute(found.where(self.is_emptied(), *self.in_scope()))
        return {tuple(row) for row in rows}

    def _has(self, connection: Connection, *conditions: sa.ColumnElement[bool]) -> bool:
        found = sa.select(sa.literal(1)).select_from(self.rows).where(*conditions, *self.in_scope())
        return connection.execute(found.limit(1)).first() is not None

    def _or_own(self, rows: Any) -> Any:
        return self.rows if rows is None else rows


def open_slice(engine: Engine, table: VectorTable, scope: Mapping[str, str]) -> Slice:
    """Return the slice of a table from the catalogue by the table's own key map."""
    return Slice(table, scope, open_key_map(table, scope, engine))


def given_keys(keys: Sequence[Key], *, width: int | None = None, **columns: Sequence[str | None]) -> Any:
    """Return target keys and columns beside them as rows to join with: ``key_0`` …, and ``columns``, all text.

    ``width`` is the number of key columns; give it if ``keys`` may be empty.
    """
    width = width or (len(keys[0]) if keys else 0)
    names = [f"key_{position}" for position in range(width)]
    arrays = [text_array([key[position] for key in keys]) for position in range(width)]
    arrays += [text_array(column) for column in columns.values()]
    return sa.func.unnest(*arrays).table_valued(*names, *columns, name="given").render_derived()
