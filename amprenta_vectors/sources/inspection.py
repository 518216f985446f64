"""What an index holds, as far as its description, its counts and a sample of its records tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from amprenta_vectors.batch import Reason
from amprenta_vectors.config import Settings, normalize_namespace
from amprenta_vectors.errors import SourceNotFound
from amprenta_vectors.sources.pinecone import PineconeSource, open_source
from amprenta_vectors.sources.pinecone_client import Kind, PineconeIndex, VectorField, sdk_errors

SAMPLE = 100
"""Records that are looked at: a page of the list, and 11 read units in all."""


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
    """An index. ``vector_fields`` are those that a source may read; ``chosen`` is the one that it reads, if any yet."""

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
        """The field that is chosen."""
        return None if self.chosen is None else self.vector_fields[self.chosen]

    @property
    def count(self) -> int:
        """Records in all namespaces, as the index last counted them."""
        return sum(self.namespaces.values())


def inspect_index(settings: Settings, index: PineconeIndex, namespace: str | None) -> Inspection:
    """Look at ``index``, and at a sample of ``namespace``; None is the largest.

    Raises `SchemaMismatch` for an index without dense vectors, `SourceNotFound` for one without that namespace.
    """
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


def _with_some_field(index: PineconeIndex) -> PineconeIndex:
    """The index with any of its vector fields chosen, which is all the same to the fields beside them."""
    for name, field in index.vector_fields.items():
        return replace(index, vector_field=name, dimension=field.dimension, metric=field.metric)
    return index


def _some_keys(index: PineconeIndex, source: PineconeSource, namespace: str) -> Sequence[str]:
    if source.description.lists:
        return source.some_keys()
    towards = np.random.default_rng(0).standard_normal(source.description.dimension)
    with sdk_errors(f"querying index {index.name!r}"):
        found = index.rest.query(vector=towards.tolist(), top_k=SAMPLE, namespace=namespace)
    return [match.id for match in found.matches]


def _sample(source: PineconeSource, namespace: str, keys: Sequence[str]) -> Sample:
    batch = source.fetch(keys)
    types: dict[str, Counter[str]] = {}
    for fields in batch.metadata or ():
        for name, value in (fields or {}).items():
            types.setdefault(name, Counter())[_type(value)] += 1
    dense_too = sum(values is not None for values in batch.sparse or ())
    return Sample(
        namespace=namespace,
        records=len(set(batch.source_keys) | {error.key for error in batch.rejected}),
        sparse=dense_too + sum(error.reason == Reason.SPARSE_ONLY for error in batch.rejected),
        fields={name: MetadataField(found.total(), found) for name, found in sorted(types.items())},
    )


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
