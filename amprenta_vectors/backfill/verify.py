"""Every vector of a source against the table, bit for bit, with PostgreSQL doing the sorting on both sides."""

from __future__ import annotations

import hashlib
import struct
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.backfill.planner import first_page
from amprenta_vectors.backfill.retry import Retry
from amprenta_vectors.backfill.sink import COPY_HEADER, COPY_TRAILER
from amprenta_vectors.batch import Reason, VectorBatch
from amprenta_vectors.schema.keymaps import KeyMap
from amprenta_vectors.schema.types import NamedType
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.sources.protocol import Source

_LENGTH = struct.Struct(">i")


@dataclass(frozen=True)
class Difference:
    """One key on which the sides disagree; ``kind`` is missing, extra or different, as seen from the table."""

    kind: str
    key: str
    detail: str = ""


@dataclass
class Verification:
    """What a comparison found: ``compared`` vectors of the source, and how many keys differ by kind."""

    compared: int = 0
    counts: dict[str, int] = field(default_factory=lambda: {"missing": 0, "extra": 0, "different": 0})

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

        The source is read outside any transaction; the comparison is one transaction and so one snapshot.
        """
        result = Verification()

        def differs(difference: Difference) -> None:
            result.counts[difference.kind] += 1
            on_difference(difference)

        with tempfile.TemporaryFile() as file:
            file.write(COPY_HEADER)
            for batch in self._fetched():
                for error in batch.rejected:
                    if error.reason != Reason.SPARSE_DROPPED:
                        differs(Difference("missing", error.key, f"{error.reason}: {error.detail}"))
                self._write(file, batch)
                result.compared += len(batch)
                on_progress(result.compared)
            file.write(COPY_TRAILER)
            file.seek(0)
            with self._engine.begin() as connection:
                self._compare(connection, file, differs)
        return result

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

    def _write(self, file: IO[bytes], batch: VectorBatch) -> None:
        fields = struct.pack(">h", 1 + len(self._table.key))
        parts: list[bytes] = []
        for key, digest in zip(batch.keys or (), digests(batch.vectors, self._table.storage), strict=True):
            parts.append(fields)
            for part in key:
                raw = part.encode()
                parts += (_LENGTH.pack(len(raw)), raw)
            parts += (_LENGTH.pack(len(digest)), digest)
        file.write(b"".join(parts))

    def _compare(self, connection: Connection, file: IO[bytes], differs: Callable[[Difference], None]) -> None:
        there = sa.Table(
            "amprenta_source",
            sa.MetaData(),
            *(sa.Column(f"key_{position}", sa.Text) for position in range(len(self._table.key))),
            sa.Column("digest", sa.LargeBinary),
            prefixes=["TEMPORARY"],
            postgresql_on_commit="DROP",
        )
        there.create(connection)
        cursor: Any = connection.connection.cursor()
        cursor.copy_expert("COPY amprenta_source FROM STDIN (FORMAT binary)", file)
        connection.execute(sa.text("ANALYZE amprenta_source"))
        rows = connection.execution_options(yield_per=1000).execute(self._join(there))
        for row in rows:
            kind = "missing" if row.here is None else "extra" if row.there is None else "different"
            differs(Difference(kind, "/".join(row[2:])))

    def _join(self, there: sa.Table) -> sa.Select[Any]:
        table = self._table
        send = sa.func.vector_send if table.storage == "vector" else sa.func.halfvec_send
        here = (
            sa.select(
                *(
                    sa.cast(sa.column(name), sa.Text).label(f"key_{position}")
                    for position, name in enumerate(table.key)
                ),
                sa.func.sha256(send(sa.column(table.embedding))).label("digest"),
            )
            .select_from(sa.table(table.table, schema=table.schema))
            .where(sa.column(table.embedding).is_not(None))
            .where(
                *(
                    sa.column(name) == sa.cast(self._scope[name], NamedType(table.column_types[name]))
                    for name in table.scope
                )
            )
            .subquery("here")
        )
        names = [f"key_{position}" for position in range(len(table.key))]
        return (
            sa.select(
                here.c.digest.label("here"),
                there.c.digest.label("there"),
                *(sa.func.coalesce(here.c[name], there.c[name]).label(name) for name in names),
            )
            .select_from(here.join(there, sa.and_(*(here.c[n] == there.c[n] for n in names)), full=True))
            .where(here.c.digest.is_distinct_from(there.c.digest))
            .order_by(*(sa.func.coalesce(here.c[name], there.c[name]) for name in names))
        )
