"""A collection of Chroma as a source, read from its folder or its server; nothing in it is changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from amprenta_vectors.backends.chroma.client import PAGE, ChromaCollection, chroma_errors, open_collection
from amprenta_vectors.backends.chroma.ids import RecordIds, find_rows, open_ids
from amprenta_vectors.backends.protocol import SourceDescription, TokenRefused
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import SourceNotFound
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.schema.kinds import SourceKind
from amprenta_vectors.schema.vector_table import VectorTable


class ChromaSource:
    """The records of one collection; documents are texts. Safe to share between threads.

    A key is a record's id or, where ``ids`` has an ``id_field``, a UUID that the record stands for. Vectors are as
    Chroma gives them: under cosine it keeps their direction and length apart, so the last bit of a value may be another
    than what the application once added, the same one at every reading.
    """

    def __init__(
        self, collection: ChromaCollection, dimension: int, ids: RecordIds, *, with_metadata: bool, strips: bool = False
    ) -> None:
        self._collection = collection
        self._ids = ids
        self._with_metadata = with_metadata
        self._strips = strips
        self._fields = ["embeddings", *(["metadatas"] if with_metadata or ids.id_field else [])]
        self._fields += ["documents"] if with_metadata else []
        self.description = SourceDescription(
            kind="chroma",
            identity=f"{collection.name}@{collection.where}",
            dimension=dimension,
            distance=collection.distance,
            count=collection.count(),
        )

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        """Yield pages of at most 1000 ids, in the order in which Chroma received the records.

        Chroma counts pages from the start, and a deletion moves what follows forward. So a page starts after the last
        id of the page before, wherever that is now: the token is its place and the id. If that very record was deleted
        meanwhile, or deleted and added again, the token is refused.
        """
        while True:
            place, keys = self._page(*json.loads(token)) if token else (0, self._listed(0, PAGE))
            token = json.dumps([place + PAGE, keys[-1]]) if len(keys) == PAGE else None
            yield keys, token
            if token is None:
                return

    def _page(self, place: int, last: str) -> tuple[int, list[str]]:
        """Return the place at which the ids after ``last`` start now, and those ids; ``last`` was before ``place``."""
        while (found := self._listed(place - 1, PAGE + 1))[:1] != [last]:
            place = self._place_of(last, place - 1) + 1
        return place, found[1:]

    def _place_of(self, record_id: str, end: int) -> int:
        """Return the place of ``record_id``, searched backwards from ``end``. Raises `TokenRefused` if it is gone."""
        while end > 0:
            start = max(0, end - PAGE)
            found = self._listed(start, end - start)
            if record_id in found:
                return start + found.index(record_id)
            end = start
        raise TokenRefused("the record that a page ended with is gone from its place")

    def _listed(self, place: int, most: int) -> list[str]:
        with chroma_errors(f"listing collection {self._collection.name!r}"):
            listed: list[str] = self._collection.handle.get(limit=most, offset=place, include=[])["ids"]
        return listed

    def fetch(self, keys: Sequence[str]) -> VectorBatch:
        """Fetch the records of ``keys``, by requests of at most 1000 ids."""
        found = find_rows(self._collection, self._ids, keys, self._fields)
        batch = VectorBatch(
            source_keys=list(found),
            vectors=np.array([row.vector for row in found.values()], dtype=np.float32).reshape(
                -1, self.description.dimension
            ),
            texts=[row.text for row in found.values()] if self._with_metadata else None,
            metadata=[self._kept(row.metadata or {}) for row in found.values()] if self._fields[1:] else None,
        )
        return batch.stripped() if self._strips else batch

    def _kept(self, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the metadata to carry over: all of them if requested, else the field that tells a key."""
        if self._with_metadata:
            return metadata
        return {name: value for name, value in metadata.items() if name == self._ids.id_field}

    def close(self) -> None:
        """Do nothing: the client belongs to the origin."""


class ChromaOrigin:
    """One collection, which is one namespace. Opened by :func:`open_chroma_origin`."""

    kind: SourceKind = "chroma"
    model: str | None = None
    lists = True

    def __init__(self, collection: ChromaCollection, *, strips: bool = False) -> None:
        self._strips = strips
        self._collection = collection
        self.dimension = collection.dimension()
        self.distance: Distance | None = collection.distance

    @property
    def name(self) -> str:
        """The collection and the folder or server it is in, for messages."""
        return f"collection {self._collection.name!r} of Chroma at {self._collection.where}"

    def namespaces(self) -> Mapping[str, int]:
        """Return the one namespace, ``""``, with the number of its records."""
        return {"": self._collection.count()}

    def open(self, table: VectorTable, namespace: str, *, with_metadata: bool) -> ChromaSource:
        """Open the collection as a source; the key rule of ``table`` says how ids become keys."""
        if namespace:
            raise SourceNotFound(
                f"{self.name} has no namespaces; asked for {namespace!r}", hint="export CHROMA_COLLECTION=NAME"
            )
        ids = open_ids(self._collection, table.key_rule.id_field)
        dimension = self.dimension or table.dimension
        return ChromaSource(self._collection, dimension, ids, with_metadata=with_metadata, strips=self._strips)

    def close(self) -> None:
        """Close the client."""
        self._collection.close()


def open_chroma_origin(settings: Settings) -> ChromaOrigin:
    """Open ``CHROMA_COLLECTION``. Raises as `open_collection` does."""
    return ChromaOrigin(open_collection(settings, reads_only=True), strips=settings.nul == "strip")
