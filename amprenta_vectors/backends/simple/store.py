"""A simple vector store, one user's collection in two files, as a store: exact search in memory, safe rewriting."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amprenta_vectors.backends.simple.cipher import MetadataCipher, decrypted
from amprenta_vectors.backends.simple.edit import Entry
from amprenta_vectors.backends.simple.fields import ORIGINAL_ID
from amprenta_vectors.backends.simple.files import SimpleFiles
from amprenta_vectors.backends.simple.reading import LegacyRecord, LegacyStore
from amprenta_vectors.backends.simple.tree import PREFIX
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError, RowError
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.reasons import Reason
from amprenta_vectors.schema.keymaps import to_key_maker
from amprenta_vectors.schema.registry import get_table
from amprenta_vectors.stores.filters.language import Condition, parse_filter
from amprenta_vectors.stores.filters.values import is_storable
from amprenta_vectors.stores.given import latest_records, possible_keys
from amprenta_vectors.stores.protocol import Filter, Hit, Record
from amprenta_vectors.stores.top_k import to_top_k
from amprenta_vectors.stores.vectors import first_with_direction, near_enough, to_batch, to_query_vector


@dataclass(frozen=True, eq=False)
class _Loaded:
    """The files at one moment.

    ``directions`` is ``(n, dimension)`` float64, each row of length 1: the vectors of ``keys``, which all have a
    direction.
    """

    signature: tuple[Any, ...]
    rows: Mapping[str, Record]
    ids: Mapping[str, str]
    dimension: int | None
    keys: Sequence[str]
    directions: NDArray[np.float64]


class SimpleStore:
    """The documents in ``folder`` by the keys that ``to_key`` makes of their ids; each keeps its id in `ORIGINAL_ID`.

    The files are read again when they have changed. What is added to plain files is written plain; if anything in them
    is encrypted, or they are empty and there is a ``key``, the text and metadata added are encrypted with it; metadata
    that comes encrypted is decrypted first. Vectors of another dimension than most, zero vectors and vectors with NaN
    are no hits. A filter on ``text_field`` asks the text. Hits less near than the score ``threshold`` are left out.
    Raises what `read_store` raises.
    """

    name = "simple"
    distance: Distance = "cosine"

    def __init__(
        self,
        folder: Path,
        to_key: Callable[[str], str],
        *,
        key: str | None = None,
        dimension: int | None = None,
        text_field: str = "text",
        threshold: float | None = None,
    ) -> None:
        self._files = SimpleFiles(folder, key)
        self._to_key = to_key
        self._cipher = None if key is None else MetadataCipher(key)
        self._dimension = dimension
        self._text_field = text_field
        self._threshold = threshold
        self._loaded: _Loaded | None = None

    def query(self, vector: ArrayLike, *, top_k: int = 10, filter: Filter | None = None) -> list[Hit]:
        """Return the ``top_k`` nearest documents that match ``filter``, nearest first; every document is compared."""
        top_k = to_top_k(top_k)
        condition = parse_filter(filter) if filter else None
        loaded = self._load()
        if loaded.dimension is None:
            return near_enough(self, [], self._threshold)
        asked = to_query_vector(vector, loaded.dimension, cosine=True).astype(np.float64)
        scores = loaded.directions @ (asked / np.linalg.norm(asked))
        # Rounded, so that equal vectors have equal scores; these stand in the order of their keys.
        hits: list[Hit] = []
        for row in np.argsort(-np.round(scores, 12), kind="stable"):
            record = loaded.rows[loaded.keys[row]]
            if condition is None or self._matches(condition, record):
                hits.append(Hit(record.key, float(scores[row]), record.text, record.metadata))
                if len(hits) == top_k:
                    break
        return near_enough(self, hits, self._threshold)

    def fetch(self, keys: Sequence[str]) -> dict[str, Record]:
        """Return the documents of ``keys`` by key; absent keys are absent."""
        rows = self._load().rows
        return {key: rows[key] for key in possible_keys(keys) if key in rows}

    def upsert(self, records: Sequence[Record]) -> int:
        """Insert or replace documents, all or none; returns how many.

        Of documents that share a key the last one counts. Raises `RowError` for a document that cannot be kept, before
        anything is written: one whose key, say, is not made of the `ORIGINAL_ID` in its metadata.
        """
        latest = latest_records(records)
        if not latest:
            return 0
        dimension = self._load().dimension or np.size(latest[0].vector)
        batch = to_batch(latest, dimension, cosine=True)
        vectors = dict(zip(batch.source_keys, batch.vectors, strict=True))
        entries = [self._to_entry(record, vectors[record.key]) for record in latest]
        self._files.change({identity for identity, _ in entries}, entries)
        return len(entries)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete documents; an absent key is no error."""
        ids = self._load().ids
        gone = {ids[key] for key in possible_keys(keys) if key in ids}
        if gone:
            self._files.change(gone, [])

    def stored_vector(self) -> NDArray[np.float32] | None:
        """Return some vector to query with, ``(dimension,)``; None if there is none."""
        loaded = self._load()
        return first_with_direction(loaded.rows[key].vector for key in loaded.keys)

    def count(self) -> int:
        """Return how many documents have a vector of the store's dimension."""
        loaded = self._load()
        return sum(len(record.vector) == loaded.dimension for record in loaded.rows.values())

    def close(self) -> None:
        """Forget what was read."""
        self._loaded = None

    def _load(self) -> _Loaded:
        signature = self._files.signature()
        loaded = self._loaded
        if loaded is None or loaded.signature != signature:
            loaded = self._loaded = self._to_loaded(signature, self._files.read())
        return loaded

    def _to_loaded(self, signature: tuple[Any, ...], store: LegacyStore) -> _Loaded:
        ids = {self._to_key(identity): identity for identity in store.records}
        rows = {key: _to_row(key, identity, store.records[identity]) for key, identity in ids.items()}
        counts = store.dimensions().most_common(1)
        dimension = self._dimension or (counts[0][0] if counts else None)
        keys = sorted(key for key, row in rows.items() if len(row.vector) == dimension and _has_direction(row.vector))
        vectors = np.array([rows[key].vector for key in keys], np.float64).reshape(len(keys), dimension or 0)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return _Loaded(signature, rows, ids, dimension, keys, vectors / lengths)

    def _matches(self, condition: Condition, record: Record) -> bool:
        return condition.matches({**record.metadata, self._text_field: record.text})

    def _to_entry(self, record: Record, vector: NDArray[np.float32]) -> Entry:
        metadata = decrypted(record.metadata, self._cipher)
        identity = metadata.pop(ORIGINAL_ID, record.key)
        if not isinstance(identity, str) or self._to_key(identity) != record.key:
            raise RowError(record.key, Reason.REFUSED, f"its key is not made of its {ORIGINAL_ID}, {identity!r}")
        try:
            plain = json.dumps(metadata, allow_nan=False, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise RowError(record.key, Reason.REFUSED, f"the metadata is no JSON: {error}") from None
        text = record.text or ""
        if not is_storable(text) or not is_storable(plain):
            raise RowError(record.key, Reason.REFUSED, "text or metadata has a character that no file can hold")
        return identity, LegacyRecord(vector, text, json.loads(plain))


def _to_row(key: str, identity: str, record: LegacyRecord) -> Record:
    return Record(key, record.vector, record.text, {**record.metadata, ORIGINAL_ID: identity})


def _has_direction(vector: NDArray[np.float32]) -> bool:
    return bool(vector.any() and np.isfinite(vector).all())


def open_simple_store(settings: Settings) -> SimpleStore:
    """Open the store ``USER/vector_store_COLLECTION`` below ``SIMPLE_STORE_ROOT``; it need not exist yet.

    User and collection are the scope in ``AMPRENTA_TABLE`` that ``PINECONE_NAMESPACE`` names. Raises `ConfigError` if
    the scope is not a user and a collection.
    """
    table = get_table(settings.table, settings.config)
    scope = table.scope_for(settings.namespace)
    if len(scope) != len(_PARTS):
        raise ConfigError(
            f"a simple store is one user's collection; table {table.name} has the scope columns: "
            f"{', '.join(scope) or 'none'}",
            hint="export AMPRENTA_TABLE=vector_documents",
        )
    user, collection = (_as_folder(what, name) for what, name in zip(_PARTS, scope.values(), strict=True))
    key = settings.vector_store_encryption_key
    return SimpleStore(
        settings.simple_store_root / user / f"{PREFIX}{collection}",
        to_key_maker(table, scope),
        key=None if key is None else key.get_secret_value(),
        dimension=settings.vector_dimension,
        text_field=table.metadata_text_field or settings.text_field,
        threshold=settings.simple_similarity_threshold,
    )


_PARTS = ("user", "collection")


def _as_folder(what: str, name: str) -> str:
    """Return ``name`` if it is a plain folder name. Raises `ConfigError` if it could lead elsewhere."""
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        raise ConfigError(f"the {what} is {name!r}; expected the name of a folder")
    return name
