"""Rows compared with what the source has, and the fate of each: equal, ours to replace, or changed here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.verify.compare import digests
from amprenta_vectors.backfill.writing.encoding import sparse_bytes
from amprenta_vectors.batch import Key, VectorBatch
from amprenta_vectors.pg.types import SEND_HEAD
from amprenta_vectors.schema.hashes import hash_cast, hash_content, hash_embedding, hash_text, is_of_text, to_bigint
from amprenta_vectors.schema.slice import Slice, given_keys


class Fate(Enum):
    """The fate of a row that has an embedding."""

    EQUAL = auto()
    REPLACE = auto()
    CHANGED_HERE = auto()


@dataclass(frozen=True)
class Verdict:
    """The verdict on a row: ``content`` tells whether its text and metadata are replaced too, ``why`` why it stays."""

    fate: Fate
    content: bool = False
    why: str = ""


@dataclass(frozen=True)
class Kept:
    """A row as it is now: the hashes of its embedding and content, and those that the engine kept, None without one.

    ``cast`` is the hash that PostgreSQL keeps of an embedding that it cast itself.
    """

    embedding: bytes
    cast: bytes
    hash: int | None
    text_hash: int | None
    content: bytes

    @property
    def embedding_is_ours(self) -> bool:
        """Whether the embedding is what the engine wrote."""
        return self.hash is not None and self.hash in (to_bigint(self.embedding), to_bigint(self.cast))

    @property
    def is_embedded_here(self) -> bool:
        """Whether the embedding was made from the row's own text, so that no other source has a say in it."""
        return is_of_text(self.text_hash)

    @property
    def content_is_ours(self) -> bool:
        """Whether text and metadata are what the engine inserted."""
        return self.text_hash is not None and to_bigint(self.content) == self.text_hash


class RowStates:
    """Reads the rows of a slice for batches of its source."""

    def __init__(self, slice_: Slice, *, computed: bool) -> None:
        self._slice = slice_
        self._table = slice_.table
        self._computed = computed
        """Two computed vectors of one text are not sure to be equal: whether they differ is told by their texts."""

    def compare(self, connection: Connection, batch: VectorBatch) -> tuple[list[int], list[int]]:
        """Return the positions in ``batch`` whose row is absent or has no embedding, and those whose row differs.

        PostgreSQL compares; no vector is sent either way.
        """
        found = connection.execute(self._differing(connection, batch)).all()
        return [place for place, held in found if not held], [place for place, held in found if held]

    def absent(self, connection: Connection, batch: VectorBatch, places: Sequence[int]) -> list[int]:
        """Those of ``places`` whose row is not there."""
        keys = [(batch.keys or ())[place] for place in places]
        given = given_keys(keys, width=len(self._table.key), place=[str(place) for place in places])
        there = sa.and_(*self._slice.has_key(connection, given), *self._slice.in_scope())
        exists = sa.exists().select_from(self._slice.rows).where(there).correlate(given)
        found = sa.select(sa.cast(given.c.place, sa.Integer).label("place")).where(~exists).order_by("place")
        return list(connection.execute(found).scalars())

    def judge(
        self, connection: Connection, batch: VectorBatch, places: Sequence[int], *, lock: bool
    ) -> dict[int, Verdict]:
        """Return the verdicts on the rows at ``places``, by place; a row that is gone or empty by now has none."""
        verdicts: dict[int, Verdict] = {}
        for place, kept in self._read(connection, batch, places, lock=lock):
            verdicts[place] = self._verdict(batch, place, kept)
        return verdicts

    def read(self, connection: Connection, keys: Sequence[Key], *, lock: bool) -> Iterator[tuple[int, Kept]]:
        """Return the rows of ``keys`` that have an embedding, each with the place of its key."""
        return self._rows(connection, keys, range(len(keys)), lock=lock)

    def _read(
        self, connection: Connection, batch: VectorBatch, places: Sequence[int], *, lock: bool
    ) -> Iterator[tuple[int, Kept]]:
        keys = batch.keys or ()
        return self._rows(connection, [keys[place] for place in places], places, lock=lock)

    def _rows(
        self, connection: Connection, keys: Sequence[Key], places: Sequence[int], *, lock: bool
    ) -> Iterator[tuple[int, Kept]]:
        if not keys:
            return
        slice_, table = self._slice, self._table
        kept: Any = slice_.rows.alias("kept")
        given = given_keys(keys, place=[str(place) for place in places])
        statement = (
            sa.select(
                sa.cast(given.c.place, sa.Integer).label("place"),
                slice_.sent_embedding(kept).label("embedding"),
                _or_null(kept, table.sparse, sa.func.sparsevec_send).label("sparse"),
                _or_null(kept, table.hash).label("hash"),
                _or_null(kept, table.text_hash).label("text_hash"),
                sa.type_coerce(_or_null(kept, table.text), sa.Text).label("text"),
                sa.cast(_or_null(kept, table.metadata), JSONB).label("metadata"),
            )
            .select_from(given.join(kept, sa.and_(*slice_.has_key(connection, given, kept), *slice_.in_scope(kept))))
            .where(slice_.embedding(kept).is_not(None))
            .order_by("place")
        )
        if lock:
            statement = statement.with_for_update(of=kept)
        for row in connection.execute(statement).all():
            parts = [bytes(row.embedding)[SEND_HEAD:]]
            if table.sparse is not None:
                parts.append(bytes(row.sparse or b""))
            content = hash_content(row.text, row.metadata)
            yield row.place, Kept(hash_embedding(*parts), hash_cast(parts[0]), row.hash, row.text_hash, content)

    def _verdict(self, batch: VectorBatch, place: int, kept: Kept) -> Verdict:
        theirs = self._hash_of(batch, place)
        same = not self._computed and kept.embedding == theirs
        content = not self._computed and self._content_differs(batch, place, kept)
        if same and not content:
            return Verdict(Fate.EQUAL)
        if kept.is_embedded_here and not self._computed:
            return Verdict(Fate.CHANGED_HERE, why="it was embedded here, from its own text")
        if (same or kept.embedding_is_ours) and (not content or kept.content_is_ours):
            return Verdict(Fate.REPLACE, content)
        return Verdict(Fate.CHANGED_HERE, why=self._why(kept, theirs, same=same))

    def _why(self, kept: Kept, theirs: bytes, *, same: bool) -> str:
        if same or kept.embedding_is_ours:
            return "its text or metadata was changed here, and at the source"
        if self._table.hash is None:
            return "the table has no column for hashes: whether it was changed here is not known"
        if kept.hash is None:
            return "its embedding was written by the application"
        if not self._computed and kept.hash == to_bigint(theirs):
            return "changed here; the source still has what was written"
        return "changed here, and at the source"

    def _content_differs(self, batch: VectorBatch, place: int, kept: Kept) -> bool:
        """Return whether the source's text or metadata differs from when the engine inserted the row; else False.

        A row that the engine did not insert has a text of its own, and does not count.
        """
        if kept.text_hash is None or kept.is_embedded_here or (batch.texts is None and batch.metadata is None):
            return False
        return kept.text_hash != to_bigint(_content_of(batch, place))

    def _hash_of(self, batch: VectorBatch, place: int) -> bytes:
        values = batch.vectors[place].astype(">f4" if self._table.storage == "vector" else ">f2").tobytes()
        if self._table.sparse_dimension is None:
            return hash_embedding(values)
        return hash_embedding(values, self._sparse_of(batch, place))

    def _sparse_of(self, batch: VectorBatch, place: int) -> bytes:
        sparse = batch.sparse[place] if batch.sparse is not None else None
        dimension = self._table.sparse_dimension
        return b"" if sparse is None or dimension is None else sparse_bytes(sparse, dimension)

    def _differing(self, connection: Connection, batch: VectorBatch) -> sa.Select[int, bool]:
        """Return a query of ``(place, has an embedding)`` of the rows that are not as the source has them."""
        slice_, table, target = self._slice, self._table, self._slice.rows
        places = range(len(batch))
        sides: dict[str, list[str]] = {"place": [str(place) for place in places]}
        differs: list[sa.ColumnElement[bool]] = []
        if not self._computed:
            beside = None if table.sparse is None else [self._sparse_of(batch, place) for place in places]
            sides["digest"] = [digest.hex() for digest in digests(batch.vectors, table.storage, beside)]
        if table.text_hash is not None and (self._computed or batch.texts is not None or batch.metadata is not None):
            sides["content"] = [str(to_bigint(self._kept_of(batch, place))) for place in places]
        given = given_keys(batch.keys or (), width=len(table.key), **sides)
        embedding = slice_.embedding()
        if "digest" in sides:
            differs.append(sa.func.encode(sa.func.sha256(slice_.sent()), "hex") != given.c.digest)
        if "content" in sides and table.text_hash is not None:
            # NULL differs from nothing: the text of such a row is not the engine's to replace. The hash of the text
            # that an embedding was made from is not compared with the hash of the content that a row was inserted with.
            other = target.c[table.text_hash] != sa.cast(given.c.content, sa.BigInteger)
            differs.append(sa.and_(other, slice_.embedded_here() == sa.literal(self._computed)))
        on = sa.and_(*slice_.has_key(connection, given), *slice_.in_scope())
        return (
            sa.select(sa.cast(given.c.place, sa.Integer).label("place"), embedding.is_not(None))
            .select_from(given.join(target, on, isouter=True))
            .where(sa.or_(embedding.is_(None), *differs), sa.not_(slice_.is_emptied()))
            .order_by("place")
        )

    def _kept_of(self, batch: VectorBatch, place: int) -> bytes:
        """Return the hash that the engine keeps of a row's text."""
        if self._computed and batch.texts is not None:
            return hash_text(batch.texts[place] or "")
        return _content_of(batch, place)


def _content_of(batch: VectorBatch, place: int) -> bytes:
    text = batch.texts[place] if batch.texts is not None else None
    return hash_content(text, batch.metadata[place] if batch.metadata is not None else None)


def _or_null(target: Any, name: str | None, function: Any = lambda column: column) -> sa.ColumnElement[Any]:
    return sa.null() if name is None else function(target.c[name])
