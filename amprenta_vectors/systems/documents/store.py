"""A store of documents by the ids that their application gave them; the table's keys are made of those ids."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike

from amprenta_vectors.backends.simple.cipher import ENCRYPTED, MetadataCipher, decrypted, is_encrypted
from amprenta_vectors.backends.simple.fields import ORIGINAL_ID
from amprenta_vectors.errors import ConfigError, CredentialsRefused, FilterError, RowError
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.reasons import Reason
from amprenta_vectors.schema.key_values import canonical
from amprenta_vectors.stores.given import latest_records, possible_keys
from amprenta_vectors.stores.protocol import Filter, Hit, Record, VectorStore

log = logging.getLogger(__name__)

PAGE = 100
"""How many documents are checked for encryption at a time."""


class DocumentStore:
    """Documents of ``store`` by their ids, of which ``to_key`` makes its keys; ``cipher``, if any, encrypts metadata.

    The id is written as the metadata field `ORIGINAL_ID`, and left out of the metadata that is read. A row without one,
    which something else wrote, goes by its key. `fetch` and `delete` take either. Texts and ids are not encrypted.
    """

    def __init__(self, store: VectorStore, to_key: Callable[[str], str], cipher: MetadataCipher | None = None) -> None:
        self._store = store
        self._to_key = to_key
        self._cipher = cipher

    @property
    def name(self) -> str:
        """The name of the underlying store."""
        return self._store.name

    @property
    def distance(self) -> Distance:
        """The distance of the underlying store."""
        return self._store.distance

    def query(self, vector: ArrayLike, *, top_k: int = 10, filter: Filter | None = None) -> list[Hit]:
        """Return the ``top_k`` nearest documents that match ``filter``, nearest first.

        Raises `FilterError` for a filter if metadata is encrypted: it would find nothing, or everything. A hit whose
        metadata cannot be read is left out; if none can be, what stands in the way is raised.
        """
        if filter:
            self._check_plain(vector)
        hits = self._store.query(vector, top_k=top_k, filter=filter)
        found: list[Hit] = []
        unread: list[ConfigError | CredentialsRefused] = []
        for hit in hits:
            try:
                own, metadata = self._told_by(hit)
            except (ConfigError, CredentialsRefused) as error:
                unread.append(error)
            else:
                found.append(Hit(own, hit.score, hit.text, metadata))
        if unread and not found:
            raise unread[0]
        if unread:
            log.warning("%d hits are left out: %s", len(unread), unread[0].message)
        return found

    def fetch(self, keys: Sequence[str]) -> dict[str, Record]:
        """Return the documents with those ids or keys, by what was asked for."""
        given = possible_keys(keys)
        found = self._store.fetch(self._possible(given))
        rows = {asked: found.get(self._to_key(asked)) or found.get(asked) for asked in given}
        return {asked: self._to_document(row) for asked, row in rows.items() if row is not None}

    def upsert(self, records: Sequence[Record]) -> int:
        """Insert or replace documents; return how many. Raises `RowError` naming the id of one that cannot be kept."""
        latest = latest_records(records)
        rows = [self._to_row(record) for record in latest]
        try:
            return self._store.upsert(rows)
        except RowError as error:
            ids = {row.key: record.key for row, record in zip(rows, latest, strict=True)}
            raise RowError(ids.get(error.key, error.key), error.reason, error.detail) from error

    def delete(self, keys: Sequence[str]) -> None:
        """Delete documents by id or by key; an absent one is no error."""
        self._store.delete(self._possible(possible_keys(keys)))

    def count(self) -> int:
        """Return how many documents have a vector."""
        return self._store.count()

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _check_plain(self, vector: ArrayLike) -> None:
        if self._cipher is not None or self._has_encrypted(vector):
            raise FilterError(
                "the metadata of these documents is encrypted, and cannot be filtered by",
                hint="search without a filter",
            )

    def _has_encrypted(self, vector: ArrayLike) -> bool:
        """Return whether some documents have encrypted metadata.

        It is asked each time: whoever has a key may have written since. A field of that name may be the user's own.
        """
        plain: set[str] = set()
        while True:
            others = [{ENCRYPTED: {"$nin": sorted(plain)}}] if plain else []
            asked = [{ENCRYPTED: {"$exists": True}}, *({ENCRYPTED: {"$ne": flag}} for flag in (True, False)), *others]
            hits = self._store.query(vector, top_k=PAGE, filter={"$and": asked})
            if any(is_encrypted(hit.metadata) for hit in hits):
                return True
            found = {value for hit in hits for value in _strings_in(hit.metadata.get(ENCRYPTED))} - plain
            if len(hits) < PAGE or not found:
                return False
            plain |= found

    def _possible(self, asked: Sequence[str]) -> list[str]:
        """Return the keys that those ids, or keys, may stand for."""
        made = [self._to_key(item) for item in asked]
        return list(dict.fromkeys([*made, *(item for item in asked if canonical(item, "uuid"))]))

    def _to_row(self, record: Record) -> Record:
        metadata: Mapping[str, Any] = record.metadata
        given = metadata.get(ORIGINAL_ID, record.key)
        if given != record.key:
            raise ConfigError(
                f"the metadata of document {record.key!r} has {ORIGINAL_ID} {given!r}, a field that keeps its own id",
                hint="give that field another name",
            )
        if self._cipher is None and is_encrypted(metadata):
            why = f"its metadata has a field {ENCRYPTED!r} like encrypted metadata, which could not be read back"
            raise RowError(record.key, Reason.REFUSED, why)
        if self._cipher is not None:
            try:
                metadata = self._cipher.encrypt(metadata)
            except (TypeError, ValueError) as error:
                raise RowError(record.key, Reason.REFUSED, f"the metadata is no JSON: {error}") from None
        return Record(self._to_key(record.key), record.vector, record.text, {**metadata, ORIGINAL_ID: record.key})

    def _told_by(self, row: Hit | Record) -> tuple[str, dict[str, Any]]:
        """Return a row's own id, and the decrypted metadata without it."""
        metadata = decrypted(row.metadata, self._cipher)
        own = metadata.pop(ORIGINAL_ID, row.key)
        return (own, metadata) if isinstance(own, str) else (row.key, {**metadata, ORIGINAL_ID: own})

    def _to_document(self, row: Record) -> Record:
        own, metadata = self._told_by(row)
        return Record(own, row.vector, row.text, metadata)


def _strings_in(value: object) -> list[str]:
    """Return the strings by which a filter finds a field."""
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str)]
