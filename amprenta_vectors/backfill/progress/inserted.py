"""``migration_insert``: the rows that a run inserted, so that those and no others can be rolled back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.progress.states import UNFINISHED
from amprenta_vectors.batch import Key
from amprenta_vectors.schema.expressions import text_array, to_column_value
from amprenta_vectors.schema.slice import Slice

_INSERTED = sa.table(
    "migration_insert",
    sa.column("run_id", sa.BigInteger),
    sa.column("key", ARRAY(sa.Text)),
    sa.column("digest", sa.Text),
)


def recording(insert: postgresql.Insert, slice_: Slice, run_id: int) -> sa.Select[Any]:
    """Return ``insert`` as a statement that also records key and content of each row that it inserts.

    It gives one row for each row written. A row that existed before carries the lock that the conflict took in its
    ``xmax``, and is not recorded.
    """
    written = insert.returning(
        postgresql.array(slice_.key_texts()).label("key"),
        _digest(slice_).label("digest"),
        sa.literal_column("xmax = 0", sa.Boolean).label("is_new"),
    ).cte("written")
    new = sa.select(sa.literal(run_id, sa.BigInteger), written.c.key, written.c.digest).where(written.c.is_new)
    recorded = sa.insert(_INSERTED).from_select(["run_id", "key", "digest"], new).cte("recorded")
    return sa.select(written.c.is_new).add_cte(recorded)


def still_as_inserted(connection: Connection, slice_: Slice, keys: Sequence[Key]) -> list[tuple[int, Key]]:
    """Return the records, by run and key, of rows that are as they were recorded; the caller has locked the rows."""
    runs = runs_with_inserted(connection, slice_.target, slice_.scope)
    if not runs:
        return []
    given, is_given = _given(slice_, keys)
    statement = (
        sa.select(_INSERTED.c.run_id, _INSERTED.c.key)
        .select_from(given.join(_INSERTED, is_given).join(slice_.rows, sa.and_(*_is_row_of(slice_))))
        .where(_INSERTED.c.run_id.in_(runs), _INSERTED.c.digest == _digest(slice_))
    )
    return [(run, tuple(key)) for run, key in connection.execute(statement).all()]


def record_again(connection: Connection, slice_: Slice, records: Sequence[tuple[int, Key]]) -> None:
    """Record recorded rows as they are now: the engine has replaced them, and they can still be rolled back."""
    if not records:
        return
    given, is_given = _given(slice_, [key for _, key in records], [run for run, _ in records])
    statement = (
        sa.update(_INSERTED)
        .values(digest=_digest(slice_))
        .where(is_given, _INSERTED.c.run_id == given.c.run, *_is_row_of(slice_))
    )
    connection.execute(statement)


def _given(slice_: Slice, keys: Sequence[Key], runs: Sequence[int] = ()) -> tuple[Any, sa.ColumnElement[bool]]:
    """Return keys, with ``runs`` beside them, as rows to join with, and the condition that a record has such a key."""
    names = [f"key_{position}" for position in range(len(slice_.table.key))]
    arrays = [text_array([key[position] for key in keys]) for position in range(len(slice_.table.key))]
    numbers = sa.cast(sa.literal(list(runs), ARRAY(sa.BigInteger)), ARRAY(sa.BigInteger))
    given = (
        sa.func.unnest(*arrays, numbers)
        .table_valued(*names, sa.column("run", sa.BigInteger), name="given")
        .render_derived()
    )
    return given, _INSERTED.c.key == postgresql.array([given.c[name] for name in names])


def runs_with_inserted(connection: Connection, target: str, scope: Mapping[str, str]) -> list[int]:
    """Return the runs into that column and scope that still have records of inserted rows, the newest first."""
    statement = sa.text("""
        SELECT id FROM migration_run r
        WHERE target = :target AND scope = CAST(:scope AS jsonb)
          AND EXISTS (SELECT 1 FROM migration_insert i WHERE i.run_id = r.id)
        ORDER BY id DESC
    """)
    return list(connection.execute(statement, {"target": target, "scope": json.dumps(dict(scope))}).scalars())


def scopes_to_roll_back(connection: Connection, target: str, source_kind: str) -> list[dict[str, str]]:
    """Return the scopes that runs from that kind of source have inserted rows into, or are about to."""
    statement = sa.text("""
        SELECT DISTINCT scope FROM migration_run r
        WHERE target = :target AND source_kind = :kind
          AND (state = ANY(:unfinished) OR EXISTS (SELECT 1 FROM migration_insert i WHERE i.run_id = r.id))
        ORDER BY scope
    """)
    values = {"target": target, "kind": source_kind, "unfinished": list(UNFINISHED)}
    return list(connection.execute(statement, values).scalars())


def count_inserted(connection: Connection, run_id: int) -> int:
    """Return how many rows that a run inserted are on record."""
    statement = sa.select(sa.func.count()).select_from(_INSERTED).where(_INSERTED.c.run_id == run_id)
    return connection.execute(statement).scalar_one()


def remove_inserted(connection: Connection, slice_: Slice, run_id: int) -> tuple[int, list[Key]]:
    """Delete the rows that a run inserted and nobody has changed since; return how many, and the keys of the others.

    The record of a row that is gone is deleted too; the record of a row that stays is kept.
    """
    found = [_INSERTED.c.run_id == run_id, *_is_row_of(slice_)]
    unchanged = _INSERTED.c.digest == _digest(slice_)
    removed = connection.execute(sa.delete(slice_.rows).where(*found, unchanged)).rowcount
    there = sa.exists().select_from(slice_.rows).where(*found[1:]).correlate(_INSERTED)
    connection.execute(sa.delete(_INSERTED).where(_INSERTED.c.run_id == run_id, ~there))
    kept: Sequence[list[str]] = (
        connection.execute(sa.select(_INSERTED.c.key).where(_INSERTED.c.run_id == run_id).order_by(_INSERTED.c.key))
        .scalars()
        .all()
    )
    return removed, [tuple(key) for key in kept]


def _is_row_of(slice_: Slice) -> list[sa.ColumnElement[bool]]:
    """Return the conditions that a row of the slice is the recorded one."""
    parts = [(name, _INSERTED.c.key[position]) for position, name in enumerate(slice_.table.key, 1)]
    same = (slice_.rows.c[name] == to_column_value(slice_.table, name, part) for name, part in parts)
    return [*slice_.in_scope(), *same]


def _digest(slice_: Slice) -> sa.ColumnElement[str]:
    """Return the digest of what a run writes into a row; times and columns that it does not know are left out."""
    table = slice_.table
    names = (table.embedding, table.sparse, table.text, table.metadata, table.model)
    columns = [slice_.rows.c[name] for name in names if name is not None]
    return sa.func.md5(sa.func.record_send(sa.func.row(*columns)))
