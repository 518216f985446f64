"""PostgreSQL's binary COPY format: how a batch's rows become bytes."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from amprenta_vectors.batch import Key, Sparse, VectorBatch
from amprenta_vectors.pg.types import Storage
from amprenta_vectors.schema.hashes import HASH_BYTES, hash_content, hash_embedding, hash_text

COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
COPY_TRAILER = struct.pack(">h", -1)
PIECE_BYTES = 512 * 1024
"""The bytes of vectors that are encoded at a time: few enough to stay in a processor's cache."""

_LENGTH = struct.Struct(">i")
_NULL = _LENGTH.pack(-1)
_HASH = _LENGTH.pack(HASH_BYTES)
_ROW = struct.Struct(">hii")
"""The start of a row: the number of its fields, and its ordinal as the first of them."""


class BatchStream:
    """A batch as the file that COPY reads: ordinal, key columns, embedding, text, metadata; if wanted, sparse values.

    If wanted, two hashes follow: of the embedding as ``hashed_as`` holds it, and of what is ``hashed`` beside it: text
    and metadata, or the text that the embedding is of. The batch is encoded piece by piece as it is read, so that no
    second copy of it is in memory. ``checksum`` is the CRC-32 of the vectors read so far, as they are sent. Raises
    ValueError for a batch without target keys.
    """

    def __init__(
        self,
        batch: VectorBatch,
        sparse_dimension: int | None = None,
        *,
        hashed_as: Storage | None = None,
        hashed: Literal["content", "text"] | None = None,
    ) -> None:
        if batch.keys is None:
            raise ValueError("a batch is written by its target keys; apply a key map first")
        self.checksum = 0
        self._batch = batch
        self._keys = batch.keys
        self._sparse_dimension = sparse_dimension
        self._hashed_as = hashed_as
        self._hashed = hashed
        self._pieces = self._encode()

    def read(self, size: int = -1) -> bytes:
        """Return the next piece, whatever ``size`` is; ``b""`` once all have been read."""
        return next(self._pieces, b"")

    def _encode(self) -> Iterator[bytes]:
        yield COPY_HEADER
        rows = max(1, PIECE_BYTES // max(1, 4 * self._batch.dimension))
        for start in range(0, len(self._batch), rows):
            piece = self._batch.vectors[start : start + rows]
            big_endian: NDArray[np.float32] = piece.astype(">f4", order="C")
            self.checksum = zlib.crc32(big_endian.data, self.checksum)
            stored = piece.astype(">f2", order="C") if self._hashed_as == "halfvec" else big_endian
            yield b"".join(self._rows(start, big_endian, stored.data.cast("B")))
        yield COPY_TRAILER

    def _rows(self, start: int, big_endian: NDArray[np.float32], stored: memoryview) -> Iterator[bytes | memoryview]:
        """Encode the fields of some rows, each as its length and its bytes.

        The format is https://www.postgresql.org/docs/current/sql-copy.html. A vector is its int16 dimension, an int16
        zero and big-endian float32 values (pgvector's ``vector_recv``).
        """
        dimension = self._batch.dimension
        row_bytes = 4 * dimension
        vector_head = _LENGTH.pack(4 + row_bytes) + struct.pack(">hh", dimension, 0)
        values = big_endian.data.cast("B")
        stored_bytes = len(stored) // len(big_endian)
        fields = len(self._keys[0]) + 4 + (self._sparse_dimension is not None)
        fields += (self._hashed_as is not None) + (self._hashed is not None)
        for place in range(len(big_endian)):
            row = start + place
            yield _ROW.pack(fields, 4, row) + _key(self._keys[row]) + vector_head
            yield values[place * row_bytes : (place + 1) * row_bytes]
            yield self._rest(row, stored[place * stored_bytes : (place + 1) * stored_bytes])

    def _rest(self, row: int, stored: memoryview) -> bytes:
        """Encode the fields after the vector."""
        batch = self._batch
        text = batch.texts[row] if batch.texts is not None else None
        metadata = batch.metadata[row] if batch.metadata is not None else None
        rest = _NULL if text is None else _sized(text.encode())
        rest += _NULL if metadata is None else _sized(json.dumps(metadata, ensure_ascii=False).encode())
        hashed: tuple[bytes | memoryview, ...] = (stored,)
        if self._sparse_dimension is not None:
            sparse = batch.sparse[row] if batch.sparse is not None else None
            beside = None if sparse is None else sparse_bytes(sparse, self._sparse_dimension)
            rest += _NULL if beside is None else _sized(beside)
            hashed = (stored, beside or b"")
        if self._hashed_as is not None:
            rest += _HASH + hash_embedding(*hashed)
        if self._hashed is not None:
            rest += _HASH + (hash_content(text, metadata) if self._hashed == "content" else hash_text(text or ""))
        return rest


def copy_row(texts: Sequence[str]) -> bytes:
    """Encode a row whose columns are all text."""
    return struct.pack(">h", len(texts)) + b"".join([_sized(text.encode()) for text in texts])


def sparse_bytes(sparse: Sparse, dimension: int) -> bytes:
    """Encode fitted sparse values as ``sparsevec_send`` does.

    The bytes are the dimension, the number of values and a zero, all int32, then the int32 indices from 0 and the
    float32 values, all big-endian (pgvector's ``sparsevec_recv``).
    """
    indices, values = sparse
    head = struct.pack(">iii", dimension, len(indices), 0)
    return head + indices.astype(">i4").tobytes() + values.astype(">f4").tobytes()


def _key(key: Key) -> bytes:
    return b"".join([_sized(part.encode()) for part in key])


def _sized(raw: bytes) -> bytes:
    return _LENGTH.pack(len(raw)) + raw
