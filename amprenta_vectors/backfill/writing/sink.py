"""Writing a batch: binary COPY into a temporary table, then one UPDATE or upsert of what is still empty."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as copy_with
from datetime import datetime
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable

from amprenta_vectors.backfill.progress import inserted
from amprenta_vectors.backfill.writing.encoding import BatchStream
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.bisect import errors_of, isolate
from amprenta_vectors.errors import RowError
from amprenta_vectors.pg.errors import NOT_NULL, is_row_refusal, refusal_of, sqlstate
from amprenta_vectors.reasons import Reason
from amprenta_vectors.schema.catalogue import check_visible
from amprenta_vectors.schema.expressions import to_column_value
from amprenta_vectors.schema.slice import Slice
from amprenta_vectors.schema.types import NamedType
from amprenta_vectors.schema.vector_table import VectorTable

_INLINE_BYTES = 7000
"""The size up to which vectors stay out of TOAST in the temporary table: a row must fit a page of 8192 bytes."""


@dataclass(frozen=True)
class Written:
    """The result of a batch: rows written, rows among those that held an older value, and the CRC-32 of what was sent.

    ``refused`` has the rows that were to be written and were not, or were left alone for a reason.
    """

    rows: int = 0
    replaced: int = 0
    refused: Sequence[RowError] = ()
    checksum: int = 0


class Writer(Protocol):
    """A writer of a batch's rows, in the transaction of its checkpoint."""

    @property
    def inserts(self) -> bool:
        """Whether rows that are absent from the table are inserted."""
        ...

    @property
    def keeps_seen(self) -> bool:
        """Whether the run needs to know, once it has done every batch, which rows it saw."""
        ...

    def put(self, connection: Connection, batch: VectorBatch, since: datetime) -> Written:
        """Write a batch with keys, which was fetched after ``since``."""
        ...


class Sink:
    """Fills the embedding column of a slice; never touches an existing value.

    With ``insert``, rows that do not exist are inserted with text and metadata; otherwise they are left out. A row that
    exists keeps its own text and metadata. What was written can be recognised by its hashes: the hash of the embedding,
    and the hash of text and metadata if they were written too, or of the text if the vectors were ``computed``.
    Inserted rows are recorded as those of run ``record_for`` if it is given.
    """

    keeps_seen = False

    def __init__(
        self,
        slice_: Slice,
        model: str | None,
        *,
        insert: bool,
        computed: bool = False,
        record_for: int | None = None,
    ) -> None:
        self.inserts = insert
        self._table = table = slice_.table
        self._computed = computed
        self._stage = make_stage(table)
        self._prepare_stage = _prepare_stage(table, self._stage)
        # PostgreSQL asks for what is NOT NULL before it sees that a row is there.
        self._updates_first = insert and bool(table.to_fill or table.not_null & {table.text, table.model})
        self._absent = _absent(slice_, self._stage)
        upsert = _upsert(
            slice_, self._stage, model, only=is_among("absent", self._stage) if self._updates_first else None
        )
        self._upsert: sa.Executable = upsert
        if record_for is not None:
            self._upsert = inserted.recording(upsert, slice_, record_for)
        self._statement: sa.Executable = self._upsert
        if not insert or self._updates_first:
            filled = filled_values(slice_, self._stage, model, computed=computed)
            self._statement = make_update(slice_, self._stage, filled, slice_.embedding().is_(None))

    def put(self, connection: Connection, batch: VectorBatch, since: datetime) -> Written:
        """Write a batch with keys, which was fetched after ``since``."""
        checksum = self.load(connection, batch)
        written, refused = self.write(connection, batch)
        return Written(written, 0, refused, checksum)

    def load(self, connection: Connection, batch: VectorBatch) -> int:
        """COPY a batch with keys into a temporary table of this transaction; return the CRC-32 of its vectors.

        No row of the target is locked yet. The CRC is of the very bytes that are sent.
        """
        table = self._table
        stream = BatchStream(
            batch if self._computed else stored_content(batch, table),
            table.sparse_dimension,
            hashed_as=None if table.hash is None else table.storage,
            hashed=None if table.text_hash is None else "text" if self._computed else "content",
        )
        connection.execute(self._prepare_stage)
        cursor: Any = connection.connection.cursor()
        cursor.copy_expert("COPY amprenta_batch FROM STDIN (FORMAT binary)", stream)
        return stream.checksum

    def write(self, connection: Connection, batch: VectorBatch) -> tuple[int, list[RowError]]:
        """Write what `load` brought; return how many rows were written, and the rows that were refused.

        If PostgreSQL refuses, the batch is halved inside the transaction until the refused rows stand alone: at most
        `bisect.most_tries` statements, and `bisect.budget` whatever happens. The source is not asked again.
        """
        written, refused = write_rows(connection, batch.source_keys, self._statement)
        if self._updates_first:
            absent = list(connection.execute(self._absent).scalars())
            inserted_rows, refused_too = self._insert(connection, batch, absent) if absent else (0, [])
            written, refused = written + inserted_rows, [*refused, *refused_too]
        if written + len(refused) < len(batch):
            # Rows were filled meanwhile, or are gone; or were hidden since the run started, which looks like either.
            check_visible(connection, self._table)
        return written, refused

    def _insert(self, connection: Connection, batch: VectorBatch, absent: Sequence[int]) -> tuple[int, list[RowError]]:
        """Insert the rows at those places; all are refused at once where a column has a value for none of them."""
        if self._table.to_fill:
            try:
                with connection.begin_nested():
                    values = {"absent": absent, "start": 0, "end": len(batch)}
                    return connection.execute(self._upsert, values).rowcount, []
            except DBAPIError as error:
                if sqlstate(error) == NOT_NULL:
                    return 0, [cannot_insert(self._table, batch.source_keys[row]) for row in absent]
                if not is_row_refusal(error):
                    raise
        return write_rows(connection, batch.source_keys, self._upsert, {"absent": absent})


def cannot_insert(table: VectorTable, source_key: str) -> RowError:
    """Return why a row that the table does not have cannot be inserted."""
    why = f"no row has it, and none can be inserted: no value for NOT NULL {', '.join(table.to_fill)}"
    return RowError(source_key, Reason.REFUSED, why)


def stored_content(batch: VectorBatch, table: VectorTable) -> VectorBatch:
    """Return the batch without the texts or metadata that ``table`` has no column for."""
    if table.text is None and batch.texts is not None:
        batch = copy_with(batch, texts=None)
    if table.metadata is None and batch.metadata is not None:
        batch = copy_with(batch, metadata=None)
    return batch


def write_rows(
    connection: Connection,
    source_keys: Sequence[str],
    statement: sa.Executable,
    values: Mapping[str, Any] | None = None,
    bind: Callable[[int, int], Mapping[str, Any]] = lambda start, end: {"start": start, "end": end},
) -> tuple[int, list[RowError]]:
    """Execute ``statement`` for ranges of a batch's rows; halve and return as `Sink.write` does.

    It is executed with ``values``, and with what ``bind`` gives for a range.
    """
    written = 0

    def attempt(start: int, end: int) -> str | None:
        nonlocal written
        try:
            with connection.begin_nested():
                written += connection.execute(statement, {**(values or {}), **bind(start, end)}).rowcount
        except DBAPIError as error:
            if not is_row_refusal(error):
                raise
            return refusal_of(error)
        return None

    found = isolate(len(source_keys), attempt)
    return written, errors_of(found, source_keys, Reason.REFUSED)


def make_stage(table: VectorTable) -> sa.Table:
    """Return the temporary table: with keys and metadata as text, so that the target refuses a value row by row."""
    return sa.Table(
        "amprenta_batch",
        sa.MetaData(),
        sa.Column("ordinal", sa.Integer),
        *(sa.Column(f"key_{position}", sa.Text) for position in range(len(table.key))),
        sa.Column("embedding", NamedType(f"vector({table.dimension})")),
        sa.Column("text", sa.Text),
        sa.Column("metadata", sa.Text),
        *([] if table.sparse is None else [sa.Column("sparse", NamedType(f"sparsevec({table.sparse_dimension})"))]),
        *([] if table.hash is None else [sa.Column("hash", sa.BigInteger)]),
        *([] if table.text_hash is None else [sa.Column("text_hash", sa.BigInteger)]),
        prefixes=["TEMPORARY"],
        postgresql_on_commit="DROP",
    )


def _prepare_stage(table: VectorTable, stage: sa.Table) -> sa.TextClause:
    """Return all statements that a transaction needs before its COPY, for one round trip.

    The temporary table has no statistics, so hash and merge joins are off: only the unique index keeps the write from
    reading the whole target. A deferred constraint would refuse the batch as a whole, at its commit.
    """
    statements = [str(CreateTable(stage).compile(dialect=postgresql.dialect())).strip()]  # type: ignore[no-untyped-call]
    if table.dimension * 4 <= _INLINE_BYTES:
        statements.append("ALTER TABLE amprenta_batch ALTER COLUMN embedding SET STORAGE PLAIN")
    statements += ["SET LOCAL enable_hashjoin = off", "SET LOCAL enable_mergejoin = off"]
    return sa.text("; ".join([*statements, "SET CONSTRAINTS ALL IMMEDIATE"]))


def stored_embedding(table: VectorTable, vector: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return a vector as the table's column holds it."""
    return vector if table.storage == "vector" else sa.cast(vector, NamedType(f"halfvec({table.dimension})"))


def in_range(stage: sa.Table) -> sa.ColumnElement[bool]:
    """Return the condition for the rows from ``start`` to before ``end``, which are bound at execution."""
    return sa.and_(stage.c.ordinal >= sa.bindparam("start"), stage.c.ordinal < sa.bindparam("end"))


def is_among(name: str, stage: sa.Table) -> sa.ColumnElement[bool]:
    """Return the condition for the rows whose places are in the list that is bound as ``name`` at execution."""
    return stage.c.ordinal == sa.func.any(sa.cast(sa.bindparam(name), postgresql.ARRAY(sa.Integer)))


def make_update(slice_: Slice, stage: sa.Table, values: Mapping[str, Any], wanted: sa.ColumnElement[bool]) -> sa.Update:
    """Return the UPDATE that gives the ``values`` to those rows of ``stage`` in the range that are ``wanted``."""
    return sa.update(slice_.rows).values(values).where(in_range(stage), wanted, *slice_.is_row_of(stage))


def filled_values(slice_: Slice, stage: sa.Table, model: str | None, *, computed: bool) -> dict[str, Any]:
    """Return by column what a row without an embedding gets from ``stage``."""
    table, target = slice_.table, slice_.rows
    hashed = None if table.hash is None else stage.c.hash
    values = embedding_values(slice_, stored_embedding(table, stage.c.embedding), model, hashed)
    if table.sparse is not None:
        values[table.sparse] = sa.func.coalesce(target.c[table.sparse], stage.c.sparse)
    if table.text_hash is not None and computed:
        values[table.text_hash] = stage.c.text_hash
    return values


def embedding_values(
    slice_: Slice, embedding: sa.ColumnElement[Any], model: str | None, hashed: sa.ColumnElement[Any] | None
) -> dict[str, Any]:
    """Return by column what a row gets with an ``embedding`` as its column holds it, and the hash of that."""
    table = slice_.table
    values: dict[str, Any] = {table.embedding: embedding}
    if table.model is not None and model is not None:
        values[table.model] = model
    if table.hash is not None:
        values[table.hash] = hashed
    if table.text_hash is not None:
        values[table.text_hash] = _without_text_of_old(slice_)
    return values


def _without_text_of_old(slice_: Slice) -> sa.ColumnElement[Any]:
    """Return the text hash that a row keeps when it gets an embedding from elsewhere.

    The hash of the text that an older embedding was made from is not kept.
    """
    return sa.case((slice_.embedded_here(), sa.null()), else_=slice_.rows.c[str(slice_.table.text_hash)])


def _absent(slice_: Slice, stage: sa.Table) -> sa.Select[Any]:
    """Select the places of the rows that the table does not have."""
    there = sa.exists().select_from(slice_.rows).where(*slice_.is_row_of(stage)).correlate(stage)
    return sa.select(stage.c.ordinal).where(~there).order_by(stage.c.ordinal)


def _upsert(
    slice_: Slice, stage: sa.Table, model: str | None, *, only: sa.ColumnElement[bool] | None
) -> postgresql.Insert:
    """Return the statement that gives the rows in the range, or ``only`` some of them, what ``stage`` has."""
    table, target = slice_.table, slice_.rows
    values: dict[str, Any] = {name: to_column_value(table, name, slice_.scope[name]) for name in table.scope}
    values |= slice_.key_values(stage)
    values[table.embedding] = stored_embedding(table, stage.c.embedding)
    if table.sparse is not None:
        values[table.sparse] = stage.c.sparse
    if table.text is not None:
        values[table.text] = stage.c.text
    if table.metadata is not None:
        values[table.metadata] = sa.func.coalesce(sa.cast(stage.c.metadata, postgresql.JSONB), sa.text("'{}'::jsonb"))
    if table.model is not None and model is not None:
        values[table.model] = sa.cast(model, sa.Text)
    if table.hash is not None:
        values[table.hash] = stage.c.hash
    if table.text_hash is not None:
        values[table.text_hash] = stage.c.text_hash
    chosen = in_range(stage) if only is None else sa.and_(in_range(stage), only)
    insert = postgresql.insert(target).from_select(list(values), sa.select(*values.values()).where(chosen))
    filled = [name for name in values if name in {table.embedding, table.model, table.hash}]
    changes: dict[str, Any] = {name: insert.excluded[name] for name in filled}
    if table.sparse is not None:
        changes[table.sparse] = sa.func.coalesce(target.c[table.sparse], insert.excluded[table.sparse])
    if table.text_hash is not None:
        changes[table.text_hash] = _without_text_of_old(slice_)
    return insert.on_conflict_do_update(
        index_elements=list(table.unique_columns),
        set_=changes,
        where=slice_.embedding().is_(None),
    )
