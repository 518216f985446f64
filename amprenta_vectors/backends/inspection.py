"""A summary of a source, from its description, its counts and a sample of its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from amprenta_vectors.backends.protocol import Origin, Source, TextSource
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.config import Settings, normalize_namespace
from amprenta_vectors.errors import AmprentaError, SourceNotFound
from amprenta_vectors.reasons import Reason
from amprenta_vectors.schema.kinds import SourceKind
from amprenta_vectors.schema.vector_table import VectorTable

if TYPE_CHECKING:
    from amprenta_vectors.backends.pinecone.client import Kind, PineconeIndex, VectorField
    from amprenta_vectors.backends.pinecone.source import PineconeSource

SAMPLE = 100
"""Records in a sample: one page of the list, and 11 read units in all."""


@dataclass(frozen=True)
class MetadataField:
    """A metadata field in a sample: how many records have it, with which types of value."""

    records: int
    types: Mapping[str, int]


@dataclass(frozen=True)
class Sample:
    """Some records of one namespace. ``sparse`` is how many have sparse values beside the dense ones or alone."""

    namespace: str
    records: int
    sparse: int
    fields: Mapping[str, MetadataField]


@dataclass(frozen=True)
class Inspection:
    """A Pinecone index.

    ``vector_fields`` are the fields that a source may read; ``chosen`` is the one that it reads, None until one is
    chosen.
    """

    name: str
    kind: Kind
    vector_fields: Mapping[str, VectorField]
    chosen: str | None
    namespaces: Mapping[str, int]
    model: str | None
    transport: str
    sample: Sample

    @property
    def field(self) -> VectorField | None:
        """The vector field that is chosen; None until one is."""
        return None if self.chosen is None else self.vector_fields[self.chosen]

    @property
    def count(self) -> int:
        """Records in all namespaces, as the index last counted them."""
        return sum(self.namespaces.values())


def inspect_index(settings: Settings, index: PineconeIndex, namespace: str | None) -> Inspection:
    """Inspect ``index`` and a sample of ``namespace``, by default of the largest.

    Raises `SchemaMismatch` for an index without dense vectors, `SourceNotFound` for one without that namespace.
    """
    # Inspecting another source must not need Pinecone's client.
    from amprenta_vectors.backends.pinecone.source import open_source

    namespaces = index.namespaces()
    if namespace is None:
        if not namespaces:
            raise SourceNotFound(f"index {index.name!r} is empty", hint="check PINECONE_INDEX_NAME")
        namespace = max(namespaces, key=lambda name: namespaces[name])
    readable = index if index.vector_field is not None else _with_some_field(index)
    with closing(open_source(settings, readable, namespace, text_field="", with_sparse=True)) as source:
        sample = _sample(source, normalize_namespace(namespace), _some_keys(readable, source, namespace))
        transport = source.transport
    return Inspection(
        name=index.name,
        kind=index.kind,
        vector_fields=index.vector_fields,
        chosen=index.vector_field,
        namespaces=namespaces,
        model=index.model,
        transport=transport,
        sample=sample,
    )


@dataclass(frozen=True)
class OriginInspection:
    """A source other than a Pinecone index.

    ``records`` of ``namespace`` were sampled, of which ``with_text`` had a text. ``refused`` maps each namespace that
    cannot be read to the reason.
    """

    kind: SourceKind
    name: str
    dimension: int | None
    distance: str | None
    model: str | None
    namespaces: Mapping[str, int]
    refused: Mapping[str, AmprentaError]
    namespace: str
    records: int
    with_text: int
    fields: Mapping[str, MetadataField]


def inspect_origin(origin: Origin, table: VectorTable, namespace: str | None) -> OriginInspection:
    """Inspect every namespace, and a sample of ``namespace``, by default of the largest that can be read.

    Raises `SourceNotFound` if there is no namespace, and the namespace's own error if it, or every one, cannot be read.
    """
    namespaces = origin.namespaces()
    readable: dict[str, Source] = {}
    refused: dict[str, AmprentaError] = {}
    for name in namespaces if namespace is None else [namespace]:
        try:
            readable[name] = origin.open(table, name, with_metadata=True)
        except AmprentaError as error:
            refused[name] = error
    if namespace in refused:
        raise refused[namespace]
    if not readable:
        raise next(iter(refused.values()), SourceNotFound(f"{origin.name} is empty"))
    chosen = max(readable, key=lambda name: namespaces.get(name, 0))
    source = readable[chosen]
    page, _ = next(source.iter_keys(), ((), None))
    texts, fields = _texts_and_fields(source, page[:SAMPLE])
    return OriginInspection(
        kind=origin.kind,
        name=origin.name,
        dimension=origin.dimension or source.description.dimension,
        distance=origin.distance,
        model=origin.model,
        namespaces=namespaces,
        refused=refused,
        namespace=chosen,
        records=len(page[:SAMPLE]),
        with_text=sum(bool(text) for text in texts),
        fields=fields,
    )


def _texts_and_fields(source: Source, keys: Sequence[str]) -> tuple[Sequence[str | None], dict[str, MetadataField]]:
    if isinstance(source, TextSource):
        # Embedding them would cost money, and show nothing more.
        return list(source.texts(keys).values()), {}
    batch = source.fetch(keys)
    return batch.texts or (), _fields(batch)


def _with_some_field(index: PineconeIndex) -> PineconeIndex:
    """Return the index with any one of its vector fields chosen; the choice does not affect the metadata."""
    for name, field in index.vector_fields.items():
        return replace(index, vector_field=name, dimension=field.dimension, metric=field.metric)
    return index


def _some_keys(index: PineconeIndex, source: PineconeSource, namespace: str) -> Sequence[str]:
    from amprenta_vectors.backends.pinecone.client import sdk_errors

    if source.description.lists:
        return source.some_keys()
    towards = np.random.default_rng(0).standard_normal(source.description.dimension)
    with sdk_errors(f"querying index {index.name!r}"):
        found = index.rest.query(vector=towards.tolist(), top_k=SAMPLE, namespace=namespace)
    return [match.id for match in found.matches]


def _sample(source: PineconeSource, namespace: str, keys: Sequence[str]) -> Sample:
    batch = source.fetch(keys)
    dense_too = sum(values is not None for values in batch.sparse or ())
    return Sample(
        namespace=namespace,
        records=len(set(batch.source_keys) | {error.key for error in batch.quarantined}),
        sparse=dense_too + sum(error.reason == Reason.SPARSE_ONLY for error in batch.quarantined),
        fields=_fields(batch),
    )


def _fields(batch: VectorBatch) -> dict[str, MetadataField]:
    types: dict[str, Counter[str]] = {}
    for fields in batch.metadata or ():
        for name, value in (fields or {}).items():
            types.setdefault(name, Counter())[_type(value)] += 1
    return {name: MetadataField(found.total(), found) for name, found in sorted(types.items())}


def _type(value: Any) -> str:
    match value:
        case bool():
            return "boolean"
        case str():
            return "string"
        case int() | float():
            return "number"
        case list():
            return "list of strings"
        case _:
            return "other"
