"""``migration_insert``: the rows that a run inserted, for taking back those and no others."""

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
from amprenta_vectors.schema.expressions import in_scope, text_array, to_clause, to_column_value
from amprenta_vectors.schema.vector_table import VectorTable

_INSERTED = sa.table(
    "migration_insert",
    sa.column("run_id", sa.BigInteger),
    sa.column("key", ARRAY(sa.Text)),
    sa.column("digest", sa.Text),
)


def recording(insert: postgresql.Insert, table: VectorTable, run_id: int) -> sa.Select[Any]:
    """``insert``, and in the same statement the key and content of each row that it inserted; a row for each written.

    A row that was there before carries the lock that the conflict took, in its ``xmax``.
    """
    target = to_clause(table)
    written = insert.returning(
        postgresql.array([sa.cast(target.c[name], sa.Text) for name in table.key]).label("key"),
        _digest(table, target).label("digest"),
        sa.literal_column("xmax = 0", sa.Boolean).label("is_new"),
    ).cte("written")
    new = sa.select(sa.literal(run_id, sa.BigInteger), written.c.key, written.c.digest).where(written.c.is_new)
    recorded = sa.insert(_INSERTED).from_select(["run_id", "key", "digest"], new).cte("recorded")
    return sa.select(written.c.is_new).add_cte(recorded)


def still_as_inserted(
    connection: Connection, table: VectorTable, scope: Mapping[str, str], keys: Sequence[Key]
) -> list[tuple[int, Key]]:
    """The records, by run and key, of those rows that are as they were recorded; the rows are locked by the caller."""
    runs = runs_with_inserted(connection, table.target, scope)
    if not runs:
        return []
    target = to_clause(table)
    given, is_given = _given(table, keys)
    statement = (
        sa.select(_INSERTED.c.run_id, _INSERTED.c.key)
        .select_from(given.join(_INSERTED, is_given).join(target, sa.and_(*_is_row_of(table, target, scope))))
        .where(_INSERTED.c.run_id.in_(runs), _INSERTED.c.digest == _digest(table, target))
    )
    return [(run, tuple(key)) for run, key in connection.execute(statement).all()]


def record_again(
    connection: Connection, table: VectorTable, scope: Mapping[str, str], records: Sequence[tuple[int, Key]]
) -> None:
    """Record rows that were recorded as they are now, for they were replaced by what may be taken back likewise."""
    if not records:
        return
    target = to_clause(table)
    given, is_given = _given(table, [key for _, key in records], [run for run, _ in records])
    statement = (
        sa.update(_INSERTED)
        .values(digest=_digest(table, target))
        .where(is_given, _INSERTED.c.run_id == given.c.run, *_is_row_of(table, target, scope))
    )
    connection.execute(statement)


def _given(table: VectorTable, keys: Sequence[Key], runs: Sequence[int] = ()) -> tuple[Any, sa.ColumnElement[bool]]:
    """Keys, with ``runs`` beside them, as rows to join with; and that a record is of one of those keys."""
    names = [f"key_{position}" for position in range(len(table.key))]
    arrays = [text_array([key[position] for key in keys]) for position in range(len(table.key))]
    numbers = sa.cast(sa.literal(list(runs), ARRAY(sa.BigInteger)), ARRAY(sa.BigInteger))
    given = (
        sa.func.unnest(*arrays, numbers)
        .table_valued(*names, sa.column("run", sa.BigInteger), name="given")
        .render_derived()
    )
    return given, _INSERTED.c.key == postgresql.array([given.c[name] for name in names])


def runs_with_inserted(connection: Connection, target: str, scope: Mapping[str, str]) -> list[int]:
    """The runs into that column and scope of whose rows there is still a record, the newest first."""
    statement = sa.text("""
        SELECT id FROM migration_run r
        WHERE target = :target AND scope = CAST(:scope AS jsonb)
          AND EXISTS (SELECT 1 FROM migration_insert i WHERE i.run_id = r.id)
        ORDER BY id DESC
    """)
    return list(connection.execute(statement, {"target": target, "scope": json.dumps(dict(scope))}).scalars())


def scopes_to_roll_back(connection: Connection, target: str, source_kind: str) -> list[dict[str, str]]:
    """The scopes that runs from such a source have inserted rows into, or are about to."""
    statement = sa.text("""
        SELECT DISTINCT scope FROM migration_run r
        WHERE target = :target AND source_kind = :kind
          AND (state = ANY(:unfinished) OR EXISTS (SELECT 1 FROM migration_insert i WHERE i.run_id = r.id))
        ORDER BY scope
    """)
    values = {"target": target, "kind": source_kind, "unfinished": list(UNFINISHED)}
    return list(connection.execute(statement, values).scalars())


def count_inserted(connection: Connection, run_id: int) -> int:
    """How many rows there is a record of."""
    statement = sa.select(sa.func.count()).select_from(_INSERTED).where(_INSERTED.c.run_id == run_id)
    return connection.execute(statement).scalar_one()


def remove_inserted(
    connection: Connection, table: VectorTable, scope: Mapping[str, str], run_id: int
) -> tuple[int, list[Key]]:
    """Delete the rows that a run inserted and nobody has changed since; returns how many, and the keys of the others.

    Of what is gone the record goes too; of the others it stays.
    """
    target = to_clause(table)
    found = [
        _INSERTED.c.run_id == run_id,
        *_is_row_of(table, target, scope),
    ]
    removed = connection.execute(sa.delete(target).where(*found, _INSERTED.c.digest == _digest(table, target))).rowcount
    there = sa.exists().select_from(target).where(*found[1:]).correlate(_INSERTED)
    connection.execute(sa.delete(_INSERTED).where(_INSERTED.c.run_id == run_id, ~there))
    kept: Sequence[list[str]] = (
        connection.execute(sa.select(_INSERTED.c.key).where(_INSERTED.c.run_id == run_id).order_by(_INSERTED.c.key))
        .scalars()
        .all()
    )
    return removed, [tuple(key) for key in kept]


def _is_row_of(table: VectorTable, target: sa.TableClause, scope: Mapping[str, str]) -> list[sa.ColumnElement[bool]]:
    """That a row of the table is the recorded one."""
    keys = zip(table.key, _parts(table), strict=True)
    return [
        *in_scope(table, target, scope),
        *(target.c[name] == to_column_value(table, name, part) for name, part in keys),
    ]


def _parts(table: VectorTable) -> list[sa.ColumnElement[Any]]:
    return [_INSERTED.c.key[position] for position in range(1, len(table.key) + 1)]


def _digest(table: VectorTable, target: sa.TableClause) -> sa.ColumnElement[str]:
    """Of what a run writes into a row; times and columns that it knows nothing of are not in it."""
    names = (table.embedding, table.sparse, table.text, table.metadata, table.model)
    columns = [target.c[name] for name in names if name is not None]
    return sa.func.md5(sa.func.record_send(sa.func.row(*columns)))
