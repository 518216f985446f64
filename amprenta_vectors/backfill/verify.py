"""Every vector of a source against the table, bit for bit, with PostgreSQL doing the sorting on both sides."""

from __future__ import annotations

import hashlib
import struct
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Literal

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.backfill.planner import first_page
from amprenta_vectors.backfill.retry import Retry
from amprenta_vectors.backfill.sink import COPY_HEADER, COPY_TRAILER
from amprenta_vectors.batch import Reason, VectorBatch
from amprenta_vectors.errors import SourceError, TransientError
from amprenta_vectors.schema.expressions import in_scope, to_clause
from amprenta_vectors.schema.keymaps import KeyMap
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.sources.protocol import Source, TokenRefused

_LENGTH = struct.Struct(">i")


_NULL = _LENGTH.pack(-1)

MOST_READINGS = 3

Kind = Literal["missing", "extra", "different"]
KINDS: tuple[Kind, ...] = ("missing", "extra", "different")


@dataclass(frozen=True)
class Difference:
    """One key on which the sides disagree; ``kind`` is missing, extra or different, as seen from the table."""

    kind: Kind
    key: str
    detail: str = ""


@dataclass(frozen=True)
class Verification:
    """What a comparison found: ``compared`` vectors of the source, and how many keys differ by kind."""

    compared: int
    counts: Mapping[str, int]

    @property
    def clean(self) -> bool:
        """Whether nothing differs."""
        return not any(self.counts.values())


def digests(vectors: np.ndarray[Any, np.dtype[np.float32]], storage: str) -> list[bytes]:
    """SHA-256 of each vector as ``vector_send`` or ``halfvec_send`` puts it on the wire, after one cast to ``storage``.

    That is the int16 dimension, an int16 zero, and the values big-endian: float32, or float16 rounded to nearest even,
    as pgvector rounds.
    """
    head = struct.pack(">hh", vectors.shape[1], 0)
    with np.errstate(over="ignore"):
        cast = vectors.astype(">f4" if storage == "vector" else ">f2")
    return [hashlib.sha256(head + row.tobytes()).digest() for row in cast]


class Verifier:
    """Compares one source with one scope of a table from the catalogue."""

    def __init__(
        self,
        engine: Engine,
        table: VectorTable,
        scope: Mapping[str, str],
        source: Source,
        key_map: KeyMap,
        *,
        batch_size: int,
        workers: int,
        retry: Retry,
    ) -> None:
        self._engine = engine
        self._table = table
        self._scope = scope
        self._source = source
        self._key_map = key_map
        self._batch_size = batch_size
        self._workers = workers
        self._retry = retry

    def run(
        self, on_difference: Callable[[Difference], None], on_progress: Callable[[int], None] = lambda _: None
    ) -> Verification:
        """Read the whole source into digests on disk, then let PostgreSQL join them with the table's own.

        The source is read outside any transaction; the comparison is one transaction and so one snapshot. Raises
        `TransientError` where the retry was told to stop.
        """
        with tempfile.TemporaryFile() as file:
            compared = self._read_source(file, on_progress)
            file.seek(0)
            counts: dict[str, int] = dict.fromkeys(KINDS, 0)
            with self._engine.begin() as connection:
                for difference in self._compare(connection, file):
                    counts[difference.kind] += 1
                    on_difference(difference)
        return Verification(compared, counts)

    def _read_source(self, file: IO[bytes], on_progress: Callable[[int], None]) -> int:
        """Fill ``file`` and return how many vectors were read; a refused page token costs a second reading."""
        for _ in range(MOST_READINGS):
            file.seek(0)
            file.truncate()
            file.write(COPY_HEADER)
            compared = 0
            try:
                for batch in self._fetched():
                    file.write(self._encode(batch))
                    compared += len(batch)
                    on_progress(compared)
                    if self._retry.stopped:
                        raise TransientError("the verification was interrupted", hint="amprenta-vectors verify")
            except TokenRefused:
                continue
            file.write(COPY_TRAILER)
            return compared
        raise SourceError(f"the source refused its own page tokens {MOST_READINGS} times")

    def _fetched(self) -> Iterator[VectorBatch]:
        """Batches with target keys, fetched by several threads, at most two a thread waiting."""
        with ThreadPoolExecutor(self._workers, thread_name_prefix="verify") as pool:
            waiting: deque[Future[VectorBatch]] = deque()
            for keys in self._batches():
                waiting.append(pool.submit(self._retry, partial(self._source.fetch, keys)))
                if len(waiting) >= 2 * self._workers:
                    yield self._key_map.apply(waiting.popleft().result())
            while waiting:
                yield self._key_map.apply(waiting.popleft().result())

    def _batches(self) -> Iterator[Sequence[str]]:
        token: str | None = None
        keys: list[str] = []
        while True:
            page, token = self._retry(partial(first_page, self._source, token))
            keys.extend(page)
            if token is None or len(keys) >= self._batch_size:
                for start in range(0, len(keys), self._batch_size):
                    yield keys[start : start + self._batch_size]
                keys = []
            if token is None:
                return

    def _encode(self, batch: VectorBatch) -> bytes:
        """Rows of key columns, digest, and NULL; of what could not be carried over, the source key and the reason."""
        fields = struct.pack(">h", len(self._table.key) + 2)
        parts: list[bytes] = []
        for key, digest in zip(batch.keys or (), digests(batch.vectors, self._table.storage), strict=True):
            parts += (fields, *(_field(part.encode()) for part in key), _field(digest), _NULL)
        nulls = _NULL * len(self._table.key)
        for error in batch.rejected:
            if error.reason != Reason.SPARSE_DROPPED:
                detail = f"{error.reason}: {error.detail}"
                parts += (fields, _field(error.key.encode()), nulls, _field(detail.encode()))
        return b"".join(parts)

    def _compare(self, connection: Connection, file: IO[bytes]) -> Iterator[Difference]:
        connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
        there = sa.Table(
            "amprenta_source",
            sa.MetaData(),
            *(sa.Column(f"key_{position}", sa.Text) for position in range(len(self._table.key))),
            sa.Column("digest", sa.LargeBinary),
            sa.Column("rejected", sa.Text),
            prefixes=["TEMPORARY"],
            postgresql_on_commit="DROP",
        )
        there.create(connection)
        cursor: Any = connection.connection.cursor()
        cursor.copy_expert("COPY amprenta_source FROM STDIN (FORMAT binary)", file)
        connection.execute(sa.text("ANALYZE amprenta_source"))
        rows = connection.execution_options(yield_per=1000).execute(self._join(there))
        for here, digest, rejected, *key in rows:
            kind: Kind = "extra" if digest is None and rejected is None else "missing" if here is None else "different"
            yield Difference(kind, "/".join(part for part in key if part is not None), rejected or "")

    def _join(self, there: sa.Table) -> sa.Select[Any]:
        table = self._table
        target = to_clause(table)
        send = sa.func.vector_send if table.storage == "vector" else sa.func.halfvec_send
        names = [f"key_{position}" for position in range(len(table.key))]
        here = (
            sa.select(
                *(
                    sa.cast(target.c[column], sa.Text).label(name)
                    for column, name in zip(table.key, names, strict=True)
                ),
                sa.func.sha256(send(target.c[table.embedding])).label("digest"),
            )
            .where(target.c[table.embedding].is_not(None), *in_scope(table, target, self._scope))
            .subquery("here")
        )
        keys = [sa.func.coalesce(here.c[name], there.c[name]).label(name) for name in names]
        return (
            sa.select(here.c.digest, there.c.digest, there.c.rejected, *keys)
            .select_from(here.join(there, sa.and_(*(here.c[n] == there.c[n] for n in names)), full=True))
            .where(here.c.digest.is_distinct_from(there.c.digest) | there.c.rejected.is_not(None))
            .order_by(*keys)
        )


def _field(raw: bytes) -> bytes:
    return _LENGTH.pack(len(raw)) + raw
