"""A Pinecone index, from which namespaces are opened as sources."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from amprenta_vectors.backends.pinecone.client import DISTANCES, PineconeIndex, open_index
from amprenta_vectors.backends.pinecone.source import PineconeSource, count_of
from amprenta_vectors.backends.pinecone.transports import Transport, open_transport
from amprenta_vectors.config import Settings, normalize_namespace
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.schema.kinds import SourceKind
from amprenta_vectors.schema.vector_table import VectorTable


class PineconeOrigin:
    """One index, read over one transport for all its namespaces. Opened by :func:`open_pinecone_origin`."""

    kind: SourceKind = "pinecone"

    def __init__(self, settings: Settings, index: PineconeIndex) -> None:
        self._settings = settings
        self._counts: Mapping[str, int] = {}
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
        self._counts = self.index.namespaces()
        return self._counts

    def open(self, table: VectorTable, namespace: str, *, with_metadata: bool) -> PineconeSource:
        """Open one namespace; the index is counted again only if the last count had no such namespace.

        The text is taken out of the metadata if ``table`` has a text column, and sparse values are read if it has a
        sparse column.
        """
        namespace = normalize_namespace(namespace)
        count = count_of(self.index, self._counts if namespace in self._counts else self.namespaces(), namespace)
        self.index.dense()
        text_field = self._settings.text_field if table.metadata_text_field is None else table.metadata_text_field
        if table.text is None:
            text_field = ""
        return PineconeSource(
            self.index,
            namespace,
            self._transport,
            text_field if with_metadata else None,
            count,
            with_sparse=table.sparse is not None,
            strips=self._settings.nul == "strip",
        )

    @cached_property
    def _transport(self) -> Transport:
        return open_transport(self._settings, self.index)

    def close(self) -> None:
        """Close the transport, if one was opened."""
        transport = self.__dict__.pop("_transport", None)
        if transport is not None:
            transport.close()


def open_pinecone_origin(settings: Settings) -> PineconeOrigin:
    """Describe and open ``PINECONE_INDEX_NAME``. Raises as `open_index` does."""
    return PineconeOrigin(settings, open_index(settings))
