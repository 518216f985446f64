"""Bringing the rows of a batch to what the source has by now, without touching what was changed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.progress import inserted
from amprenta_vectors.backfill.reconcile.row_state import Fate, RowStates, Verdict
from amprenta_vectors.backfill.writing.sink import (
    Sink,
    Written,
    cannot_insert,
    in_range,
    is_among,
    make_stage,
    stored_content,
    stored_embedding,
    write_rows,
)
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.errors import RowError
from amprenta_vectors.reasons import Reason
from amprenta_vectors.schema.keymaps import store_keys
from amprenta_vectors.schema.slice import Slice
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.outbox import Outbox

_JOINS = sa.text("""
    SELECT set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
           set_config('enable_material', 'off', true)
""")
"""The same settings as for a write: the keys of a batch find their rows by the unique index, also in a table that has
no statistics yet."""


@dataclass(frozen=True)
class Preview:
    """The preview of a batch: rows to write, rows among those that hold an older value, and rows that are left."""

    written: int
    replaced: int
    left: Sequence[RowError]


class Reconciler:
    """Inserts absent rows (with ``insert``), fills those without an embedding, replaces those that the engine wrote.

    Text and metadata are replaced if they are what the engine inserted. A row that was changed here stays as it is, and
    is listed. Vectors that are ``computed`` are compared by their texts. Inserted rows are recorded as those of run
    ``record_for`` if it is given, and a row that is replaced stays a row of the run that inserted it.
    """

    keeps_seen = True

    def __init__(
        self,
        slice_: Slice,
        model: str | None,
        outbox: Outbox,
        *,
        insert: bool,
        computed: bool,
        record_for: int | None = None,
    ) -> None:
        self.inserts = insert
        self._slice = slice_
        self._computed = computed
        self._outbox = outbox
        self._states = RowStates(slice_, computed=computed)
        self._sink = Sink(slice_, model, insert=insert, computed=computed, record_for=record_for)
        self._replace = _replace(slice_, make_stage(slice_.table), model, computed=computed)

    def put(self, connection: Connection, batch: VectorBatch, since: datetime) -> Written:
        """Bring the rows of a batch with keys, which was fetched after ``since``, to what it says.

        The bytes to be written are in a temporary table before any row is locked. A row that is written here between
        the fetch and the lock is left alone: if it was written through the outbox, the source will have it too.
        """
        batch = self._comparable(batch)
        connection.execute(_JOINS)
        empty, held = self._states.compare(connection, batch)
        if not (empty or held):
            return Written()
        rows = batch.take([*empty, *held])
        checksum = self._sink.load(connection, rows)
        places = range(len(empty), len(rows))
        verdicts = self._states.judge(connection, rows, places, lock=True)
        verdicts = self._without_newer(connection, rows, verdicts, since)
        filled, refused = self._sink.write(connection, rows) if empty else (0, [])
        replaced, refused_too = self._replace_rows(connection, rows, verdicts)
        return Written(
            rows=filled + replaced,
            replaced=replaced,
            refused=(*refused, *refused_too, *_changed_here(rows, verdicts)),
            checksum=checksum,
        )

    def preview(self, connection: Connection, batch: VectorBatch) -> Preview:
        """Return what `put` would do, by the rows as they are now; nothing is locked or changed."""
        batch = self._comparable(batch)
        connection.execute(_JOINS)
        empty, held = self._states.compare(connection, batch)
        verdicts = self._states.judge(connection, batch, held, lock=False) if held else {}
        replaced = sum(verdict.fate is Fate.REPLACE for verdict in verdicts.values())
        absent = self._states.absent(connection, batch, empty) if self.inserts and self._slice.table.to_fill else []
        refused = [cannot_insert(self._slice.table, batch.source_keys[place]) for place in absent]
        written = len(empty) - len(absent) + replaced
        return Preview(written, replaced, [*_changed_here(batch, verdicts), *refused])

    def _comparable(self, batch: VectorBatch) -> VectorBatch:
        """Return the batch with only what its rows can hold; computed vectors keep the text, which needs no column."""
        return batch if self._computed else stored_content(batch, self._slice.table)

    def _without_newer(
        self, connection: Connection, rows: VectorBatch, verdicts: Mapping[int, Verdict], since: datetime
    ) -> dict[int, Verdict]:
        """Return the verdicts on rows that were not written through the outbox after ``since``."""
        keys = store_keys(self._slice.key_map, rows)
        asked = [keys[place] for place in verdicts]
        newer = self._outbox.newer_than(connection, asked, since) if asked else set()
        return {place: verdict for place, verdict in verdicts.items() if keys[place] not in newer}

    def _replace_rows(
        self, connection: Connection, rows: VectorBatch, verdicts: Mapping[int, Verdict]
    ) -> tuple[int, list[RowError]]:
        chosen = [place for place, verdict in verdicts.items() if verdict.fate is Fate.REPLACE]
        if not chosen:
            return 0, []
        contents = [place for place in chosen if verdicts[place].content]
        keys = rows.keys or ()
        records = inserted.still_as_inserted(connection, self._slice, [keys[place] for place in chosen])
        result = write_rows(connection, rows.source_keys, self._replace, {"chosen": chosen, "contents": contents})
        inserted.record_again(connection, self._slice, records)
        return result


def _changed_here(rows: VectorBatch, verdicts: Mapping[int, Verdict]) -> list[RowError]:
    return [
        RowError(rows.source_keys[place], Reason.CHANGED_HERE, verdict.why)
        for place, verdict in verdicts.items()
        if verdict.fate is Fate.CHANGED_HERE
    ]


def _replace(slice_: Slice, stage: sa.Table, model: str | None, *, computed: bool) -> sa.Update:
    """Return the UPDATE of the embedding in rows ``chosen``, which are locked, and of the content in ``contents``."""
    table, target = slice_.table, slice_.rows
    values: dict[str, Any] = {table.embedding: stored_embedding(table, stage.c.embedding)}
    if table.sparse is not None:
        values[table.sparse] = stage.c.sparse
    if table.model is not None and model is not None:
        values[table.model] = model
    if table.hash is not None:
        values[table.hash] = stage.c.hash
    if table.text_hash is not None and computed:
        values[table.text_hash] = stage.c.text_hash
    elif table.text_hash is not None:
        values |= _content(table, stage, target)
    return sa.update(target).values(values).where(in_range(stage), is_among("chosen", stage), *slice_.is_row_of(stage))


def _content(table: VectorTable, stage: sa.Table, target: sa.TableClause) -> dict[str, sa.ColumnElement[Any]]:
    """Return text and metadata for the rows in ``contents``, and for others what they have.

    A metadata column may be json, or text.
    """
    new: dict[str, tuple[sa.ColumnElement[Any], sa.types.TypeEngine[Any]]] = {}
    if table.text is not None:
        new[table.text] = (stage.c.text, sa.Text())
    if table.metadata is not None:
        new[table.metadata] = (sa.func.coalesce(sa.cast(stage.c.metadata, JSONB), sa.text("'{}'::jsonb")), JSONB())
    if table.text_hash is not None:
        new[table.text_hash] = (stage.c.text_hash, sa.BigInteger())
    chosen = is_among("contents", stage)
    return {
        name: sa.case((chosen, value), else_=sa.cast(target.c[name], type_)) for name, (value, type_) in new.items()
    }
