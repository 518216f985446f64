"""Writing a batch: binary COPY into a temporary table, then one UPDATE or upsert of what is still empty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable

from amprenta_vectors.backfill.bisect import isolate
from amprenta_vectors.backfill.encoding import BatchStream
from amprenta_vectors.batch import Reason, VectorBatch
from amprenta_vectors.db import is_row_refusal
from amprenta_vectors.errors import RowError
from amprenta_vectors.schema.catalogue import check_visible
from amprenta_vectors.schema.expressions import in_scope, to_clause, to_column_value
from amprenta_vectors.schema.types import NamedType
from amprenta_vectors.schema.vector_table import VectorTable

_INLINE_BYTES = 7000
"""Vectors up to this size stay out of TOAST in the temporary table: a row must fit a page of 8192 bytes."""


class Sink:
    """Fills the embedding column of ``table`` in one scope; never touches a value that is there.

    ``table`` must come from the catalogue. With ``insert``, rows that do not exist are inserted, text and metadata with
    them; otherwise they are left out. A row that exists keeps its own text and metadata.
    """

    def __init__(self, table: VectorTable, scope: Mapping[str, str], model: str | None, *, insert: bool) -> None:
        self.inserts = insert
        self._table = table
        self._stage = _stage(table)
        self._prepare_stage = _prepare_stage(table, self._stage)
        self._statement = (_upsert if insert else _update)(table, self._stage, scope, model)

    def load(self, connection: Connection, batch: VectorBatch) -> int:
        """COPY a batch with keys into a temporary table of this transaction; returns the CRC-32 of its vectors.

        No row of the target is locked yet. The bytes of every vector are those that the CRC is of.
        """
        stream = BatchStream(batch, self._table.sparse_dimension)
        connection.execute(self._prepare_stage)
        cursor: Any = connection.connection.cursor()
        cursor.copy_expert("COPY amprenta_batch FROM STDIN (FORMAT binary)", stream)
        return stream.checksum

    def write(self, connection: Connection, batch: VectorBatch) -> tuple[int, list[RowError]]:
        """Write what `load` brought; returns how many rows were filled, and the rows that were not.

        Where PostgreSQL refuses, the batch is halved inside the transaction until the refused rows stand alone: at most
        `bisect.most_tries` statements, and `bisect.budget` whatever happens. The source is not asked again.
        """
        written = 0

        def attempt(start: int, end: int) -> str | None:
            nonlocal written
            try:
                with connection.begin_nested():
                    written += connection.execute(self._statement, {"start": start, "end": end}).rowcount
            except DBAPIError as error:
                if not is_row_refusal(error):
                    raise
                return _refusal(error)
            return None

        found = isolate(len(batch), attempt)
        refused = [RowError(batch.source_keys[row], Reason.REFUSED, refusal) for row, refusal in found.alone]
        refused += [
            RowError(batch.source_keys[row], Reason.NOT_ISOLATED, f"one of several refused together: {refusal}")
            for start, end, refusal in found.unsettled
            for row in range(start, end)
        ]
        if written + len(refused) < len(batch):
            # Filled meanwhile, or gone; or hidden since the run began, which would pass for either.
            check_visible(connection, self._table)
        return written, refused


def _stage(table: VectorTable) -> sa.Table:
    """The temporary table: keys and metadata as text, so that a value the target refuses is refused row by row."""
    return sa.Table(
        "amprenta_batch",
        sa.MetaData(),
        sa.Column("ordinal", sa.Integer),
        *(sa.Column(f"key_{position}", sa.Text) for position in range(len(table.key))),
        sa.Column("embedding", NamedType(f"vector({table.dimension})")),
        sa.Column("text", sa.Text),
        sa.Column("metadata", sa.Text),
        *([] if table.sparse is None else [sa.Column("sparse", NamedType(f"sparsevec({table.sparse_dimension})"))]),
        prefixes=["TEMPORARY"],
        postgresql_on_commit="DROP",
    )


def _prepare_stage(table: VectorTable, stage: sa.Table) -> sa.TextClause:
    """All that a transaction needs before its COPY, in one journey to the server.

    The temporary table has no statistics; only the unique index keeps the write from reading the whole target. A
    deferred constraint would refuse the batch as a whole, at its commit.
    """
    statements = [str(CreateTable(stage).compile(dialect=postgresql.dialect())).strip()]  # type: ignore[no-untyped-call]
    if table.dimension * 4 <= _INLINE_BYTES:
        statements.append("ALTER TABLE amprenta_batch ALTER COLUMN embedding SET STORAGE PLAIN")
    statements += ["SET LOCAL enable_hashjoin = off", "SET LOCAL enable_mergejoin = off"]
    return sa.text("; ".join([*statements, "SET CONSTRAINTS ALL IMMEDIATE"]))


def _embedding(table: VectorTable, stage: sa.Table) -> sa.ColumnElement[Any]:
    column: sa.ColumnElement[Any] = stage.c.embedding
    return column if table.storage == "vector" else sa.cast(column, NamedType(f"halfvec({table.dimension})"))


def _in_range(stage: sa.Table) -> sa.ColumnElement[bool]:
    return sa.and_(stage.c.ordinal >= sa.bindparam("start"), stage.c.ordinal < sa.bindparam("end"))


def _update(table: VectorTable, stage: sa.Table, scope: Mapping[str, str], model: str | None) -> sa.Update:
    target = to_clause(table)
    values: dict[str, Any] = {table.embedding: _embedding(table, stage)}
    if table.sparse is not None:
        values[table.sparse] = sa.func.coalesce(target.c[table.sparse], stage.c.sparse)
    if table.model is not None and model is not None:
        values[table.model] = model
    keys = (target.c[name] == value for name, value in _keys(table, stage).items())
    return (
        sa.update(target)
        .values(values)
        .where(_in_range(stage), target.c[table.embedding].is_(None), *in_scope(table, target, scope), *keys)
    )


def _upsert(table: VectorTable, stage: sa.Table, scope: Mapping[str, str], model: str | None) -> postgresql.Insert:
    target = to_clause(table)
    values: dict[str, Any] = {name: to_column_value(table, name, scope[name]) for name in table.scope}
    values |= _keys(table, stage)
    values[table.embedding] = _embedding(table, stage)
    if table.sparse is not None:
        values[table.sparse] = stage.c.sparse
    if table.text is not None:
        values[table.text] = stage.c.text
    if table.metadata is not None:
        values[table.metadata] = sa.func.coalesce(sa.cast(stage.c.metadata, postgresql.JSONB), sa.text("'{}'::jsonb"))
    if table.model is not None and model is not None:
        values[table.model] = sa.cast(model, sa.Text)
    insert = postgresql.insert(target).from_select(list(values), sa.select(*values.values()).where(_in_range(stage)))
    filled = [name for name in values if name in {table.embedding, table.model}]
    changes: dict[str, Any] = {name: insert.excluded[name] for name in filled}
    if table.sparse is not None:
        changes[table.sparse] = sa.func.coalesce(target.c[table.sparse], insert.excluded[table.sparse])
    return insert.on_conflict_do_update(
        index_elements=list(table.unique_columns),
        set_=changes,
        where=target.c[table.embedding].is_(None),
    )


def _keys(table: VectorTable, stage: sa.Table) -> dict[str, sa.ColumnElement[Any]]:
    return {name: to_column_value(table, name, stage.c[f"key_{i}"]) for i, name in enumerate(table.key)}


def _refusal(error: DBAPIError) -> str:
    """PostgreSQL's message without its DETAIL, which may quote the whole row."""
    message: str | None = getattr(getattr(error.orig, "diag", None), "message_primary", None)
    return message or type(error.orig).__name__
