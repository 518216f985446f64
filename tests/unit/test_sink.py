"""The bytes of a COPY and the statements that write it."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from amprenta_vectors.backfill.writing.encoding import COPY_HEADER, COPY_TRAILER, PIECE_BYTES, BatchStream
from amprenta_vectors.backfill.writing.sink import Sink
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.schema.expressions import column_type
from amprenta_vectors.schema.keymaps import Identity
from amprenta_vectors.schema.registry import RAG_CHUNKS
from amprenta_vectors.schema.slice import Slice
from amprenta_vectors.schema.vector_table import VectorTable

TYPES = {"namespace": "text", "chunk_id": "character varying(64)"}
TABLE = replace(RAG_CHUNKS, dimension=2, column_types=TYPES)


def decode(data: bytes) -> list[list[bytes | None]]:
    """The fields of every row of a binary COPY, by the format's own description."""
    assert data.startswith(COPY_HEADER)
    rows: list[list[bytes | None]] = []
    at = len(COPY_HEADER)
    while (fields := struct.unpack_from(">h", data, at)[0]) != -1:
        at += 2
        row: list[bytes | None] = []
        for _ in range(fields):
            (length,) = struct.unpack_from(">i", data, at)
            at += 4
            row.append(None if length == -1 else data[at : at + length])
            at += max(length, 0)
        rows.append(row)
    assert data[at:] == COPY_TRAILER
    return rows


def to_rows(batch: VectorBatch) -> list[list[bytes | None]]:
    stream = BatchStream(batch)
    found = decode(b"".join(iter(stream.read, b"")))
    vectors = [(row[1 + len(key)] or b"")[4:] for row, key in zip(found, batch.keys or [], strict=True)]
    assert stream.checksum == zlib.crc32(b"".join(vectors))
    return found


def test_a_row_is_ordinal_key_vector_text_and_metadata() -> None:
    batch = VectorBatch(
        source_keys=["a", "ключ"],
        vectors=np.array([[1, -2], [0.5, 3]], np.float32),
        texts=["text", None],
        metadata=[{"n": 1, "ü": "\u2028"}, None],
        keys=[("a", "0"), ("ключ", "1")],
    )
    first, second = to_rows(batch)
    assert first[:3] == [struct.pack(">i", 0), b"a", b"0"]
    assert first[3:5] == [struct.pack(">hhff", 2, 0, 1, -2), b"text"]
    assert json.loads(first[5] or b"") == {"n": 1, "ü": "\u2028"}
    assert second == [struct.pack(">i", 1), "ключ".encode(), b"1", struct.pack(">hhff", 2, 0, 0.5, 3), None, None]


def test_every_bit_of_a_vector_is_kept() -> None:
    bits = np.random.default_rng(1).integers(0, 2**32, (50, 3), dtype=np.uint32).view(np.float32)
    batch = VectorBatch(source_keys=["k"] * 50, vectors=bits, keys=[("k",)] * 50)
    sent = [np.frombuffer((row[2] or b"")[4:], ">f4").astype("<f4").tobytes() for row in to_rows(batch)]
    assert sent == [row.tobytes() for row in bits]


def test_a_slice_of_a_larger_matrix_is_encoded_as_itself() -> None:
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    batch = VectorBatch(source_keys=["a"] * 3, vectors=whole[:, 1:3], keys=[("a",)] * 3)
    assert [row[2] for row in to_rows(batch)] == [
        struct.pack(">hhff", 2, 0, 1, 2),
        struct.pack(">hhff", 2, 0, 5, 6),
        struct.pack(">hhff", 2, 0, 9, 10),
    ]


def test_a_batch_of_several_pieces_is_one_copy() -> None:
    rows = 2 * PIECE_BYTES // (4 * 1024) + 3
    vectors = np.random.default_rng(2).standard_normal((rows, 1024), dtype=np.float32)
    keys = [(f"k{number}",) for number in range(rows)]
    found = to_rows(VectorBatch(source_keys=[key for (key,) in keys], vectors=vectors, keys=keys))
    assert [row[0] for row in found] == [struct.pack(">i", number) for number in range(rows)]
    assert [row[1] for row in found] == [key.encode() for (key,) in keys]
    assert b"".join((row[2] or b"")[4:] for row in found) == vectors.astype(">f4").tobytes()


def test_an_empty_batch_is_an_empty_copy() -> None:
    empty = VectorBatch(source_keys=[], vectors=np.empty((0, 2), np.float32), keys=[])
    assert to_rows(empty) == []


def test_a_batch_without_target_keys_is_refused() -> None:
    batch = VectorBatch(source_keys=["a"], vectors=np.ones((1, 2), np.float32))
    with pytest.raises(ValueError, match="target keys"):
        to_rows(batch)


def statement(table: VectorTable, *, insert: bool, model: str | None = None) -> str:
    sink = Sink(Slice(table, {"namespace": "x"}, Identity()), model, insert=insert)
    compiled: Any = sink._statement
    return str(compiled.compile(dialect=postgresql.dialect()))


@pytest.mark.parametrize("insert", [True, False])
def test_only_rows_without_an_embedding_are_written(insert: bool) -> None:
    assert statement(TABLE, insert=insert).count("rag_chunks.embedding IS NULL") == 1


@pytest.mark.parametrize("insert", [True, False])
def test_the_scope_and_the_model_are_bound_and_identifiers_are_quoted(insert: bool) -> None:
    odd = replace(
        TABLE, table='o"dd; --', schema="S", scope=("name space",), column_types={**TYPES, "name space": "text"}
    )
    sink = Sink(Slice(odd, {"name space": "'; --"}, Identity()), "m'1", insert=insert)
    compiled: Any = sink._statement
    compiled = compiled.compile(dialect=postgresql.dialect())
    assert '"S"."o""dd; --"' in str(compiled)
    assert "'; --" not in str(compiled)
    assert {"'; --", "m'1"} <= set(compiled.params.values())


def test_without_a_model_its_column_is_left_alone() -> None:
    assert "embedding_model" not in statement(TABLE, insert=True)
    assert "embedding_model" not in statement(TABLE, insert=False)
    assert "embedding_model" in statement(TABLE, insert=False, model="m1")


@pytest.mark.parametrize(
    ("declared", "cast"),
    [
        ("character varying(64)", "character varying"),
        ("character(8)", "bpchar"),
        ("numeric(10,2)", "numeric"),
        ("numeric(3,-2)", "numeric"),
        ("timestamp(3) with time zone", "timestamp with time zone"),
        ("uuid", "uuid"),
        ('"Odd".kind', '"Odd".kind'),
    ],
)
def test_a_key_is_cast_without_the_length_of_its_column(declared: str, cast: str) -> None:
    table = VectorTable(name="t", table="t", key=("id",), dimension=2, column_types={"id": declared})
    assert str(sa.cast("x", column_type(table, "id")).compile(dialect=postgresql.dialect())).endswith(f"AS {cast})")
