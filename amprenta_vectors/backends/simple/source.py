"""The simple vector stores below a folder, ``USER/vector_store_COLLECTION/``, as a source; nothing is written there."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amprenta_vectors.backends.protocol import SourceDescription, TokenRefused
from amprenta_vectors.backends.simple.cipher import MetadataCipher
from amprenta_vectors.backends.simple.fields import ORIGINAL_ID, merge
from amprenta_vectors.backends.simple.folder import METADATA_FILE, VECTORS_FILE
from amprenta_vectors.backends.simple.reading import LegacyRecord, LegacyStore, is_encodable, read_store
from amprenta_vectors.backends.simple.tree import PREFIX, FoundStore, find_stores, shown
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import AmprentaError, DimensionMismatch, RowError, SourceError, SourceNotFound
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.reasons import Reason
from amprenta_vectors.schema.kinds import SourceKind
from amprenta_vectors.schema.vector_table import VectorTable

PAGE = 1000


class SimpleOrigin:
    """Every store below ``root``; a namespace is ``user/collection``. One store at a time is held in memory."""

    kind: SourceKind = "simple"
    dimension: int | None = None
    distance: Distance | None = "cosine"
    model: str | None = None
    lists = True

    def __init__(self, root: Path, key: str | None, *, strips: bool = False) -> None:
        self.root = root
        self.strips = strips
        self.key = key
        self.cipher = None if key is None else MetadataCipher(key)
        self._lock = threading.Lock()
        self._held: tuple[str, LegacyStore] | None = None
        self._found: dict[str, FoundStore] = {}

    @property
    def name(self) -> str:
        """The root folder, for messages."""
        return f"folder {str(self.root)!r}"

    def folders(self) -> dict[str, Path]:
        """Return the folder of every namespace, in order; one for all of a user whose folder cannot be listed.

        Raises `SourceNotFound` if there is no store, `SourceError` if the root cannot be listed.
        """
        self._found = find_stores(self.root)
        if not self._found:
            raise SourceNotFound(
                f"{self.root}/*/{PREFIX}*/ has no store: none has {VECTORS_FILE} or {METADATA_FILE}",
                hint="--root FOLDER or SIMPLE_STORE_ROOT: the folder that has a folder a user",
            )
        return {namespace: found.path for namespace, found in self._found.items()}

    def folder(self, namespace: str) -> Path:
        """Return the folder of one namespace. Raises `SourceNotFound`, and `SourceError` if it may not be touched.

        That is a folder which cannot be listed, or is another's by a symbolic link.
        """
        if namespace not in self._found and namespace not in self.folders():
            raise SourceNotFound(
                f"{self.root} has no store of {namespace!r}", hint=f"those there are: {', '.join(self._found)}"
            )
        found = self._found[namespace]
        if found.refusal is not None:
            raise found.refusal
        return found.path

    def namespaces(self) -> Mapping[str, int]:
        """Read every store and count its ids; a store that cannot be read counts 0, and `open` says why."""
        return {namespace: self._count(namespace) for namespace in self.folders()}

    def _count(self, namespace: str) -> int:
        try:
            return len(self.store(namespace).ids)
        except AmprentaError:
            return 0

    def store(self, namespace: str) -> LegacyStore:
        """Return the store, read again if another was read since. Raises as `read_store` does."""
        with self._lock:
            if self._held is None or self._held[0] != namespace:
                folder = self.folder(namespace)
                self._held = None
                self._held = (namespace, self._read(folder))
            return self._held[1]

    def _read(self, folder: Path) -> LegacyStore:
        try:
            return read_store(folder.resolve(), self.key)
        except AmprentaError:
            raise
        except Exception as error:
            # Whatever a store's content raises is that store's failure.
            raise SourceError(
                f"{folder} cannot be read: {type(error).__name__}: {shown(error)}",
                hint="it is damaged: take it from a backup",
            ) from error

    def open(self, table: VectorTable, namespace: str, *, with_metadata: bool) -> SimpleSource:
        """Open one store. Raises `DimensionMismatch` if none of its vectors has the table's dimension."""
        store = self.store(namespace)
        found = store.dimensions()
        if found and table.dimension not in found:
            sizes, path = " and ".join(map(str, sorted(found))), store.folder / VECTORS_FILE
            raise DimensionMismatch(
                f"{path} has vectors of {sizes} dimensions, {table.target} has {table.dimension}",
                hint=f"export VECTOR_DIMENSION={found.most_common(1)[0][0]} before the first upgrade of an empty table",
            )
        return SimpleSource(self, namespace, store, table, with_metadata=with_metadata)

    def close(self) -> None:
        """Forget the store that is held in memory."""
        self._held = None


class SimpleSource:
    """One store of an origin, as a source."""

    def __init__(
        self, origin: SimpleOrigin, namespace: str, store: LegacyStore, table: VectorTable, *, with_metadata: bool
    ) -> None:
        self._origin = origin
        self._namespace = namespace
        self._dimension = table.dimension
        self._text_in_metadata = table.text is None
        self._with_metadata = with_metadata
        identity = str(store.folder)
        self.description = SourceDescription("simple", identity, table.dimension, "cosine", count=len(store.ids))

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        """Yield pages of ids, unpaired ones too; a token is refused if the ids have changed since."""
        ids = self._origin.store(self._namespace).ids
        digest = hashlib.sha256("\0".join(ids).encode()).hexdigest()[:16]
        known, _, place = (token or f"{digest}:0").partition(":")
        if known != digest:
            raise TokenRefused(f"the ids of {self._namespace} have changed")
        for start in range(int(place), max(len(ids), 1), PAGE):
            end = start + PAGE
            yield ids[start:end], f"{digest}:{end}" if end < len(ids) else None

    def fetch(self, keys: Sequence[str]) -> VectorBatch:
        """Fetch the records of ``keys``; one of another dimension, or without its document, is quarantined."""
        store = self._origin.store(self._namespace)
        quarantined = [RowError(key, Reason.UNPAIRED, store.unpaired[key]) for key in keys if key in store.unpaired]
        found: list[str] = []
        for key in keys:
            if key not in store.records:
                continue
            amiss = self._amiss_with(key, store)
            if amiss is None:
                found.append(key)
            else:
                quarantined.append(amiss)
        records = [store.records[key] for key in found]
        vectors = np.empty((len(found), self._dimension), np.float32)
        for row, record in zip(vectors, records, strict=True):
            row[:] = record.vector
        if not self._with_metadata:
            return VectorBatch(found, vectors, quarantined=tuple(quarantined))
        batch = VectorBatch(
            found,
            vectors,
            texts=[record.text for record in records],
            metadata=[self._metadata_of(key, record) for key, record in zip(found, records, strict=True)],
            quarantined=tuple(quarantined),
        )
        return batch.stripped() if self._origin.strips else batch

    def _amiss_with(self, key: str, store: LegacyStore) -> RowError | None:
        record = store.records[key]
        size = len(record.vector)
        if size != self._dimension:
            where = store.folder / VECTORS_FILE
            return RowError(key, Reason.DIMENSION, f"{where}: it has {size} values, not {self._dimension}")
        if not (is_encodable(record.text) and is_encodable(json.dumps(record.metadata, ensure_ascii=False))):
            where = store.folder / METADATA_FILE
            return RowError(key, Reason.UNREADABLE, f"{where}: text or metadata has half of a surrogate pair")
        return None

    def _metadata_of(self, key: str, record: LegacyRecord) -> dict[str, Any]:
        """Return the metadata to write, with the id; encrypted if there is a key, as the store that is queried does."""
        metadata = merge(
            [("text", {"text": record.text} if self._text_in_metadata else {}), ("metadata", record.metadata)]
        )
        cipher = self._origin.cipher
        return {
            **(metadata if cipher is None else cipher.encrypt_of(f"{self._namespace}/{key}", metadata)),
            ORIGINAL_ID: key,
        }


def open_simple_origin(settings: Settings) -> SimpleOrigin:
    """Open the stores below ``SIMPLE_STORE_ROOT``. Raises `SourceNotFound` if it is no folder."""
    root = settings.simple_store_root
    if not root.is_dir():
        raise SourceNotFound(f"{root} is no folder", hint="--root FOLDER, or export SIMPLE_STORE_ROOT=FOLDER")
    key = settings.vector_store_encryption_key
    return SimpleOrigin(root, None if key is None else key.get_secret_value(), strips=settings.nul == "strip")
