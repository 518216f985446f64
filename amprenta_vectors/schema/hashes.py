"""The hashes that the engine keeps with a row, to recognise what it wrote: xxh3_64, signed as bigint is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import orjson
import sqlalchemy as sa
import xxhash
from sqlalchemy.dialects.postgresql import BIT

from amprenta_vectors.pg.types import SEND_HEAD

HASH_BYTES = 8


def hash_embedding(*stored: bytes | memoryview) -> bytes:
    """Return the hash of an embedding's values as its column holds them, big-endian, then of its sparse values.

    The values are those of ``vector_send`` or ``halfvec_send`` without the head of 4 bytes; sparse values are what
    ``sparsevec_send`` gives. The hash is 8 bytes, as COPY takes a bigint.
    """
    if len(stored) == 1:
        return xxhash.xxh3_64_digest(stored[0])
    hasher = xxhash.xxh3_64()
    for part in stored:
        hasher.update(part)
    return hasher.digest()


def hash_cast(stored: bytes | memoryview) -> bytes:
    """Return the hash that PostgreSQL itself makes of an embedding that it cast: the first bytes of a SHA-256.

    It has no xxh3. The values are those that `hash_embedding` takes; `cast_hash` is the same in SQL.
    """
    return hashlib.sha256(stored).digest()[:HASH_BYTES]


def cast_hash(sent: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    """Return `hash_cast`, as a bigint, of what ``vector_send`` or ``halfvec_send`` gives."""
    digest = sa.func.sha256(sa.func.substr(sent, SEND_HEAD + 1))
    bits = sa.literal("x").op("||")(sa.func.encode(sa.func.substr(digest, 1, HASH_BYTES), "hex"))
    return sa.cast(sa.cast(bits, BIT(64)), sa.BigInteger)


def hash_content(text: str | None, metadata: Mapping[str, Any] | None) -> bytes:
    """Return the hash of the text and metadata a row was inserted with, whatever the order of fields; always even.

    What jsonb writes otherwise than JSON (1e16, -0.0) has another hash when it is read back: it looks changed.
    """
    content = [text, dict(metadata or {})]
    try:
        digest = xxhash.xxh3_64_digest(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))
    except TypeError:
        # An integer past 64 bits.
        digest = xxhash.xxh3_64_digest(json.dumps(content, sort_keys=True).encode())
    return digest[:-1] + bytes([digest[-1] & ~1])


def hash_text(text: str) -> bytes:
    """Return the hash of the text that an embedding was made from; always odd, so never mistaken for `hash_content`."""
    digest = xxhash.xxh3_64_digest(text.encode())
    return digest[:-1] + bytes([digest[-1] | 1])


def is_of_text(text_hash: int | None) -> bool:
    """Return whether a hash that a column keeps is `hash_text`, and not `hash_content`."""
    return text_hash is not None and text_hash % 2 == 1


def to_bigint(digest: bytes) -> int:
    """Return a hash as its column gives it."""
    return int.from_bytes(digest, "big", signed=True)
