"""The comparison of every vector of a source with the table, bit for bit; PostgreSQL sorts both sides."""

from __future__ import annotations

import hashlib
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Literal

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.backends.protocol import CastSource, Source
from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.backfill.engine.fetching import fetch_all
from amprenta_vectors.backfill.engine.keys import Keys
from amprenta_vectors.backfill.engine.reading import Reading
from amprenta_vectors.backfill.verify.cast_side import CastSide
from amprenta_vectors.backfill.verify.sides import compare_sides, find_twins, source_side
from amprenta_vectors.backfill.writing.encoding import COPY_HEADER, COPY_TRAILER, sparse_bytes
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.reasons import STILL_WRITTEN, Reason
from amprenta_vectors.schema.keymaps import look_up
from amprenta_vectors.schema.row_keys import AllRows
from amprenta_vectors.schema.slice import Slice

AT_ONCE = 1000
"""Differences that are read and explained together."""
MOST_EXPLAINED = 10_000
"""Differences that are explained, each thousand by a reading of all digests."""

_LENGTH = struct.Struct(">i")


_NULL = _LENGTH.pack(-1)


Kind = Literal["missing", "extra", "different"]
KINDS: tuple[Kind, ...] = ("missing", "extra", "different")


@dataclass(frozen=True)
class Difference:
    """A key on which the sides disagree; ``kind`` is missing, extra or different, as seen from the table."""

    kind: Kind
    key: str
    detail: str = ""


@dataclass(frozen=True)
class Verification:
    """The result of a comparison: the number of source vectors ``compared``, and of keys that differ, by kind."""

    compared: int
    counts: Mapping[str, int]

    @property
    def clean(self) -> bool:
        """Whether no key differs."""
        return not any(self.counts.values())


def digests(
    vectors: np.ndarray[Any, np.dtype[np.float32]], storage: str, sparse: Sequence[bytes] | None = None
) -> list[bytes]:
    """Return the SHA-256 of each vector as ``vector_send`` or ``halfvec_send`` sends it, after one cast to ``storage``.

    It sends the int16 dimension, an int16 zero, and the values big-endian: float32, or float16 rounded to nearest even,
    as pgvector rounds. What ``sparsevec_send`` gives for the row's sparse values, if any, comes after it.
    """
    head = struct.pack(">hh", vectors.shape[1], 0)
    with np.errstate(over="ignore"):
        cast = vectors.astype(">f4" if storage == "vector" else ">f2")
    if sparse is None:
        return [hashlib.sha256(head + row.tobytes()).digest() for row in cast]
    return [hashlib.sha256(head + row.tobytes() + beside).digest() for row, beside in zip(cast, sparse, strict=True)]


class Verifier:
    """Compares one source with one slice.

    Rows that a key map looks up may exist without the source: one that the source does not have is not ``extra`` if it
    was embedded from its own text. A source that cannot list its keys is asked for those of the table's rows, so that
    what it has beyond them is not seen.
    """

    def __init__(
        self,
        engine: Engine,
        slice_: Slice,
        source: Source,
        *,
        batch_size: int,
        workers: int,
        retry: Backoff,
    ) -> None:
        self._engine = engine
        self._slice = slice_
        self._table = slice_.table
        self._source = source
        keys: Keys = source if source.description.lists else AllRows(engine, slice_)
        self._retry = retry
        self._reading = Reading(keys, retry, batch_size, workers, "verification", "amprenta-vectors verify")

    def run(
        self, on_difference: Callable[[Difference], None], on_progress: Callable[[int], None] = lambda _: None
    ) -> Verification:
        """Read the whole source into digests on disk, then let PostgreSQL join them with the table's own.

        If the source lies in the same database, PostgreSQL makes its digests too, all in that transaction.
        The source is read outside any transaction; the comparison is one transaction and so one snapshot. Raises
        `TransientError` if the retry was told to stop.
        """
        if isinstance(self._source, CastSource):
            side = CastSide(self._slice, self._source, self._reading)
            return self._compare_with(partial(side.fill, on_progress=on_progress), on_difference)
        with tempfile.TemporaryFile() as file:
            compared = self._reading.whole(partial(self._read_source, file, on_progress))

            def copy(connection: Connection, there: sa.Table) -> int:
                file.seek(0)
                cursor: Any = connection.connection.cursor()
                cursor.copy_expert(f"COPY {there.name} FROM STDIN (FORMAT binary)", file)
                return compared

            return self._compare_with(copy, on_difference)

    def _compare_with(
        self, fill: Callable[[Connection, sa.Table], int], on_difference: Callable[[Difference], None]
    ) -> Verification:
        """Compare with what ``fill`` writes of the source into a temporary table; it returns how many vectors."""
        counts: dict[str, int] = dict.fromkeys(KINDS, 0)
        with self._engine.begin() as connection:
            connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
            there = source_side(self._table)
            there.create(connection)
            compared = fill(connection, there)
            connection.execute(sa.text("ANALYZE amprenta_source"))
            for difference in self._differences(connection, there):
                counts[difference.kind] += 1
                on_difference(difference)
        return Verification(compared, counts)

    def _read_source(self, file: IO[bytes], on_progress: Callable[[int], None]) -> int:
        """Fill ``file`` and return how many vectors were read."""
        file.seek(0)
        file.truncate()
        file.write(COPY_HEADER)
        compared = 0
        for fetched in self._reading.each(partial(fetch_all, self._retry, self._source)):
            batch = self._mapped(fetched)
            file.write(self._encode(batch))
            compared += len(batch)
            on_progress(compared)
        file.write(COPY_TRAILER)
        return compared

    def _encode(self, batch: VectorBatch) -> bytes:
        """Encode rows of key columns, source key, digest, and NULL; or, for what could not be carried over, the reason.

        Such a row has its key too, if there is one, and no digest: the table may hold a value there all the same.
        """
        table = self._table
        fields = struct.pack(">h", len(table.key) + 3)
        if table.sparse_dimension is not None:
            batch = batch.with_sparse(table.sparse_dimension)
        parts: list[bytes] = []
        hashes = digests(batch.vectors, table.storage, self._sparse_bytes(batch))
        for source, key, digest in zip(batch.source_keys, batch.keys or (), hashes, strict=True):
            parts += (fields, *map(_text, key), _text(source), _field(digest), _NULL)
        quarantined = [error for error in batch.quarantined if error.reason not in STILL_WRITTEN]
        asked = [error.key for error in quarantined if error.reason != Reason.NO_TARGET]
        keys = self._retry.database("looking up keys", partial(look_up, self._slice.key_map, asked))
        no_key = [_NULL] * len(table.key)
        for error in quarantined:
            detail = f"{error.reason}: {error.detail}"
            rows = [list(map(_text, key)) for key in keys.get(error.key, ())] or [no_key]
            for row in rows:
                parts += (fields, *row, _text(error.key), _NULL, _text(detail))
        return b"".join(parts)

    def _sparse_bytes(self, batch: VectorBatch) -> list[bytes] | None:
        dimension = self._table.sparse_dimension
        if dimension is None or batch.sparse is None:
            return None
        return [b"" if values is None else sparse_bytes(values, dimension) for values in batch.sparse]

    def _mapped(self, batch: VectorBatch) -> VectorBatch:
        return self._retry.database("looking up keys", partial(self._slice.key_map.apply, batch))

    def _differences(self, connection: Connection, there: sa.Table) -> Iterator[Difference]:
        compared = compare_sides(connection, self._slice, there)
        for number, rows in enumerate(connection.execution_options(yield_per=AT_ONCE).execute(compared).partitions()):
            twins = find_twins(connection, there, rows) if number < MOST_EXPLAINED // AT_ONCE else {}
            for here, _, quarantined, source, *key in rows:
                kind: Kind = "extra" if source is None else "missing" if here is None else "different"
                row = "/".join(part for part in key if part is not None)
                detail = quarantined or (f"row {row}" if source is not None and row != source else "")
                if kind == "different" and (twin := twins.get(tuple(key))):
                    detail = f"row {row} has the vector of {twin!r}, another record for the row: delete one of the two"
                yield Difference(kind, row if source is None else source, detail)


def _field(raw: bytes) -> bytes:
    return _LENGTH.pack(len(raw)) + raw


def _text(text: str) -> bytes:
    return _field(text.encode())
