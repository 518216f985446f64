"""Writing over existing values: only for runs that are told to."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.writing.sink import (
    Sink,
    Written,
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

    A row that already is as it would become is not written. A row that exists keeps its own text and metadata.
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
        self._lock = _lock_differing(slice_, stage, model, computed=computed)
        self._replace = make_update(slice_, stage, model, is_among("chosen", stage), computed=computed)

    def put(self, connection: Connection, batch: VectorBatch, since: datetime) -> Written:
        """Write a batch with keys, which was fetched after ``since``.

        A row that was written or deleted here through the outbox since then has a newer value: it is left alone.
        """
        checksum = self._sink.load(connection, batch)
        filled, refused = self._sink.write(connection, batch)
        places = list(connection.execute(self._lock).scalars())
        keys = store_keys(self._key_map, batch)
        newer = self._outbox.newer_than(connection, [keys[place] for place in places], since) if places else set()
        chosen = [place for place in places if keys[place] not in newer]
        replaced, refused_too = write_rows(connection, batch, self._replace, {"chosen": chosen}) if chosen else (0, [])
        return Written(filled + replaced, replaced, [*refused, *refused_too], checksum)


def _lock_differing(slice_: Slice, stage: sa.Table, model: str | None, *, computed: bool) -> sa.Select[Any]:
    """Return a query that locks the rows that have an embedding and would change, and gives their places.

    It compares bit for bit, as verification does: to pgvector -0 equals 0.
    """
    table, target = slice_.table, slice_.rows
    given = slice_.send(stored_embedding(table, stage))
    differs: list[sa.ColumnElement[bool]] = [slice_.sent_embedding() != given]
    if table.sparse is not None:
        differs.append(sa.and_(stage.c.sparse.is_not(None), target.c[table.sparse].is_distinct_from(stage.c.sparse)))
    if table.model is not None and model is not None:
        differs.append(target.c[table.model].is_distinct_from(model))
    if table.hash is not None:
        differs.append(target.c[table.hash].is_distinct_from(stage.c.hash))
    if table.text_hash is not None and computed:
        differs.append(target.c[table.text_hash].is_distinct_from(stage.c.text_hash))
    return (
        sa.select(stage.c.ordinal)
        .select_from(stage.join(target, sa.and_(*slice_.is_row_of(stage))))
        .where(slice_.embedding().is_not(None), sa.or_(*differs))
        .order_by(stage.c.ordinal)
        .with_for_update(key_share=True, of=target)
    )
