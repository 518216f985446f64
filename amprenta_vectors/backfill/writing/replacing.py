"""Writing over existing values: only for runs that are told to."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.writing.sink import (
    Sink,
    Written,
    filled_values,
    is_among,
    make_stage,
    make_update,
    stored_embedding,
    write_rows,
)
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.schema.keymaps import store_keys
from amprenta_vectors.schema.slice import Slice
from amprenta_vectors.stores.outbox import Outbox


class ReplacingSink:
    """Fills as a `Sink` does, and replaces the embedding of a row that has another one, whoever wrote it.

    A row that already is as it would become is not written, and one whose embedding is gets only what stands beside it:
    triggers on the embedding have nothing to do. A row that exists keeps its own text and metadata.
    """

    keeps_seen = False

    def __init__(
        self,
        slice_: Slice,
        model: str | None,
        outbox: Outbox,
        *,
        insert: bool,
        computed: bool,
    ) -> None:
        self.inserts = insert
        self._key_map = slice_.key_map
        self._outbox = outbox
        self._sink = Sink(slice_, model, insert=insert, computed=computed)
        stage = make_stage(slice_.table)
        beside = _values_beside(slice_, stage, model, computed=computed)
        chosen = is_among("chosen", stage)
        self._lock = _lock_differing(slice_, stage, beside)
        values = filled_values(slice_, stage, model, computed=computed) | beside
        self._replace = make_update(slice_, stage, values, chosen)
        self._replace_beside = make_update(slice_, stage, beside, chosen) if beside else None

    def put(self, connection: Connection, batch: VectorBatch, since: datetime) -> Written:
        """Write a batch with keys, which was fetched after ``since``.

        A row that was written or deleted here through the outbox since then has a newer value: it is left alone.
        """
        checksum = self._sink.load(connection, batch)
        filled, refused = self._sink.write(connection, batch)
        places = {row[0]: row[1] for row in connection.execute(self._lock)}
        keys = store_keys(self._key_map, batch)
        newer = self._outbox.newer_than(connection, [keys[place] for place in places], since) if places else set()
        wanted = {place: differs for place, differs in places.items() if keys[place] not in newer}
        replaced = 0
        for statement, differing in ((self._replace, True), (self._replace_beside, False)):
            chosen = [place for place, differs in wanted.items() if differs == differing]
            if chosen and statement is not None:
                rows, more = write_rows(connection, batch.source_keys, statement, {"chosen": chosen})
                replaced, refused = replaced + rows, [*refused, *more]
        return Written(filled + replaced, replaced, refused, checksum)


def _values_beside(slice_: Slice, stage: sa.Table, model: str | None, *, computed: bool) -> dict[str, Any]:
    """Return by column what a row gets whose embedding stays; the hash of its text stays too unless computed."""
    table = slice_.table
    values = filled_values(slice_, stage, model, computed=computed)
    del values[table.embedding]
    if table.text_hash is not None and not computed:
        del values[table.text_hash]
    if table.sparse is not None:
        # One that comes takes the place of what is there.
        values[table.sparse] = sa.func.coalesce(stage.c.sparse, slice_.rows.c[table.sparse])
    return values


def _lock_differing(slice_: Slice, stage: sa.Table, beside: Mapping[str, Any]) -> sa.Select[Any]:
    """Return a query of ``(place, whether the embedding differs)`` that locks the rows with one that would change.

    It compares embeddings bit for bit, as verification does: to pgvector -0 equals 0.
    """
    target = slice_.rows
    embedding_differs = slice_.sent_embedding() != slice_.send(stored_embedding(slice_.table, stage.c.embedding))
    others = (target.c[name].is_distinct_from(value) for name, value in beside.items())
    return (
        sa.select(stage.c.ordinal, embedding_differs)
        .select_from(stage.join(target, sa.and_(*slice_.is_row_of(stage))))
        .where(slice_.embedding().is_not(None), sa.or_(embedding_differs, *others))
        .order_by(stage.c.ordinal)
        .with_for_update(key_share=True, of=target)
    )
