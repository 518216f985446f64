"""Finds the records of a collection by the keys of a table, which Chroma's ids may spell otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from amprenta_vectors.backends.chroma.client import PAGE, ChromaCollection, chroma_errors
from amprenta_vectors.errors import KeysRefused
from amprenta_vectors.schema.key_values import canonical, split_prefix

KEYS_A_FILTER = 100
"""Keys looked for in the metadata at once, each in every spelling."""

SPELLINGS: tuple[Callable[[UUID], str], ...] = (
    str,
    lambda value: str(value).upper(),
    lambda value: value.hex,
    lambda value: value.hex.upper(),
    lambda value: f"{{{value}}}",
)


class RecordIds:
    """The mapping between keys and ids of one collection. Without ``id_field`` they are the same.

    With it a key is a UUID. Its record has that UUID as its id, in any spelling and after any prefix that the ids of
    ``sample`` have; or it has it in the metadata field ``id_field``, if a record of the sample has no UUID as its id.
    """

    def __init__(self, id_field: str | None, sample: Sequence[str] = ()) -> None:
        self.id_field = id_field
        self._forms: dict[tuple[str, int], None] = {}
        self._by_field = False
        for record_id in sample if id_field else ():
            found = split_prefix(record_id)
            if found is None:
                self._by_field = True
                continue
            prefix, spelled = found
            value = UUID(str(canonical(spelled, "uuid")))
            known = [place for place, spell in enumerate(SPELLINGS) if spell(value) == spelled]
            self._forms.update({(prefix, place): None for place in known})

    def to_key(self, record_id: str, metadata: Mapping[str, Any] | None) -> str:
        """Return the key that a record stands for; the record's own id if it stands for none."""
        if self.id_field is None:
            return record_id
        found = split_prefix(record_id)
        told = found[1] if found else str((metadata or {}).get(self.id_field, ""))
        return canonical(told, "uuid") or record_id

    def to_ids(self, key: str) -> list[str]:
        """Return the ids that a record of ``key`` may have, likeliest first: a new record is stored under the first."""
        value = None if self.id_field is None else canonical(key, "uuid")
        if value is None:
            return [key]
        spelled = [prefix + SPELLINGS[place](UUID(value)) for prefix, place in self._forms]
        return list(dict.fromkeys([*spelled, key]))

    def to_where(self, keys: Sequence[str]) -> dict[str, Any] | None:
        """Return Chroma's filter for the records that hold ``keys`` in their metadata; None if no record does."""
        values = [UUID(value) for value in (canonical(key, "uuid") for key in keys) if value]
        if not (self.id_field and self._by_field and values):
            return None
        return {self.id_field: {"$in": [spell(value) for value in values for spell in SPELLINGS]}}


def open_ids(collection: ChromaCollection, id_field: str | None) -> RecordIds:
    """Return the `RecordIds` of ``collection``, told from its first 1000 ids."""
    if id_field is None:
        return RecordIds(None)
    with chroma_errors(f"listing collection {collection.name!r}"):
        return RecordIds(id_field, collection.handle.get(limit=PAGE, include=[])["ids"])


class Row(NamedTuple):
    """A record as Chroma gives it; a field that was not requested is None."""

    record_id: str
    vector: Any
    metadata: Mapping[str, Any] | None
    text: str | None


def read_rows(collection: ChromaCollection, fields: Sequence[str], **chosen: Any) -> list[Row]:
    """Read the records that ``chosen`` (``ids``, ``where``, ``limit``, ``offset``) selects, with some ``fields``.

    Raises `KeysRefused` if Chroma finds the request malformed.
    """
    with chroma_errors(f"reading collection {collection.name!r}", KeysRefused):
        answer = collection.handle.get(include=list(fields), **chosen)
    none = [None] * len(answer["ids"])
    columns = (answer[name] if name in fields else none for name in ("embeddings", "metadatas", "documents"))
    return [Row(*row) for row in zip(answer["ids"], *columns, strict=True)]


def find_rows(
    collection: ChromaCollection, ids: RecordIds, keys: Sequence[str], fields: Sequence[str]
) -> dict[str, Row]:
    """Return the records of ``keys`` by key, as each was given; absent keys are absent.

    A request has at most 1000 ids.
    """
    found = _by_id(collection, {key: key for key in keys}, fields)
    missing = [key for key in keys if key not in found]
    found |= _by_id(collection, {name: key for key in missing for name in ids.to_ids(key) if name != key}, fields)
    missing = [key for key in missing if key not in found]
    for start in range(0, len(missing), KEYS_A_FILTER):
        part = missing[start : start + KEYS_A_FILTER]
        where = ids.to_where(part)
        asked = {ids.to_key(key, None): key for key in part}
        for row in read_rows(collection, fields, where=where) if where else ():
            key = asked.get(ids.to_key(row.record_id, row.metadata))
            found |= {} if key is None else {key: row}
    return found


def _by_id(collection: ChromaCollection, wanted: Mapping[str, str], fields: Sequence[str]) -> dict[str, Row]:
    """Return records by the key that ``wanted`` has for their id."""
    names = [name for name in wanted if name]
    parts = (names[start : start + PAGE] for start in range(0, len(names), PAGE))
    return {wanted[row.record_id]: row for part in parts for row in read_rows(collection, fields, ids=part)}
