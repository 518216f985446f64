"""A namespace of a Pinecone index as a store, through the official SDK."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amprenta_vectors.backends.pinecone.client import (
    DISTANCES,
    MAX_QUERY_CHARACTERS,
    MAX_RECORDS,
    PineconeIndex,
    query_characters,
    sdk_errors,
    split_requests,
    split_text,
)
from amprenta_vectors.config import normalize_namespace
from amprenta_vectors.errors import SchemaMismatch, SourceNotFound
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.stores.filters.language import parse_filter
from amprenta_vectors.stores.given import latest_records, possible_keys
from amprenta_vectors.stores.protocol import Filter, Hit, Record
from amprenta_vectors.stores.top_k import to_top_k
from amprenta_vectors.stores.vectors import FEW_ROWS, first_with_direction, near_enough, to_batch, to_query_vector

MAX_UPSERT_BYTES = 2 * 1024 * 1024
_ENVELOPE_BYTES = 2048
"""Bytes of an upsert around its records: the namespace, of at most 512 characters, and punctuation."""
MOST_DELETES = 5
"""Attempts to delete records from a namespace that other writers empty and fill again meanwhile."""


class PineconeStore:
    """The records of one ``namespace`` of ``index``. A record's text is its metadata field ``text_field``.

    A filter or vector that Pinecone would refuse is refused before it is sent, as in every store. Raises
    `TransientError`, `RateLimited`, `CredentialsRefused`, `SourceNotFound` and `SourceError` for the service's answers;
    `SchemaMismatch` for an index without dense vectors. Hits less near than the score ``threshold`` are left out.
    """

    name = "pinecone"

    def __init__(
        self, index: PineconeIndex, namespace: str, text_field: str, *, threshold: float | None = None
    ) -> None:
        if index.kind == "documents":
            raise SchemaMismatch(
                f"index {index.name!r} is a document index, which this store does not query",
                hint="query it through Pinecone's client (index.documents); a backfill reads it all the same",
            )
        if index.dimension is None or index.metric not in DISTANCES:
            raise SchemaMismatch(f"index {index.name!r} has no dense vectors to query")
        self._index = index
        self._dimension = index.dimension
        self._distance = DISTANCES[index.metric]
        self._cosine = self._distance == "cosine"
        self._namespace = normalize_namespace(namespace)
        self._text_field = text_field
        self._threshold = threshold

    @property
    def distance(self) -> Distance:
        """The distance of the index's metric; under ``l2`` the nearest record has the lowest score."""
        return self._distance

    def query(self, vector: ArrayLike, *, top_k: int = 10, filter: Filter | None = None) -> list[Hit]:
        """Return the ``top_k`` nearest records that match ``filter``, nearest first."""
        top_k = to_top_k(top_k)
        if filter:
            parse_filter(filter)
        asked = to_query_vector(vector, self._dimension, cosine=self._cosine)
        with sdk_errors(f"querying index {self._index.name!r}"):
            answer = self._index.rest.query(
                vector=asked.tolist(),
                top_k=int(top_k),
                namespace=self._namespace,
                filter=filter or None,
                include_metadata=True,
            )
        hits = [Hit(match.id, match.score, *self._split(match.metadata)) for match in answer.matches]
        return near_enough(self, hits, self._threshold)

    def stored_vector(self) -> NDArray[np.float32] | None:
        """Return some vector of the namespace to query with, ``(dimension,)``; None if none is found at once."""
        if self._index.kind == "pod":
            # A pod index cannot list its ids.
            return None
        with sdk_errors(f"listing index {self._index.name!r}"):
            page = self._index.rest.list_paginated(namespace=self._namespace, limit=FEW_ROWS)
        found = self.fetch([item.id for item in page.vectors if item.id is not None])
        return first_with_direction(record.vector for record in found.values())

    def fetch(self, keys: Sequence[str]) -> dict[str, Record]:
        """Return the records of ``keys`` by key; keys that are absent, or have sparse values only, are absent."""
        found: dict[str, Record] = {}
        for part in split_requests(possible_keys(keys), MAX_QUERY_CHARACTERS, query_characters):
            with sdk_errors(f"fetching from index {self._index.name!r}"):
                answer = self._index.rest.fetch(ids=part, namespace=self._namespace)
            for key, item in answer.vectors.items():
                if item.values:
                    found[key] = Record(
                        key, np.array(item.values, dtype=np.float32), *split_text(item.metadata or {}, self._text_field)
                    )
        return found

    def upsert(self, records: Sequence[Record]) -> int:
        """Insert or replace whole records; return how many. Of records that share a key the last one counts.

        Raises `RowError` naming the first that cannot be stored, before anything is sent. More than one request takes
        (1000 records, 2 MB) is sent in several, so an error may leave a part written.
        """
        latest = {record.key: record for record in latest_records(records)}
        batch = to_batch(list(latest.values()), self._dimension, cosine=self._cosine)
        items = (self._to_item(latest[key], row) for key, row in zip(batch.source_keys, batch.vectors, strict=True))
        for part in split_requests(items, MAX_UPSERT_BYTES - _ENVELOPE_BYTES, _encoded_bytes):
            with sdk_errors(f"writing to index {self._index.name!r}"):
                self._index.rest.upsert(vectors=part, namespace=self._namespace)
        return len(batch)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete records; an absent key or namespace is no error."""
        for part in split_requests(possible_keys(keys), MAX_QUERY_CHARACTERS * MAX_RECORDS, len):
            self._delete(part)

    def _delete(self, keys: Sequence[str]) -> None:
        for tries_left in reversed(range(MOST_DELETES)):
            try:
                with sdk_errors(f"deleting from index {self._index.name!r}"):
                    self._index.rest.delete(ids=keys, namespace=self._namespace)
            except SourceNotFound:
                if self._namespace not in self._index.namespaces():
                    return
                # The namespace was gone with its last record, and another writer has created it again.
                if not tries_left:
                    raise
            else:
                return

    def count(self) -> int:
        """Return the number of records in the namespace, as the index last counted them."""
        return self._index.namespaces().get(self._namespace, 0)

    def close(self) -> None:
        """Close the SDK's connections."""
        self._index.rest.close()

    def _to_item(self, record: Record, vector: np.ndarray[Any, np.dtype[np.float32]]) -> dict[str, Any]:
        metadata = dict(record.metadata)
        if record.text is not None:
            metadata[self._text_field] = record.text
        return {"id": record.key, "values": vector.tolist(), "metadata": metadata}

    def _split(self, metadata: Mapping[str, Any] | None) -> tuple[str | None, dict[str, Any]]:
        return split_text(metadata or {}, self._text_field)


def _encoded_bytes(item: dict[str, Any]) -> int:
    return len(json.dumps(item, ensure_ascii=False, default=str).encode("utf-8", "replace"))
