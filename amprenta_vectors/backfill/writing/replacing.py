"""Writing over what is there: for runs that are told to, and for nothing else."""

from __future__ import annotations

from collections.abc import Mapping
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
    stage_keys,
    stored_embedding,
    write_rows,
)
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.schema.expressions import in_scope, to_clause
from amprenta_vectors.schema.keymaps import KeyMap, store_keys
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.outbox import Outbox


class ReplacingSink:
    """Fills as a `Sink` does, and replaces the embedding of a row that has another one, whoever wrote it.

    A row that is as it would become is not written. Text and metadata of a row that exists stay its own.
    """

    keeps_seen = False

    def __init__(
        self,
        table: VectorTable,
        scope: Mapping[str, str],
        model: str | None,
        key_map: KeyMap,
        outbox: Outbox,
        *,
        insert: bool,
        computed: bool,
    ) -> None:
        self.inserts = insert
        self._key_map = key_map
        self._outbox = outbox
        self._sink = Sink(table, scope, model, insert=insert, computed=computed)
        stage = make_stage(table)
        self._lock = _lock_differing(table, stage, scope, model, computed=computed)
        self._replace = make_update(table, stage, scope, model, is_among("chosen", stage), computed=computed)

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


def _lock_differing(
    table: VectorTable, stage: sa.Table, scope: Mapping[str, str], model: str | None, *, computed: bool
) -> sa.Select[Any]:
    """The places of the rows that have an embedding and would not stay as they are, locked.

    Bit for bit, as verification compares: to pgvector -0 equals 0.
    """
    target = to_clause(table)
    here, given = target.c[table.embedding], stored_embedding(table, stage)
    send = sa.func.vector_send if table.storage == "vector" else sa.func.halfvec_send
    differs: list[sa.ColumnElement[bool]] = [send(here) != send(given)]
    if table.sparse is not None:
        differs.append(sa.and_(stage.c.sparse.is_not(None), target.c[table.sparse].is_distinct_from(stage.c.sparse)))
    if table.model is not None and model is not None:
        differs.append(target.c[table.model].is_distinct_from(model))
    if table.hash is not None:
        differs.append(target.c[table.hash].is_distinct_from(stage.c.hash))
    if table.text_hash is not None and computed:
        differs.append(target.c[table.text_hash].is_distinct_from(stage.c.text_hash))
    keys = (target.c[name] == value for name, value in stage_keys(table, stage).items())
    return (
        sa.select(stage.c.ordinal)
        .select_from(stage.join(target, sa.and_(*keys, *in_scope(table, target, scope))))
        .where(here.is_not(None), sa.or_(*differs))
        .order_by(stage.c.ordinal)
        .with_for_update(key_share=True, of=target)
    )
