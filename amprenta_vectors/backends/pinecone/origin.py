"""A Pinecone index, from which namespaces are opened as sources."""

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
        """The index's name, for messages; a pod index is named as one."""
        return f"{'pod ' if self.index.kind == 'pod' else ''}index {self.index.name!r}"

    @property
    def dimension(self) -> int | None:
        """The dimension of the field to be read; None until a field is chosen."""
        return self.index.dimension

    @property
    def distance(self) -> Distance | None:
        """The distance of the field to be read; None until a field is chosen."""
        return DISTANCES.get(self.index.metric or "")

    @property
    def model(self) -> str | None:
        """The model of an index with integrated embedding; None for any other."""
        return self.index.model

    @property
    def lists(self) -> bool:
        """Whether the index can list its ids; a pod index cannot."""
        return self.index.kind != "pod"

    def namespaces(self) -> Mapping[str, int]:
        """Return each namespace with its vector count, as the index last counted them."""
        return self.index.namespaces()

    def open(self, table: VectorTable, namespace: str, *, with_metadata: bool) -> PineconeSource:
        """Open one namespace.

        The text is taken out of the metadata if ``table`` has a text column, and sparse values are read if it has a
        sparse column.
        """
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
