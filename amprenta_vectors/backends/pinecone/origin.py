"""A Pinecone index as what namespaces are opened from."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

from amprenta_vectors.backends.pinecone.client import DISTANCES, PineconeIndex, open_index
from amprenta_vectors.backends.pinecone.source import PineconeSource, open_source
from amprenta_vectors.config import Settings
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.schema.kinds import SourceKind
from amprenta_vectors.schema.vector_table import VectorTable


class PineconeOrigin:
    """One index. Opened by :func:`open_pinecone_origin`."""

    kind: SourceKind = "pinecone"

    def __init__(self, settings: Settings, index: PineconeIndex) -> None:
        self._settings = settings
        self._opened = ExitStack()
        self.index = index

    @property
    def name(self) -> str:
        """With its kind, where that is an uncommon one."""
        return f"{'pod ' if self.index.kind == 'pod' else ''}index {self.index.name!r}"

    @property
    def dimension(self) -> int | None:
        """Of the field to be read; None where one is yet to be chosen."""
        return self.index.dimension

    @property
    def distance(self) -> Distance | None:
        """Likewise."""
        return DISTANCES.get(self.index.metric or "")

    @property
    def model(self) -> str | None:
        """Of an index with integrated embedding."""
        return self.index.model

    @property
    def lists(self) -> bool:
        """A pod index does not."""
        return self.index.kind != "pod"

    def namespaces(self) -> Mapping[str, int]:
        """As the index last counted them."""
        return self.index.namespaces()

    def open(self, table: VectorTable, namespace: str, *, with_metadata: bool) -> PineconeSource:
        """One namespace: text out of the metadata or left in it, and sparse values, as ``table`` has columns."""
        source = open_source(
            self._settings,
            self.index,
            namespace,
            with_metadata=with_metadata,
            text_field="" if table.text is None else table.metadata_text_field,
            with_sparse=table.sparse is not None,
        )
        self._opened.callback(source.close)
        return source

    def close(self) -> None:
        """Close the channels of the sources."""
        self._opened.close()


def open_pinecone_origin(settings: Settings) -> PineconeOrigin:
    """Describe and open ``PINECONE_INDEX_NAME``. Raises as `open_index` does."""
    return PineconeOrigin(settings, open_index(settings))
