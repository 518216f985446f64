"""Pinecone's data plane on one index, the same for every transport. All methods raise `Refused`."""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from amprenta_vectors.errors import FilterError
from amprenta_vectors.sandbox.pinecone.faults import Calls
from amprenta_vectors.sandbox.pinecone.records import Record, Sparse
from amprenta_vectors.sandbox.pinecone.refusals import Refused
from amprenta_vectors.sandbox.pinecone.store import Namespace, Store, canonical, listing_key
from amprenta_vectors.sandbox.pinecone.validation import (
    check_count,
    check_id,
    check_limit,
    check_metadata,
    check_sparse,
    check_values,
)
from amprenta_vectors.stores.filters.language import parse_filter

LARGEST_LIST = 100
LARGEST_TOP_K = 10_000
LARGEST_BY_METADATA = 10_000
LARGEST_BY_METADATA_BYTES = 4 * 1024 * 1024
LARGEST_UPSERT_BYTES = 2 * 1024 * 1024
MOST_IDS = 1000

_FETCHED_PER_READ_UNIT = 10
_BYTES_PER_READ_UNIT = 10**9

Item = TypeVar("Item")
Predicate = Callable[[Record], bool]


@dataclass(frozen=True)
class Page(Generic[Item]):
    """Part of an answer, with the token of the next part, and what it cost."""

    items: list[Item]
    next: str | None = None
    read_units: int = 1


@dataclass(frozen=True)
class NamespaceSummary:
    """A namespace and how many records it has."""

    name: str
    count: int


class IndexService:
    """The operations of one index's data plane. Namespaces come as the client names them."""

    def __init__(self, store: Store, calls: Calls) -> None:
        self._store = store
        self._calls = calls

    @property
    def dimension(self) -> int:
        """The number of dense values of every record."""
        return self._store.description.dimension

    @property
    def metric(self) -> str:
        """The metric by which nearness is measured."""
        return self._store.description.metric

    def list_ids(self, namespace: str, prefix: str, limit: int | None, token: str | None) -> Page[str]:
        """Return a page of the ids that begin with ``prefix``."""
        limit = check_limit(limit, LARGEST_LIST)
        last = _read_token(token, namespace)
        with self._store.lock:
            ids = list(islice(self._namespace(namespace).ids_after(last, prefix), limit + 1))
        more = len(ids) > limit
        return self._spent(Page(ids[:limit], _make_token(ids[limit - 1], namespace) if more else None))

    def fetch(self, namespace: str, ids: Sequence[str]) -> Page[Record]:
        """Return the records of those ``ids`` that are there."""
        check_count(ids, MOST_IDS, "ids")
        for id_ in ids:
            check_id(id_)
        find = self._namespace(namespace).records.get
        found = [record for record in map(find, dict.fromkeys(ids)) if record is not None]
        return self._spent(Page(found, read_units=_units(len(found), _FETCHED_PER_READ_UNIT)))

    def fetch_by_metadata(
        self, namespace: str, filter: Mapping[str, Any] | None, limit: int | None, token: str | None
    ) -> Page[Record]:
        """Return a page of the records that match ``filter``, of at most 4 MB."""
        if not filter:
            raise Refused(400, "Empty filter provided for fetch by metadata request")
        limit = check_limit(limit, LARGEST_BY_METADATA)
        matches = _predicate(filter)
        last = _read_token(token, namespace)
        page: list[Record] = []
        size, more = 0, False
        with self._store.lock:
            space = self._namespace(namespace)
            for record in map(space.records.__getitem__, space.ids_after(last, "")):
                if not matches(record):
                    continue
                size += len(record.entry)
                more = bool(page) and (len(page) == limit or size > LARGEST_BY_METADATA_BYTES)
                if more:
                    break
                page.append(record)
        following = _make_token(page[-1].id, namespace) if more else None
        return self._spent(Page(page, following, _units(len(page), _FETCHED_PER_READ_UNIT)))

    def query(
        self,
        namespace: str,
        top_k: int,
        *,
        vector: NDArray[np.float32] | None,
        id: str | None,
        filter: Mapping[str, Any] | None,
    ) -> Page[tuple[Record, float]]:
        """Return the ``top_k`` records nearest to ``vector``, or to record ``id``, with their scores, nearest first."""
        check_limit(top_k, LARGEST_TOP_K, "topK")
        if (vector is None) == (id is None):
            raise Refused(400, "Exactly one of 'vector' and 'id' must be given")
        matches = _predicate(filter) if filter is not None else None
        with self._store.lock:
            space = self._namespace(namespace)
            searchable = space.searchable(self.dimension)
            if id is not None:
                record = space.records.get(id)
                vector = record.values if record is not None else None
        units = _units(searchable.matrix.nbytes, _BYTES_PER_READ_UNIT)
        if vector is None:
            return self._spent(Page([], read_units=units))
        check_values(vector, self.dimension)
        rows = None
        if matches is not None:
            rows = np.flatnonzero([matches(record) for record in searchable.records])
        return self._spent(Page(searchable.nearest(vector, self.metric, top_k, rows), read_units=units))

    def build(
        self, id: Any, values: NDArray[np.float32], metadata: Mapping[str, Any] | None, sparse: Sparse | None
    ) -> Record:
        """Build a record that may be stored."""
        check_id(id)
        encoded = check_values(values, self.dimension, id)
        if sparse is not None:
            check_sparse(sparse, self.metric)
        return Record.build(id, encoded, check_metadata(metadata), sparse)

    def upsert(self, namespace: str, records: list[Record], request_bytes: int) -> int:
        """Insert or replace records that came as ``request_bytes``; return how many."""
        if request_bytes > LARGEST_UPSERT_BYTES:
            raise Refused(
                413,
                f"Error, message length too large: found {request_bytes} bytes, "
                f"the limit is: {LARGEST_UPSERT_BYTES} bytes",
            )
        check_count(records, MOST_IDS, "vectors")
        self._store.put(check_id(canonical(namespace), "Namespace"), records)
        return len(records)

    def update(
        self,
        namespace: str,
        id: str,
        *,
        values: NDArray[np.float32] | None,
        metadata: Mapping[str, Any] | None,
        sparse: Sparse | None,
    ) -> None:
        """Change what is given of one record; ``metadata`` is added to what it has. An absent record is no error."""
        check_id(id)
        with self._store.lock:
            record = self._existing(namespace).records.get(id)
            if record is not None:
                encoded = record.values.tobytes() if values is None else check_values(values, self.dimension, id)
                kept = record.sparse if sparse is None else check_sparse(sparse, self.metric)
                merged = check_metadata({**record.metadata, **(check_metadata(metadata) or {})})
                self._store.put(canonical(namespace), [Record.build(id, encoded, merged, kept)])

    def update_matching(
        self, namespace: str, filter: Mapping[str, Any], metadata: Mapping[str, Any] | None, *, dry_run: bool
    ) -> int:
        """Add ``metadata`` to that of all records that match; return how many match. A dry run only counts."""
        if not filter:
            raise Refused(400, "Update with empty metadata filter is not allowed")
        added, matches = check_metadata(metadata) or {}, _predicate(filter)
        with self._store.lock:
            found = [record for record in self._existing(namespace).records.values() if matches(record)]
            if found and not dry_run:
                changed = [
                    Record.build(
                        record.id,
                        record.values.tobytes(),
                        check_metadata({**record.metadata, **added}),
                        record.sparse,
                    )
                    for record in found
                ]
                self._store.put(canonical(namespace), changed)
        return len(found)

    def delete(self, namespace: str, ids: Sequence[str], *, delete_all: bool, filter: Mapping[str, Any] | None) -> None:
        """Delete records by ids, by filter, or all; an absent id is no error, an absent namespace is."""
        if sum((bool(ids), delete_all, filter is not None)) != 1:
            raise Refused(400, "Exactly one of ids, deleteAll and filter must be given")
        if filter is not None and not filter:
            raise Refused(400, "Delete with empty metadata filter is not allowed")
        with self._store.lock:
            space = self._existing(namespace)
            if filter is not None:
                matches = _predicate(filter)
                ids = [record.id for record in space.records.values() if matches(record)]
            elif delete_all:
                ids = list(space.records)
            else:
                check_count(ids, MOST_IDS, "ids")
            self._store.remove(canonical(namespace), list(ids))

    def stats(self, filter: Mapping[str, Any] | None) -> list[NamespaceSummary]:
        """Return every namespace with its count."""
        if filter:
            raise Refused(400, "Serverless indexes do not support describing index stats with metadata filtering")
        with self._store.lock:
            return [NamespaceSummary(name, len(space.records)) for name, space in self._store.namespaces.items()]

    def list_namespaces(self, prefix: str, limit: int | None, token: str | None) -> tuple[Page[NamespaceSummary], int]:
        """Return a page of the namespaces that begin with ``prefix``, and how many do so altogether."""
        limit = check_limit(limit, LARGEST_LIST)
        last = _read_token(token, "")
        found = sorted(
            (summary for summary in self.stats(None) if summary.name.startswith(prefix)),
            key=lambda summary: listing_key(summary.name),
        )
        rest = [summary for summary in found if last is None or listing_key(summary.name) > listing_key(last)]
        following = _make_token(rest[limit - 1].name, "") if len(rest) > limit else None
        return Page(rest[:limit], following), len(found)

    def describe_namespace(self, namespace: str) -> NamespaceSummary:
        """Return one namespace with its count."""
        return NamespaceSummary(canonical(namespace), len(self._existing(namespace).records))

    def _namespace(self, namespace: str) -> Namespace:
        return self._store.namespaces.get(canonical(namespace)) or Namespace()

    def _existing(self, namespace: str) -> Namespace:
        found = self._store.namespaces.get(canonical(namespace))
        if found is None:
            raise Refused(404, "Namespace not found")
        return found

    def _spent(self, page: Page[Item]) -> Page[Item]:
        self._calls.spend(page.read_units)
        return page


def _units(amount: int, per_unit: int) -> int:
    return max(1, math.ceil(amount / per_unit))


def _predicate(filter: Mapping[str, Any]) -> Predicate:
    try:
        parsed = parse_filter(filter)
    except FilterError as error:
        raise Refused(400, error.message) from error
    return lambda record: parsed.matches(record.metadata)


def _make_token(last: str, namespace: str) -> str:
    # Where the page ended, and a checksum that makes a token of another listing, or of no listing, one to refuse.
    return base64.urlsafe_b64encode(_checksum(last, namespace) + last.encode()).decode()


def _read_token(token: str | None, namespace: str) -> str | None:
    if not token:
        return None
    try:
        data = base64.b64decode(token, altchars=b"-_", validate=True)
        last = data[4:].decode("ascii")
    except (binascii.Error, ValueError) as error:
        raise Refused(400, "Invalid pagination token") from error
    if data[:4] != _checksum(last, namespace):
        raise Refused(400, "Invalid pagination token")
    return last


def _checksum(last: str, namespace: str) -> bytes:
    return zlib.crc32(f"{canonical(namespace)}\0{last}".encode()).to_bytes(4, "big")
