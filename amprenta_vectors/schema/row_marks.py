"""``vector_row_mark``: of an application's table, the rows that a store inserted, and those that it emptied.

A row that a store inserted is the store's own, until the application changes a column of it. An emptied one stays empty
until the application writes it again: then its version is another, as its ``xmin`` tells. Where the table was rewritten
or restored since, every ``xmin`` is, and the row's content decides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, array, insert
from sqlalchemy.engine import Connection

from amprenta_vectors.batch import Key
from amprenta_vectors.schema.expressions import text_array
from amprenta_vectors.schema.key_values import canonical
from amprenta_vectors.schema.vector_table import UPDATED_AT, VectorTable

Mark = Literal["inserted", "emptied"]

VERSION_COLUMNS = ("xmin", "ctid", "tableoid")
"""The system columns that a row is told by; whoever asks for marks selects from a clause that has them."""

_MARKS = sa.table(
    "vector_row_mark",
    sa.column("target", sa.Text),
    sa.column("scope", JSONB),
    sa.column("key", ARRAY(sa.Text)),
    sa.column("mark", sa.Text),
    sa.column("written_by", sa.Text),
    sa.column("row_at", sa.Text),
    sa.column("file_node", sa.BigInteger),
    sa.column("digest", sa.Text),
    sa.column("digest_without", ARRAY(sa.Text)),
)
_BUCKETS = 64
_MANY = 4 * _BUCKETS
"""Keys that lie in nearly every bucket: all are locked then, which is cheaper than to find out."""
_LOCKS = 723056119
"""The class of the advisory locks that keep those who fill rows from those who empty them; any number would do."""
_LOCKING: Mapping[bool, Any] = {True: sa.func.pg_advisory_xact_lock, False: sa.func.pg_advisory_xact_lock_shared}
_MAY_MARK = sa.text("""
    SELECT coalesce(bool_and(has_table_privilege(to_regclass('vector_row_mark'), privilege)), false)
    FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
""")


@dataclass(frozen=True)
class RowMarks:
    """The marks on rows of one scope of a vector table from the catalogue."""

    table: VectorTable
    scope: Mapping[str, str]

    def may_mark(self, connection: Connection) -> bool:
        """Return whether this role can keep marks: a role that writes one table need not have been granted another."""
        return bool(connection.scalar(_MAY_MARK))

    def is_marked(self, mark: Mark, rows: Any) -> sa.ColumnElement[bool]:
        """Return whether a row of ``rows`` has that mark, and is still the row that was marked."""
        digest = _MARKS.c.digest == self._digest(rows)
        if mark == "emptied":
            same_file = _MARKS.c.file_node == _file_node(rows)
            digest = sa.case((same_file, _MARKS.c.written_by == _written_by(rows)), else_=digest)
        marked = sa.select(sa.literal(1)).select_from(_MARKS).where(*self._of_scope(), _MARKS.c.mark == mark)
        return marked.where(_MARKS.c.key == self._key(rows), digest).correlate(rows).exists()

    def lock(self, connection: Connection, keys: Sequence[Key], *, emptying: bool) -> None:
        """Until the transaction's end, keep those who empty rows of ``keys`` and those who fill them apart.

        Call it before the rows are locked or looked at: then no mark is put in between. ``keys`` are as PostgreSQL
        spells them; of many, any spelling does.
        """
        if keys:
            if len(keys) >= _MANY:
                connection.execute(_LOCK_ALL[emptying]).all()
            else:
                values = {"target": self.table.own_target, "keys": [json.dumps(key) for key in keys]}
                connection.execute(_LOCK[emptying], values).all()

    def has_any(self, connection: Connection) -> bool:
        """Return whether there is any mark on rows of the scope, which one look at the unique index tells."""
        return bool(connection.scalar(_HAS_ANY, {"target": self.table.own_target, "scope": self._scope_text()}))

    def put(self, connection: Connection, mark: Mark, found: sa.ColumnElement[bool], rows: Any) -> None:
        """Mark the rows that are ``found`` as they are now; the caller's transaction has them locked."""
        values = {
            "target": sa.literal(self.table.own_target, sa.Text),
            "scope": self._scope(),
            "key": self._key(rows),
            "mark": sa.literal(mark, sa.Text),
            "written_by": _written_by(rows),
            "row_at": sa.cast(rows.c.ctid, sa.Text),
            "file_node": _file_node(rows),
            "digest": self._digest(rows),
            "digest_without": text_array(self._ours()),
        }
        chosen = sa.select(*values.values()).select_from(rows).where(found)
        marking = insert(_MARKS).from_select(list(values), chosen)
        kept = ("target", "scope", "key")
        changes = {name: marking.excluded[name] for name in values if name not in kept}
        connection.execute(marking.on_conflict_do_update(index_elements=kept, set_=changes))

    def remove(self, connection: Connection, keys: Sequence[Key]) -> None:
        """Forget the marks on rows of ``keys``."""
        if keys:
            connection.execute(sa.delete(_MARKS).where(*self._of_scope(), _MARKS.c.key.in_(_given(keys))))

    def _of_scope(self) -> tuple[sa.ColumnElement[bool], ...]:
        return _MARKS.c.target == self.table.own_target, _MARKS.c.scope == self._scope()

    def _scope(self) -> sa.ColumnElement[Any]:
        # A literal: a text that is cast as it stands would be made JSON twice.
        return sa.cast(sa.literal(self._scope_text()), JSONB)

    def _scope_text(self) -> str:
        return json.dumps({name: self._value(name) for name in self.table.scope})

    def _value(self, name: str) -> str:
        """Return a scope value as its column spells it."""
        value = self.scope[name]
        return canonical(value, self.table.column_types[name]) or value

    def _key(self, rows: Any) -> sa.ColumnElement[Any]:
        return array([sa.cast(rows.c[name], sa.Text) for name in self.table.key])

    def _digest(self, rows: Any) -> sa.ColumnElement[str]:
        """Return a digest of what the application's columns hold: all but ours, and but the time of the last write."""
        others = sa.func.to_jsonb(rows.table_valued()).op("-")(text_array(self._ours()))
        return sa.func.md5(sa.cast(others, sa.Text))

    def _ours(self) -> list[str]:
        table = self.table
        ours = (table.embedding, table.sparse, table.model, table.hash, table.text_hash, *table.beside, UPDATED_AT)
        return [name for name in ours if name is not None]


def _given(keys: Sequence[Key]) -> sa.Select[Any]:
    """Select keys as rows, each an array of texts."""
    width = len(keys[0])
    names = [f"key_{position}" for position in range(width)]
    columns = [text_array([key[position] for key in keys]) for position in range(width)]
    given = sa.func.unnest(*columns).table_valued(*names, name="given").render_derived()
    return sa.select(array([given.c[name] for name in names]))


def _locks(lock: Any) -> sa.Select[Any]:
    """Take a lock on the bucket of each of ``:keys``, in one order for everybody."""
    keys = sa.func.unnest(sa.cast(sa.bindparam("keys"), ARRAY(sa.Text))).column_valued("key")
    bucket = sa.func.abs(sa.func.hashtext(sa.bindparam("target", type_=sa.Text) + keys) % _BUCKETS)
    buckets = sa.select(bucket.label("bucket")).distinct().order_by("bucket").subquery()
    return sa.select(lock(_LOCKS, buckets.c.bucket))


def _lock_all(lock: Any) -> sa.Select[Any]:
    """Take the lock on every bucket, in the same order."""
    buckets = sa.select(sa.func.generate_series(0, _BUCKETS - 1).label("bucket")).subquery()
    return sa.select(lock(_LOCKS, buckets.c.bucket))


_HAS_ANY = sa.text("""
    SELECT EXISTS (SELECT 1 FROM vector_row_mark WHERE target = :target AND scope = CAST(:scope AS jsonb))
""")
_LOCK = {emptying: _locks(lock) for emptying, lock in _LOCKING.items()}
_LOCK_ALL = {emptying: _lock_all(lock) for emptying, lock in _LOCKING.items()}


def _written_by(rows: Any) -> sa.ColumnElement[str]:
    return sa.cast(rows.c.xmin, sa.Text)


def _file_node(rows: Any) -> sa.ColumnElement[int]:
    return sa.cast(sa.func.pg_relation_filenode(rows.c.tableoid), sa.BigInteger)
