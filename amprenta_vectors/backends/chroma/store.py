"""A collection of Chroma as a store, in its folder or on its server."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amprenta_vectors.backends.chroma.client import PAGE, ChromaCollection, chroma_errors
from amprenta_vectors.backends.chroma.ids import RecordIds, Row, find_rows, read_rows
from amprenta_vectors.backends.chroma.where import Where, to_where
from amprenta_vectors.errors import RowError
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.reasons import Reason
from amprenta_vectors.stores.filters.language import Condition, parse_filter
from amprenta_vectors.stores.given import latest_records, possible_keys
from amprenta_vectors.stores.protocol import Filter, Hit, Record
from amprenta_vectors.stores.top_k import MAX_TOP_K, to_top_k
from amprenta_vectors.stores.vectors import FEW_ROWS, first_with_direction, near_enough, to_batch, to_query_vector

OVERSAMPLING = 4
"""Hits requested for each hit wanted with a filter: more often enough pass the part that Chroma cannot apply.

Never more than `MAX_TOP_K`: past 32,766 Chroma fails with «too many SQL variables».
"""
_WHOLE = ["embeddings", "metadatas", "documents"]


class ChromaStore:
    """The records of one collection. A record's text is Chroma's document; filters know it as ``text_field``.

    Keys are the table's: ``ids`` finds the record of a key. A record that stands for no key has its id as its key. Hits
    less near than the score ``threshold`` are left out. Raises `TransientError`, `CredentialsRefused`, `SourceNotFound`
    and `SourceError` for Chroma's answers.
    """

    name = "chroma"

    def __init__(
        self, collection: ChromaCollection, ids: RecordIds, text_field: str, *, threshold: float | None = None
    ) -> None:
        self._collection = collection
        self._ids = ids
        self._text_field = text_field
        self._threshold = threshold
        self._dimension = collection.dimension()

    @property
    def distance(self) -> Distance:
        """The distance that the collection was created with."""
        return self._collection.distance

    def query(self, vector: ArrayLike, *, top_k: int = 10, filter: Filter | None = None) -> list[Hit]:
        """Return the ``top_k`` nearest records that match ``filter``, nearest first.

        Chroma applies what it can of a filter as it searches; the rest is applied to its hits afterwards. If that
        leaves fewer than ``top_k``, every record that passes Chroma's part of the filter is compared, one by one.
        """
        top_k = to_top_k(top_k)
        condition = parse_filter(filter) if filter else None
        dimension = self._known_dimension()
        if dimension is None:
            return near_enough(self, [], self._threshold)
        asked = to_query_vector(vector, dimension, cosine=self.distance == "cosine")
        where = None if condition is None else to_where(condition, self._text_field)
        most = top_k if condition is None else min(OVERSAMPLING * top_k, MAX_TOP_K)
        hits = self._searched(asked, most, where, condition)
        if len(hits) < top_k and (condition is not None or len(hits) < self.count()):
            hits = self._compared(asked, top_k, where, condition)
        return near_enough(self, self._nearest(hits, top_k), self._threshold)

    def stored_vector(self) -> NDArray[np.float32] | None:
        """Return some vector of the collection to query with, ``(dimension,)``; None if none is found at once."""
        rows = read_rows(self._collection, ["embeddings"], limit=FEW_ROWS)
        return first_with_direction(np.asarray(row.vector, dtype=np.float32) for row in rows)

    def fetch(self, keys: Sequence[str]) -> dict[str, Record]:
        """Return the records of ``keys`` by key; absent keys are absent."""
        return {
            key: Record(key, np.asarray(row.vector, dtype=np.float32), row.text, dict(row.metadata or {}))
            for key, row in self._find(possible_keys(keys), _WHOLE).items()
        }

    def upsert(self, records: Sequence[Record]) -> int:
        """Insert or replace whole records; return how many. Of records that share a key the last one counts.

        Raises `RowError` naming the first that cannot be stored, before anything is sent. More records than one request
        takes (1000) are sent in several, so an error may leave a part written. A document can only be removed with its
        record, which is then added again.
        """
        latest = {record.key: record for record in latest_records(records)}
        dimension = self._known_dimension() or len(np.atleast_1d(next(iter(latest.values())).vector)) if latest else 0
        batch = to_batch(list(latest.values()), dimension, cosine=self.distance == "cosine")
        for record in latest.values():
            _check_metadata(record)
        keys = list(batch.source_keys)
        for start in range(0, len(keys), PAGE):
            part = slice(start, start + PAGE)
            self._put([latest[key] for key in keys[part]], batch.vectors[part])
        return len(batch)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete records; an absent key is no error."""
        self._remove([row.record_id for row in self._find(possible_keys(keys), ["metadatas"]).values()])

    def count(self) -> int:
        """Return the number of records; each has a vector."""
        return self._collection.count()

    def close(self) -> None:
        """Close the client."""
        self._collection.close()

    def _known_dimension(self) -> int | None:
        """Return the collection's dimension; None while no record was ever added."""
        if self._dimension is None:
            self._dimension = self._collection.dimension()
        return self._dimension

    def _searched(
        self, asked: NDArray[np.float32], most: int, where: Where | None, condition: Condition | None
    ) -> list[Hit]:
        with chroma_errors(f"querying collection {self._collection.name!r}"):
            answer = self._collection.handle.query(
                query_embeddings=[asked], n_results=most, where=where, include=["metadatas", "documents", "distances"]
            )
        columns = (answer[name][0] for name in ("ids", "metadatas", "documents", "distances"))
        found = [
            (Row(record_id, None, fields, text), distance)
            for record_id, fields, text, distance in zip(*columns, strict=True)
        ]
        return [self._to_hit(row, distance) for row, distance in found if self._matches(condition, row)]

    def _compared(
        self, asked: NDArray[np.float32], top_k: int, where: Where | None, condition: Condition | None
    ) -> list[Hit]:
        """Return the nearest of all records that pass ``where`` and ``condition``, by exact distance."""
        best: list[Hit] = []
        place = 0
        while True:
            rows = read_rows(self._collection, _WHOLE, where=where, limit=PAGE, offset=place)
            rows_that_match = [row for row in rows if self._matches(condition, row)]
            vectors = np.array([row.vector for row in rows_that_match], dtype=np.float64).reshape(-1, len(asked))
            distances = _distances(self.distance, vectors, asked).tolist()
            found = zip(rows_that_match, distances, strict=True)
            best += [self._to_hit(row, distance) for row, distance in found if not math.isnan(distance)]
            best = self._nearest(best, top_k)
            place += len(rows)
            if len(rows) < PAGE:
                return best

    def _nearest(self, hits: list[Hit], top_k: int) -> list[Hit]:
        sign = 1 if self.distance == "l2" else -1
        return sorted(hits, key=lambda hit: sign * hit.score)[:top_k]

    def _matches(self, condition: Condition | None, row: Row) -> bool:
        if condition is None:
            return True
        return condition.matches({**(row.metadata or {}), **({} if row.text is None else {self._text_field: row.text})})

    def _to_hit(self, row: Row, distance: float) -> Hit:
        # Chroma's distances are 1 - cosine, 1 - inner product, and the square under l2.
        score = distance if self.distance == "l2" else 1.0 - distance
        return Hit(self._ids.to_key(row.record_id, row.metadata), score, row.text, dict(row.metadata or {}))

    def _find(self, keys: Sequence[str], fields: Sequence[str]) -> dict[str, Row]:
        return find_rows(self._collection, self._ids, keys, fields)

    def _put(self, records: Sequence[Record], vectors: NDArray[np.float32]) -> None:
        """Upsert whole records: Chroma's own upsert keeps old metadata and documents that a new record lacks."""
        before = self._find([record.key for record in records], ["metadatas", "documents"])
        outlived = {key: row for key, row in before.items() if row.text is not None}
        self._remove([outlived[record.key].record_id for record in records if self._drops(record, outlived)])
        metadata = [_whole_metadata(record, before.get(record.key)) for record in records]
        names = [
            before[record.key].record_id if record.key in before else self._ids.to_ids(record.key)[0]
            for record in records
        ]
        with chroma_errors(f"writing to collection {self._collection.name!r}"):
            self._collection.handle.upsert(
                ids=names, embeddings=vectors, metadatas=metadata, documents=[record.text for record in records]
            )

    @staticmethod
    def _drops(record: Record, with_text: Mapping[str, Row]) -> bool:
        return record.text is None and record.key in with_text

    def _remove(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), PAGE):
            with chroma_errors(f"deleting from collection {self._collection.name!r}"):
                self._collection.handle.delete(ids=list(names[start : start + PAGE]))


def _whole_metadata(record: Record, before: Row | None) -> dict[str, Any] | None:
    """Return the record's metadata, with None, which removes a field, for each field that it no longer has."""
    gone = (before.metadata or {}) if before is not None else {}
    return {**dict.fromkeys(gone), **record.metadata} or None


def _distances(distance: Distance, rows: NDArray[np.float64], asked: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return distances as Chroma measures them; NaN for a zero vector under cosine, which has no distance."""
    query = asked.astype(np.float64)
    if distance == "l2":
        return np.asarray(((rows - query) ** 2).sum(axis=1))
    if distance == "ip":
        return np.asarray(1.0 - rows @ query)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(1.0 - (rows @ query) / (np.linalg.norm(rows, axis=1) * np.linalg.norm(query)))


def _check_metadata(record: Record) -> None:
    """Raise `RowError` for metadata that Chroma does not take: its own message would quote the value."""
    for name, value in record.metadata.items():
        values = value if isinstance(value, list | tuple) else [value]
        kinds = {type(item) for item in values}
        if len(kinds) != 1 or not kinds <= {str, int, float, bool}:
            raise RowError(
                record.key,
                Reason.REFUSED,
                f"metadata field {name!r} is no string, number, boolean or list of one of these, which Chroma takes",
            )
        if any(kind is int and not -(2**63) <= item < 2**63 for kind in kinds for item in values):
            raise RowError(record.key, Reason.REFUSED, f"metadata field {name!r} is an integer past 64 bits")
        if not name or name.startswith(("$", "chroma:", "#")):
            raise RowError(record.key, Reason.REFUSED, f"metadata field {name!r} has a name that Chroma does not take")
