"""A namespace of a Pinecone index as a source, listed and fetched over gRPC, or over REST through the official SDK."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from amprenta_vectors.backends.listing import Listing
from amprenta_vectors.backends.pinecone import wire as wire
from amprenta_vectors.backends.pinecone.client import DISTANCES, PineconeIndex, one_request, split_text
from amprenta_vectors.backends.pinecone.limits import PAGE
from amprenta_vectors.backends.pinecone.transports import Record, Transport, open_transport
from amprenta_vectors.backends.protocol import Meter, SourceDescription, Unmetered
from amprenta_vectors.batch import Sparse, VectorBatch
from amprenta_vectors.config import Settings, normalize_namespace
from amprenta_vectors.errors import ConfigError, RowError, SourceError, SourceNotFound
from amprenta_vectors.extras import needing
from amprenta_vectors.reasons import Reason
from amprenta_vectors.schema.kinds import Unit
from amprenta_vectors.shown import show_url

with needing("pinecone"):
    from google.protobuf.message import DecodeError

LONGEST_ID = 512
"""ASCII characters in an id, at most (Pinecone's published limit)."""


class PineconeSource:
    """One namespace of one index. Opened by :func:`open_source`; safe to share between threads.

    With ``text_field`` None neither texts nor metadata are read; with ``""`` the text stays in the metadata. With
    ``with_sparse`` sparse values are read; without it they are dropped, and their ids reported as quarantined.
    """

    unit: Unit = "read_units"

    def __init__(
        self,
        index: PineconeIndex,
        namespace: str,
        transport: Transport,
        text_field: str | None,
        count: int,
        *,
        with_sparse: bool = False,
        strips: bool = False,
    ) -> None:
        dimension, metric = index.dense()
        self._namespace = namespace
        self._transport = transport
        self._text_field = text_field
        self._with_sparse = with_sparse
        self._strips = strips
        self.meter: Meter = Unmetered()
        self.description = SourceDescription(
            kind="pinecone",
            identity=f"{index.named}@{show_url(index.host).rpartition('://')[2]}/{namespace}",
            dimension=dimension,
            distance=DISTANCES[metric],
            model=index.model,
            count=count,
            lists=index.kind != "pod",
            namespace=namespace,
        )

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        """Yield pages of at most 100 ids in no particular order, by several prefixes at once if that is worth it.

        Raises `ConfigError` for a pod index, which cannot list its ids.
        """
        if not self.description.lists:
            raise ConfigError("a pod index cannot list its ids", hint="--keys-from table")
        return iter(Listing(self._list, self._has, self.description.count or 0, PAGE, token))

    def some_keys(self) -> Sequence[str]:
        """Return at most 100 ids by one request, where a full listing would start by looking for parts."""
        return self._list("", None)[0]

    def _list(self, prefix: str, token: str | None) -> tuple[Sequence[str], str | None]:
        with one_request(self.meter, "list"):
            return self._transport.list(self._namespace, prefix, token)

    def _records(self, keys: Sequence[str]) -> Iterator[Record]:
        with one_request(self.meter, "fetch", len(keys)):
            yield from self._transport.fetch(self._namespace, keys)

    def _has(self, key: str) -> bool:
        return any(True for _ in self._records([key]))

    def fetch(self, keys: Sequence[str]) -> VectorBatch:
        """Fetch the records of ``keys``; their text is taken out of the metadata.

        A key that cannot be an id of Pinecone's is quarantined without a request. Raises `KeysRefused` if Pinecone
        finds other keys malformed.
        """
        refused = [error for error in map(_refusal_of, keys) if error is not None]
        if refused:
            bad = {error.key for error in refused}
            keys = [key for key in keys if key not in bad]
        parts = self._transport.split(keys)
        records = (record for part in parts for record in self._records(part))
        return self._to_batch(records, len(keys), refused)

    @property
    def transport(self) -> str:
        """``grpc`` or ``rest``."""
        return self._transport.name

    def close(self) -> None:
        """Close the transport's channel."""
        self._transport.close()

    def _to_batch(self, records: Iterator[Record], most: int, quarantined: list[RowError]) -> VectorBatch:
        """Convert at most ``most`` records to one batch; each is released before the next is read."""
        dimension = self.description.dimension
        ids: list[str] = []
        texts: list[str | None] = []
        metadata: list[Mapping[str, Any]] = []
        sparse_values: list[Sparse | None] = []
        vectors = np.empty((most, dimension), dtype="<f4")
        rows, row_bytes = vectors.reshape(-1).data.cast("B"), 4 * dimension
        for key, values, fields, sparse in records:
            if len(ids) == most:
                raise SourceError(f"more than the {most} records that were asked for came back")
            try:
                row = _to_bytes(values)
                kept_fields = _to_fields(fields) if self._text_field is not None else {}
                kept_sparse = _to_sparse(sparse) if sparse and self._with_sparse else None
            except (ValueError, DecodeError) as error:
                quarantined.append(RowError(key, Reason.UNREADABLE, f"the record cannot be decoded: {error}"))
                continue
            if len(row) != row_bytes:
                reason = Reason.SPARSE_ONLY if sparse and not row else Reason.DIMENSION
                quarantined.append(
                    RowError(key, reason, f"the vector has {len(row) // 4} values; expected {dimension}")
                )
                continue
            if self._with_sparse:
                sparse_values.append(kept_sparse)
            elif sparse:
                quarantined.append(RowError(key, Reason.SPARSE_DROPPED, "no column holds its sparse values"))
            rows[len(ids) * row_bytes : (len(ids) + 1) * row_bytes] = row
            ids.append(key)
            if self._text_field is not None:
                text, kept = split_text(kept_fields, self._text_field)
                texts.append(text)
                metadata.append(kept)
        batch = VectorBatch(
            source_keys=ids,
            vectors=vectors[: len(ids)],
            texts=texts if self._text_field is not None else None,
            metadata=metadata if self._text_field is not None else None,
            sparse=sparse_values if self._with_sparse else None,
            quarantined=tuple(quarantined),
        )
        return batch.stripped() if self._strips else batch


def _refusal_of(key: str) -> RowError | None:
    """Return why ``key`` cannot be an id of Pinecone's, 1 to 512 ASCII characters (published limits), or None."""
    if key.isascii() and 0 < len(key) <= LONGEST_ID:
        return None
    found = f"{len(key):,} characters" if key.isascii() else "others than ASCII"
    return RowError(key, Reason.ID_REFUSED, f"Pinecone's ids have 1 to {LONGEST_ID} ASCII characters; this has {found}")


def _to_bytes(values: Any) -> bytes:
    """Return values as little-endian float32, which is what gRPC gives.

    Raises ValueError if the bytes are not float32 values.
    """
    raw = values if isinstance(values, bytes) else np.asarray(values, dtype="<f4").tobytes()
    if len(raw) % 4:
        raise ValueError(f"{len(raw)} bytes are not float32 values")
    return raw


def _to_fields(metadata: bytes | Mapping[str, Any] | None) -> dict[str, Any]:
    """Return metadata as JSON has it, over either transport alike: of Pinecone's float64, whole numbers are ints."""
    if isinstance(metadata, bytes):
        metadata = wire.decode_struct(metadata)
    return {
        name: _to_number(value) if isinstance(value, int | float) else value for name, value in (metadata or {}).items()
    }


def _to_sparse(sparse: Any) -> Sparse:
    """Convert sparse values from what either transport gives."""
    if isinstance(sparse, bytes):
        sparse = wire.SparseValues.FromString(sparse)
    return np.array(sparse.indices, dtype=np.int64), np.array(sparse.values, dtype=np.float32)


def _to_number(value: float) -> float:
    """Return an int if float64 holds every int of that size, else a float; a bool stays a bool."""
    if isinstance(value, bool):
        return value
    return int(value) if abs(value) < 2**53 and float(value).is_integer() else float(value)


def open_source(
    settings: Settings,
    index: PineconeIndex,
    namespace: str,
    *,
    with_metadata: bool = True,
    text_field: str | None = None,
    with_sparse: bool = False,
) -> PineconeSource:
    """Open one namespace as a source, with or without texts and metadata, and sparse values.

    The text is in the metadata field ``text_field``; None takes the settings' field, ``""`` leaves the text in the
    metadata. Raises `SourceNotFound` for a namespace that the index does not have, listing those it has.
    """
    namespace = normalize_namespace(namespace)
    count = count_of(index, index.namespaces(), namespace)
    index.dense()
    transport = open_transport(settings, index)
    text_field = settings.text_field if text_field is None else text_field
    return PineconeSource(
        index,
        namespace,
        transport,
        text_field if with_metadata else None,
        count,
        with_sparse=with_sparse,
        strips=settings.nul == "strip",
    )


def count_of(index: PineconeIndex, counts: Mapping[str, int], namespace: str) -> int:
    """Return the vectors in a namespace. Raises `SourceNotFound` if it is not in ``counts``, listing those that are."""
    if namespace not in counts:
        listed = ", ".join(f"{name or '__default__'} ({count})" for name, count in sorted(counts.items())[:20])
        raise SourceNotFound(
            f"index {index.name!r} has no namespace {namespace or '__default__'!r}; it has: {listed or 'none'}",
            hint="--namespace NAME, --all-namespaces, or PINECONE_NAMESPACE",
        )
    return counts[namespace]
