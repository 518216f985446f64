"""What the store writes and deletes, by whose the rows are: ours whole; of an application's, what is ours or was given.

A row that a store inserted into an application's table, or that a backfill inserted and nobody changed since, is ours
too. Rows are locked in the order of their keys before any is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy.dialects.postgresql import JSONB, Insert, insert
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.batch import Key, VectorBatch
from amprenta_vectors.errors import RowError, SchemaMismatch, ServerUnsuitable
from amprenta_vectors.pg.errors import NOT_NULL, sqlstate
from amprenta_vectors.pg.names import compose, literal, qualified
from amprenta_vectors.reasons import Reason
from amprenta_vectors.schema.catalogue import columns_of
from amprenta_vectors.schema.expressions import to_column_value
from amprenta_vectors.schema.hashes import hash_content, is_of_text, to_bigint
from amprenta_vectors.schema.models import MODEL_SCOPE, ModelColumn
from amprenta_vectors.schema.slice import given_keys
from amprenta_vectors.schema.vector_table import UPDATED_AT, VectorTable
from amprenta_vectors.stores.pgvector.other_models import Embedded, OtherVectors
from amprenta_vectors.stores.pgvector.records import KEYS_NAMED, Given, to_records
from amprenta_vectors.stores.pgvector.sql import Statements
from amprenta_vectors.stores.protocol import Record
from amprenta_vectors.stores.vectors import to_batch

ROWS_PER_STATEMENT = 1000
MOST_STARTS = 10
"""How often a write starts over because a row came in between; each time one row more is there beforehand."""


@dataclass(frozen=True)
class _Row:
    """A row that is there: its key as the store has it, and as its columns do; ``own`` is whether it is ours whole."""

    key: str
    columns: Key
    own: bool


class _Came(Exception):
    """A row came in between that was not there when the others were locked."""


Placed = tuple[ModelColumn | None, Statements]
"""A model and the statements on its column; None for the column of a table without registered models."""


def write(
    connection: Connection,
    records: Sequence[Record],
    own: Placed,
    others: Sequence[tuple[Embedded, Statements]],
    model: str | None,
) -> list[RowError]:
    """Write records with vectors of ``own``, and what the ``others`` made of their texts; return what `Writing` does.

    ``model`` is the name that is written beside the vectors of a table without registered models.
    """
    column, statements = own
    table, name = statements.table, model if column is None else column.model.name
    if column is None or MODEL_SCOPE not in table.scope:
        batch = to_batch(records, table.dimension, cosine=table.distance == "cosine")
        beside = [OtherVectors(each.table, made.vectors, made.texts) for made, each in others]
        return Writing(statements, name, beside).upsert(connection, batch)
    # The text is that of the key, and no column of the row has it.
    plain = [replace(record, text=None) for record in records]
    batch = to_batch(plain, table.dimension, cosine=table.distance == "cosine")
    refused = Writing(statements, name).upsert(connection, batch)
    for made, each in others:
        given = {key: vector for key, vector in made.vectors.items() if vector is not None}
        rows = [Record(key, vector) for key, vector in given.items()]
        cosine = each.table.distance == "cosine"
        Writing(each, made.column.model.name).upsert(connection, to_batch(rows, each.table.dimension, cosine=cosine))
        Writing(each, None).delete(connection, [key for key in made.vectors if key not in given])
    return refused


class Writing:
    """The writes of one store; ``model`` is written beside every vector.

    ``others`` are the vectors of other models, which are written where a text is: of a record without one, an
    application's row keeps what it has.
    """

    def __init__(self, statements: Statements, model: str | None, others: Sequence[OtherVectors] = ()) -> None:
        self._statements = statements
        self._table = table = statements.table
        self._model = model
        self._others = others
        self._other_types = {name: type_ for each in others for name, type_ in each.columns().items()}
        self._ours = table.rows == "ours"
        self._marks = statements.slice.marks
        self._vector_type = (HALFVEC if table.storage == "halfvec" else VECTOR)(table.dimension)
        self._needs_text = table.text in table.not_null
        self._has_updated_at = table.column_types.get(UPDATED_AT, "").startswith("timestamp")

    def upsert(self, connection: Connection, batch: VectorBatch) -> list[RowError]:
        """Write a batch; returns the rows that would have to be inserted and cannot be.

        Raises `RowError` for the first that PostgreSQL cannot hold, before anything is written.
        """
        # Rows are locked and inserted in one order by every writer, so that none waits for another in a circle.
        records = sorted(self._to_records(batch), key=lambda record: record.key)
        spelled = self._statements.spelled(batch.source_keys)
        for record in records:
            if record.key not in spelled:
                raise RowError(record.key, Reason.REFUSED, f"no key of {', '.join(self._table.key)}")
        refused: list[RowError] = []
        for start in range(0, len(records), ROWS_PER_STATEMENT):
            refused += self._in_order(connection, records[start : start + ROWS_PER_STATEMENT], spelled)
        return refused

    def _to_records(self, batch: VectorBatch) -> list[Given]:
        records = to_records(batch, self._table)
        if not self._others:
            return records
        values: dict[str, dict[str, str | None]] = {record.key: {} for record in records}
        for each in self._others:
            for key, columns in values.items():
                columns.update(each.values(key))
        return [replace(record, others=values[record.key]) for record in records]

    def _in_order(self, connection: Connection, records: list[Given], spelled: Mapping[str, str]) -> list[RowError]:
        """Update what is there and insert what is not, starting over where a row came in between.

        To lock that one while later ones are held would be out of order.
        """
        if len(records) == 1 or self._replaces(records):
            return self._upsert(connection, records, spelled)
        for _ in range(MOST_STARTS):
            try:
                with connection.begin_nested():
                    return self._upsert(connection, records, spelled, whole=True)
            except _Came:
                continue
        return self._upsert(connection, records, spelled)

    def _replaces(self, records: Sequence[Given]) -> bool:
        """Return whether one upsert writes every row whole, whatever is there."""
        return (
            self._ours
            and not self._table.to_fill
            and not (self._needs_text and any(each.text is None for each in records))
        )

    def delete(self, connection: Connection, keys: Sequence[str]) -> None:
        """Delete the rows of ``keys`` that are ours, empty those of the application, and mark them as emptied.

        Raises `SchemaMismatch`, before anything is deleted, where the embedding of one cannot be NULL.
        """
        spelled = list(self._statements.spelled(keys).values())
        if self._ours:
            connection.execute(sa.delete(self._statements.rows).where(self._statements.is_among(spelled)))
            return
        rows = self._statements.rows
        may_mark = self._marks.may_mark(connection)
        if may_mark:
            there = sa.select(*self._statements.slice.key_texts(rows)).where(self._statements.is_among(spelled))
            self._marks.lock(connection, [tuple(row) for row in connection.execute(there)], emptying=True)
        found = self._lock(connection, spelled, may_mark, deleting=True)
        emptied = [row.columns for row in found if not row.own]
        own = [row.columns for row in found if row.own]
        if emptied:
            self._check_can_empty(connection, [row.key for row in found if not row.own], may_mark)
        among = self._statements.slice.among
        if own:
            connection.execute(sa.delete(rows).where(among(own, rows)))
        if emptied:
            values = dict.fromkeys(self._nullable(), sa.null())
            connection.execute(sa.update(rows).values(values).where(among(emptied, rows)))
            self._marks.put(connection, "emptied", among(emptied, rows), rows)
        if may_mark:
            self._marks.remove(connection, [*own, *self._row_keys(set(spelled) - {row.key for row in found})])

    def _upsert(
        self,
        connection: Connection,
        records: list[Given],
        spelled: Mapping[str, str],
        *,
        whole: bool = False,
        again: bool = False,
    ) -> list[RowError]:
        """Update what is there, insert what is not; what came in between is written ``again``.

        With ``whole``, raises `_Came` for that.
        """
        if self._replaces(records):
            self._insert(connection, [replace(record, own=True) for record in records])
            return []
        may_mark = not self._ours and self._marks.may_mark(connection)
        found = self._lock(connection, [spelled[record.key] for record in records], may_mark)
        is_own: dict[str, bool] = {}
        for row in found:
            # Several rows may have one key where a column is looked up.
            is_own[row.key] = is_own.get(row.key, True) and row.own
        there = [record for record in records if spelled[record.key] in is_own]
        owned = [replace(record, own=is_own[spelled[record.key]]) for record in there]
        for beside, group in groupby(sorted(owned, key=self._beside), key=self._beside):
            self._update(connection, list(group), beside)
        absent = [record for record in records if spelled[record.key] not in is_own]
        inserted, refused = self._insert_absent(connection, absent, update=again) if absent else ([], [])
        left = {error.key for error in refused}
        came = [each for each in absent if each.key not in left and self._row_key(spelled[each.key]) not in inserted]
        if came and whole:
            raise _Came
        if may_mark:
            own = [*inserted, *(row.columns for row in found if row.own)]
            self._marks.remove(connection, [row.columns for row in found if not row.own])
            if own:
                rows = self._statements.rows
                self._marks.put(connection, "inserted", self._statements.slice.among(own, rows), rows)
        if came and not again:
            refused = [*refused, *self._upsert(connection, came, spelled, again=True)]
        return refused

    def _lock(
        self, connection: Connection, spelled: Sequence[str], may_mark: bool, *, deleting: bool = False
    ) -> list[_Row]:
        """Return the rows of the scope with those keys, with an embedding or without; they stay locked."""
        rows, table = self._statements.rows, self._table
        of_content = sa.false() if table.text_hash is None else sa.cast(rows.c[table.text_hash], sa.BigInteger) % 2 == 0
        content = [
            sa.case((of_content, value), else_=sa.null())
            for value in (self._statements.text(), self._statements.metadata())
        ]
        statement = (
            sa.select(
                self._statements.key.label("key"),
                *(text.label(f"key_{place}") for place, text in enumerate(self._statements.slice.key_texts(rows))),
                (self._marks.is_marked("inserted", rows) if may_mark else sa.false()).label("marked"),
                (sa.null() if table.text_hash is None else rows.c[table.text_hash]).label("text_hash"),
                content[0].label("text"),
                content[1].label("metadata"),
            )
            .where(self._statements.is_among(spelled))
            .order_by(self._statements.key)
        )
        # A statement of its own: one that waits for a row sees its new version, and of the marks what was before.
        locking = sa.select(sa.literal(1)).select_from(rows).where(self._statements.is_among(spelled))
        locking = locking.order_by(self._statements.key.collate("C")).with_for_update(key_share=not deleting, of=rows)
        if not connection.execute(locking).all():
            return []
        width = len(table.key)
        return [
            _Row(row.key, tuple(row[1 : 1 + width]), self._ours or row.marked or _as_inserted(row))
            for row in connection.execute(statement)
        ]

    def _beside(self, record: Given) -> tuple[bool, bool, bool]:
        """Return whether a row is ours, and whether text and metadata are written."""
        no_text = record.text is None and (not record.own or self._needs_text)
        return record.own, not no_text, record.own or record.metadata != "{}"

    def _update(self, connection: Connection, group: Sequence[Given], beside: tuple[bool, bool, bool]) -> None:
        rows, table, given = self._statements.rows, self._table, self._given(group)
        own, text, metadata = beside
        values = self._vector_values(given, with_others=text or own)
        if text and table.text is not None:
            values[table.text] = sa.cast(given.c.text, sa.Text)
        if metadata and table.metadata is not None:
            value = sa.cast(given.c.metadata, JSONB)
            values[table.metadata] = value if own else _merged(self._statements.metadata(), value)
        if own and self._has_updated_at:
            values[UPDATED_AT] = sa.func.now()
        connection.execute(sa.update(rows).values(values).where(self._statements.is_row_of(given)))

    def _insert_absent(
        self, connection: Connection, records: Sequence[Given], update: bool
    ) -> tuple[set[Key], list[RowError]]:
        """Return the keys of the rows that were inserted, and the records that no row can be made of."""
        table = self._table
        if table.key_rule.lookup:
            why = f"no row of {table.qualified_name} has it, and its rows are the application's to insert"
            return set(), [RowError(record.key, Reason.NO_TARGET, why) for record in records]
        inserted: set[Key] = set()
        refused: list[RowError] = []
        for without_text in (False, True):
            part = [record for record in records if (record.text is None and self._needs_text) == without_text]
            if not part:
                continue
            lacking = [*table.to_fill, *([str(table.text)] if without_text else []), *self._lacks_model()]
            try:
                # Not told beforehand: a trigger may give a column its value.
                with connection.begin_nested() if lacking else nullcontext():
                    inserted |= self._insert(connection, part, text=not without_text, update=update)
            except DBAPIError as error:
                if sqlstate(error) != NOT_NULL:
                    raise
                why = f"no row has it, and none can be inserted: no value for NOT NULL {', '.join(lacking)}"
                refused += [RowError(record.key, Reason.REFUSED, why) for record in part]
        return inserted, refused

    def _lacks_model(self) -> list[str]:
        column = self._table.model
        return [column] if column is not None and self._model is None and column in self._table.not_null else []

    def _insert(
        self, connection: Connection, records: Sequence[Given], *, text: bool = True, update: bool = True
    ) -> set[Key]:
        """Insert rows, and return their keys. With ``update``, also update what is there by now, and return none."""
        table, target, given = self._table, self._statements.rows, self._given(records)
        scope = self._statements.slice.scope
        values: dict[str, Any] = {name: to_column_value(table, name, scope[name]) for name in table.scope}
        values |= self._statements.slice.key_values(given)
        beside = self._vector_values(given, new=True)
        content: dict[str, Any] = {}
        if table.text is not None and text:
            content[table.text] = sa.cast(given.c.text, sa.Text)
        if table.metadata is not None:
            content[table.metadata] = sa.cast(given.c.metadata, JSONB)
        values |= beside | content
        statement = insert(target).from_select(list(values), sa.select(*values.values()).select_from(given))
        unique = list(table.unique_columns)
        if update:
            changes = self._changes(statement, beside, content)
            connection.execute(statement.on_conflict_do_update(index_elements=unique, set_=changes))
            return set()
        keys = [sa.cast(target.c[name], sa.Text) for name in table.key]
        return {
            tuple(key)
            for key in connection.execute(statement.on_conflict_do_nothing(index_elements=unique).returning(*keys))
        }

    def _changes(self, statement: Insert, beside: Iterable[str], content: Iterable[str]) -> dict[str, Any]:
        """Return what a row that is there already gets of what was to be inserted."""
        table = self._table
        changes: dict[str, Any] = {name: statement.excluded[name] for name in beside}
        changes |= {name: sa.null() for name in (table.hash, table.text_hash) if name is not None}
        there, given = self._statements.rows, statement.excluded
        if table.text is not None and table.text in content:
            # Without a text an application's row keeps its own, from which the other models' vectors are.
            keeps = sa.false() if self._ours else given[table.text].is_(None)
            for each in self._others:
                kept = sa.or_(keeps, self._is_of_same_text(given[each.table.embedding], given[table.text]))
                changes |= {name: sa.case((kept, there.c[name]), else_=given[name]) for name in each.columns()}
        if not self._ours:
            return changes | _kept(table, there, given, content)
        changes |= {name: statement.excluded[name] for name in content}
        return changes | ({UPDATED_AT: sa.func.now()} if self._has_updated_at else {})

    def _vector_values(self, given: Any, *, new: bool = False, with_others: bool = True) -> dict[str, Any]:
        """Return the values of our columns; ``with_others``, those of the other models too."""
        table = self._table
        values: dict[str, Any] = {table.embedding: sa.cast(given.c.vector, self._vector_type)}
        if table.model is not None and self._model is not None:
            values[table.model] = sa.cast(sa.literal(self._model), sa.Text)
        if not new:
            # What an application writes is its own: a reconcile that finds no hash leaves the row alone.
            values |= {name: sa.null() for name in (table.hash, table.text_hash) if name is not None}
        for each in self._others if with_others else ():
            made: dict[str, Any] = {name: sa.cast(given.c[name], type_) for name, type_ in each.columns().items()}
            if not new:
                kept = self._is_of_same_text(given.c[each.table.embedding], sa.cast(given.c.text, sa.Text))
                there = self._statements.rows.c
                made = {name: sa.case((kept, there[name]), else_=value) for name, value in made.items()}
            values |= made
        return values

    def _is_of_same_text(self, vector: Any, text: Any) -> sa.ColumnElement[bool]:
        """Return whether another model has no vector of a text that is there already: the one it has stays."""
        column = self._table.text
        return sa.false() if column is None else sa.and_(vector.is_(None), self._statements.rows.c[column] == text)

    def _given(self, records: Sequence[Given]) -> Any:
        """Return records as rows to select from: ``key_0`` …, the parts of their keys, and what is beside them."""
        keys = [tuple(self._statements.parts(record.key)) for record in records]
        others: dict[str, Any] = {name: [record.others.get(name) for record in records] for name in self._other_types}
        return given_keys(
            keys,
            vector=[record.vector for record in records],
            text=[record.text for record in records],
            metadata=[record.metadata for record in records],
            **others,
        )

    def _check_can_empty(self, connection: Connection, keys: Sequence[str], may_mark: bool) -> None:
        table = self._table
        if columns_of(connection, table)[table.embedding].refuses_null:
            raise SchemaMismatch(
                f"{table.target} is NOT NULL, so that {len(keys):,} rows of the application cannot be emptied; nothing "
                "was deleted",
                hint=self._delete_sql(keys[:KEYS_NAMED]),
            )
        if not may_mark:
            role = connection.scalar(sa.text("SELECT quote_ident(current_user)"))
            raise ServerUnsuitable(
                f"a row of the application that is emptied in {table.target} is to be marked, or a backfill fills it "
                "again; this role cannot write to vector_row_mark",
                hint=f"alembic upgrade head; GRANT SELECT, INSERT, UPDATE, DELETE ON vector_row_mark TO {role}",
            )

    def _delete_sql(self, keys: Sequence[str]) -> str:
        """Return the statement that deletes the application's rows, as a person types it."""
        table, scope = self._table, self._statements.slice.scope
        names = (table.key_rule.lookup,) if table.key_rule.lookup else table.key
        rows = [f"({', '.join(map(literal, self._statements.parts(key)))})" for key in keys]
        return compose(
            "DELETE FROM {table} WHERE {scope}({names}) IN ({rows})",
            table=qualified(table.table, table.schema),
            scope="".join(f"{qualified(name)} = {literal(scope[name])} AND " for name in table.scope),
            names=", ".join(map(qualified, names)),
            rows=", ".join(rows),
        )

    def _nullable(self) -> list[str]:
        """Return our columns, but for one that the application made NOT NULL."""
        table = self._table
        ours = (table.embedding, table.sparse, table.model, table.hash, table.text_hash, *table.beside)
        return [name for name in ours if name is not None and name not in table.not_null]

    def _row_keys(self, spelled: Iterable[str]) -> list[Key]:
        """Return what keys are in their columns; none where a column is looked up, which is not the key."""
        return [] if self._table.key_rule.lookup else [self._row_key(key) for key in spelled]

    def _row_key(self, spelled: str) -> Key:
        return tuple(self._statements.parts(spelled))


def _as_inserted(row: Any) -> bool:
    """Return whether text and metadata are still what the engine inserted the row with."""
    if row.text_hash is None or is_of_text(row.text_hash):
        return False
    return bool(row.text_hash == to_bigint(hash_content(row.text, row.metadata)))


def _merged(stored: sa.ColumnElement[Any], given: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return the fields that were given over those that are there."""
    return sa.case((sa.func.jsonb_typeof(stored) == "object", stored.op("||", return_type=JSONB())(given)), else_=given)


def _kept(table: VectorTable, target: sa.TableClause, given: Any, content: Iterable[str]) -> dict[str, Any]:
    """Return text and metadata of an application's row that came between: what was not given stays."""
    values: dict[str, Any] = {}
    if table.text is not None and table.text in content:
        values[table.text] = sa.func.coalesce(given[table.text], target.c[table.text])
    if table.metadata is not None:
        stored, new = (sa.cast(rows[table.metadata], JSONB) for rows in (target.c, given))
        values[table.metadata] = _merged(stored, new)
    return values
