"""Writing a batch: binary COPY into a temporary table, then one UPDATE or upsert of what is still empty."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable

from amprenta_vectors.batch import Reason, VectorBatch
from amprenta_vectors.db import is_row_refusal
from amprenta_vectors.errors import RowError
from amprenta_vectors.schema.expressions import in_scope, to_clause, to_column_value
from amprenta_vectors.schema.types import NamedType
from amprenta_vectors.schema.vector_table import VectorTable

_INLINE_BYTES = 7000
"""Vectors up to this size stay out of TOAST in the temporary table: a row must fit a page of 8192 bytes."""

COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
COPY_TRAILER = struct.pack(">h", -1)
_LENGTH = struct.Struct(">i")
_NULL = _LENGTH.pack(-1)


class Sink:
    """Fills the embedding column of ``table`` in one scope; never touches a value that is there.

    ``table`` must come from the catalogue. With ``insert``, rows that do not exist are inserted, text and metadata with
    them; otherwise they are left out. A row that exists keeps its own text and metadata.
    """

    def __init__(self, table: VectorTable, scope: Mapping[str, str], model: str | None, *, insert: bool) -> None:
        self._table = table
        self._stage = _stage(table)
        self._statement = (_upsert if insert else _update)(table, self._stage, scope, model)

    def load(self, connection: Connection, batch: VectorBatch) -> int:
        """COPY a batch with keys into a temporary table of this transaction; returns the CRC-32 of its vectors.

        No row of the target is locked yet. The bytes of every vector are those that the CRC is of.
        """
        big_endian: NDArray[np.float32] = batch.vectors.astype(">f4")
        connection.execute(CreateTable(self._stage))
        if self._table.dimension * 4 <= _INLINE_BYTES:
            connection.execute(sa.text("ALTER TABLE amprenta_batch ALTER COLUMN embedding SET STORAGE PLAIN"))
        cursor: Any = connection.connection.cursor()
        file = io.BytesIO(encode(batch, big_endian))
        checksum = zlib.crc32(big_endian.data)
        # One copy of the bytes is enough while they are sent.
        del big_endian
        cursor.copy_expert("COPY amprenta_batch FROM STDIN (FORMAT binary)", file)
        return checksum

    def write(self, connection: Connection, batch: VectorBatch) -> tuple[int, list[RowError]]:
        """Write what `load` brought; returns how many rows were filled, and the rows that PostgreSQL refused.

        Where it refuses, the batch is halved inside the transaction until the refused rows stand alone: at most
        2·log2(n) + 1 statements for each of them, and the source is not asked again.
        """
        # The temporary table has no statistics; only the unique index keeps this from reading the whole target.
        # A deferred constraint would refuse the batch as a whole, at its commit.
        connection.execute(
            sa.text("SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET CONSTRAINTS ALL IMMEDIATE")
        )
        return self._write_range(connection, batch, 0, len(batch))

    def _write_range(
        self, connection: Connection, batch: VectorBatch, start: int, end: int
    ) -> tuple[int, list[RowError]]:
        if start == end:
            return 0, []
        try:
            with connection.begin_nested():
                return connection.execute(self._statement, {"start": start, "end": end}).rowcount, []
        except DBAPIError as error:
            if not is_row_refusal(error):
                raise
            if end - start == 1:
                return 0, [RowError(batch.source_keys[start], Reason.REFUSED, _refusal(error))]
        middle = (start + end) // 2
        written, refused = self._write_range(connection, batch, start, middle)
        more_written, more_refused = self._write_range(connection, batch, middle, end)
        return written + more_written, refused + more_refused


def encode(batch: VectorBatch, big_endian: NDArray[np.float32]) -> bytes:
    """PostgreSQL's binary COPY format: ordinal, key columns, embedding, text, metadata.

    A field is its length and its bytes (https://www.postgresql.org/docs/current/sql-copy.html); a vector is its int16
    dimension, an int16 zero and big-endian float32 values (pgvector's ``vector_recv``). ``big_endian`` is
    ``(n, dimension)``.
    """
    if batch.keys is None:
        raise ValueError("a batch is written by its target keys; apply a key map first")
    dimension = batch.dimension
    fields = struct.pack(">h", 4 + len(batch.keys[0]) if batch.keys else 4)
    vector_head = _LENGTH.pack(4 + 4 * dimension) + struct.pack(">hh", dimension, 0)
    row_bytes = 4 * dimension
    values = big_endian.data.cast("B") if len(batch) else memoryview(b"")
    texts, metadata = batch.texts, batch.metadata
    parts: list[bytes | memoryview] = [COPY_HEADER]
    for row, key in enumerate(batch.keys):
        parts += (fields, _LENGTH.pack(4), _LENGTH.pack(row))
        for part in key:
            raw = part.encode()
            parts += (_LENGTH.pack(len(raw)), raw)
        parts += (vector_head, values[row * row_bytes : (row + 1) * row_bytes])
        parts.append(_text_field(texts[row] if texts is not None else None))
        fields_json = metadata[row] if metadata is not None else None
        parts.append(_text_field(None if fields_json is None else json.dumps(fields_json, ensure_ascii=False)))
    parts.append(COPY_TRAILER)
    return b"".join(parts)


def _text_field(text: str | None) -> bytes:
    if text is None:
        return _NULL
    raw = text.encode()
    return _LENGTH.pack(len(raw)) + raw


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
        prefixes=["TEMPORARY"],
        postgresql_on_commit="DROP",
    )


def _embedding(table: VectorTable, stage: sa.Table) -> sa.ColumnElement[Any]:
    column: sa.ColumnElement[Any] = stage.c.embedding
    return column if table.storage == "vector" else sa.cast(column, NamedType(f"halfvec({table.dimension})"))


def _in_range(stage: sa.Table) -> sa.ColumnElement[bool]:
    return sa.and_(stage.c.ordinal >= sa.bindparam("start"), stage.c.ordinal < sa.bindparam("end"))


def _update(table: VectorTable, stage: sa.Table, scope: Mapping[str, str], model: str | None) -> sa.Update:
    target = to_clause(table)
    values: dict[str, Any] = {table.embedding: _embedding(table, stage)}
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
    if table.text is not None:
        values[table.text] = stage.c.text
    if table.metadata is not None:
        values[table.metadata] = sa.func.coalesce(sa.cast(stage.c.metadata, postgresql.JSONB), sa.text("'{}'::jsonb"))
    if table.model is not None and model is not None:
        values[table.model] = sa.cast(model, sa.Text)
    insert = postgresql.insert(target).from_select(list(values), sa.select(*values.values()).where(_in_range(stage)))
    filled = [name for name in values if name in {table.embedding, table.model}]
    return insert.on_conflict_do_update(
        index_elements=list(table.unique_columns),
        set_={name: insert.excluded[name] for name in filled},
        where=target.c[table.embedding].is_(None),
    )


def _keys(table: VectorTable, stage: sa.Table) -> dict[str, sa.ColumnElement[Any]]:
    return {name: to_column_value(table, name, stage.c[f"key_{i}"]) for i, name in enumerate(table.key)}


def _refusal(error: DBAPIError) -> str:
    """PostgreSQL's message without its DETAIL, which may quote the whole row."""
    message: str | None = getattr(getattr(error.orig, "diag", None), "message_primary", None)
    return message or type(error.orig).__name__
