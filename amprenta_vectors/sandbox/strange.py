"""Records as odd as Pinecone admits, to try on whatever carries them elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from amprenta_vectors.batch import Vectors

Metadata = dict[str, Any]

_LARGEST = np.finfo(np.float32).max
_SMALLEST_NORMAL = np.finfo(np.float32).smallest_normal
_SMALLEST = np.finfo(np.float32).smallest_subnormal

_IDS = (
    "plain",
    "'",
    '"',
    'it\'s a "quoted" id',
    "\\",
    "back\\slash\\",
    "\\N",
    "\\.",
    "\\x41",
    "\\'; --",
    "comma,semicolon;tab\tend",
    "line\nbreak",
    "carriage\rreturn\r\n",
    " ",
    "   ",
    " leading",
    "trailing",
    "trailing ",
    "trailing  ",
    "per%cent",
    "%s",
    "%(name)s",
    "%20",
    "{name}",
    "{}",
    "$1",
    ":name",
    "?",
    "_",
    "a_b",
    "a-b",
    "a/b",
    "../../etc/passwd",
    "?ids=other&namespace=other#fragment",
    "a+b",
    "doc#1#chunk#2",
    "NULL",
    "null",
    "None",
    "nan",
    "true",
    "0",
    "-0",
    "00",
    "1e5",
    "case",
    "Case",
    "CASE",
    "'); DROP TABLE rag_chunks; --",
    "1 OR 1=1",
    '{"id": "json"}',
    '["a", "b"]',
    "{1,2,3}",
    "(1,2)",
    "=1+1",
    '@SUM(A1)","b',
    "<script>alert(1)</script>",
    "00000000-0000-0000-0000-000000000000",
    "\x7f",
    "x" * 512,
    "X" * 511 + "'",
    *(chr(code) for code in range(1, 32)),
    *(f"control{chr(code)}inside" for code in range(1, 32)),
)

_NAMESPACES = (
    "",
    "plain",
    "Plain",
    "with space",
    " ",
    ".",
    "..",
    "a/b?c=d&e#f",
    "100%",
    "it's",
    'a "quoted" one',
    "back\\slash",
    "line\nbreak",
    "NULL",
    "'; DROP SCHEMA public CASCADE; --",
    "n" * 512,
)

_METADATA: tuple[Metadata, ...] = (
    {},
    {"text": ""},
    {"text": "plain"},
    {"text": 'it\'s a "quoted" \\ text,\twith\r\nlines and \x01 control \x1f characters'},
    {"text": "\\N"},
    {"text": "Zażółć gęślą jaźń, 日本語, עברית, العربية"},
    {"text": "😀👩‍👩‍👧‍👦🏳️‍🌈"},
    {"text": "e\u0301 is not \u00e9, \u2028 is a line end, \ufeff a mark, \uffff no character"},
    {"text": "x" * 30_000},
    {"list": []},
    {"list": ["one"]},
    {"list": ["", "a,b", "it's", '"', "\\", "{}", "NULL", "日本語", "one", "one"]},
    {"number": 0, "small": 5e-324, "large": 1e308, "third": 0.1, "negative": -1.5},
    {"number": 2**53, "less": -(2**53), "odd": 2**53 - 1, "zero": -0.0},
    {"yes": True, "no": False, "one": 1, "word": "true"},
    {" ": "a space", "a.b": "dotted", "it's": "quoted", 'a "b"': "quoted", "\\": "back"},
    {"ключ": "unicode", "😀": "emoji", "a$b": "dollar inside", "line\nbreak": 1, "NULL": "NULL", "%s": "%s"},
    {"id": "not the id", "namespace": "not the namespace", "embedding": "not a vector", "_id": 1},
    {f"field{number}": number for number in range(200)},
)


@dataclass(frozen=True, eq=False)
class StrangeRecord:
    """One record. ``vector`` is ``(dimension,)`` float32, and never all zeros, which Pinecone refuses."""

    namespace: str
    id: str
    vector: Vectors
    metadata: Metadata


def strange_records(dimension: int, seed: int = 0) -> list[StrangeRecord]:
    """Return records that Pinecone takes, every id, namespace, metadata and vector of this module in some of them.

    They are sorted by namespace. Every namespace has ids of every other one, with another vector.
    """
    random = np.random.default_rng(seed)
    vectors = list(_vectors(dimension, random))
    spread = [(namespace, id_) for namespace in sorted(_NAMESPACES) for id_ in _IDS]
    return [
        StrangeRecord(
            namespace,
            id_,
            vectors[number % len(vectors)] if number % 3 == 0 else _ordinary(dimension, random),
            _METADATA[number % len(_METADATA)],
        )
        for number, (namespace, id_) in enumerate(spread)
    ]


def strange_unstorable(dimension: int, seed: int = 0) -> list[StrangeRecord]:
    """Return records that Pinecone takes and PostgreSQL cannot hold: text and jsonb have no NUL character."""
    random = np.random.default_rng(seed)
    nul: tuple[Metadata, ...] = (
        {"text": "\0"},
        {"text": "inside\0it"},
        {"list": ["fine", "not\0fine"]},
        {"na\0me": "in a field's name"},
    )
    return [
        StrangeRecord("", f"nul-{number}", _ordinary(dimension, random), metadata)
        for number, metadata in enumerate(nul)
    ]


def to_columns(records: Sequence[StrangeRecord]) -> Iterator[tuple[str, list[str], Vectors, list[Metadata]]]:
    """Yield each namespace, ids, vectors and metadata of sorted ``records``, as `PineconeEmulator.load` takes them."""
    for namespace, group in groupby(records, key=lambda record: record.namespace):
        rows = list(group)
        yield (
            namespace,
            [row.id for row in rows],
            np.stack([row.vector for row in rows]),
            [row.metadata for row in rows],
        )


def _ordinary(dimension: int, random: np.random.Generator) -> Vectors:
    return random.standard_normal(dimension, dtype=np.float32)


def _vectors(dimension: int, random: np.random.Generator) -> Iterator[Vectors]:
    one = np.zeros(dimension, np.float32)
    one[0] = 1.0
    yield one
    yield -one  # all other values are -0.0
    yield np.full(dimension, _LARGEST)
    yield np.full(dimension, -_LARGEST)
    yield np.full(dimension, _SMALLEST)
    yield np.full(dimension, _SMALLEST_NORMAL)
    yield np.full(dimension, np.float32(1e-30))
    yield np.full(dimension, np.float32(1.0) / np.float32(3.0))
    yield np.nextafter(np.ones(dimension, np.float32), np.float32(2.0))
    mixed = np.array([_LARGEST, -0.0, _SMALLEST, -_SMALLEST, 0.0, -_LARGEST, 0.1], np.float32)
    yield np.resize(mixed, dimension)
    yield _finite_bits(dimension, random)


def _finite_bits(dimension: int, random: np.random.Generator) -> Vectors:
    bits = random.integers(0, 2**32, dimension, dtype=np.uint32).view(np.float32)
    return np.where(np.isfinite(bits), bits, np.float32(1.0))
