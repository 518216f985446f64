"""What the services of the models system answer with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModelInfo:
    """A registered model; ``searched`` is what queries use by default, ``embedded`` how many chunks have its vector."""

    name: str
    dimension: int
    provider: str | None
    searched: bool
    written: bool
    embedded: int


@dataclass(frozen=True)
class EmbeddingStatus:
    """How many of a document's ``chunks`` a model has ``embedded``."""

    model: str
    dimension: int
    chunks: int
    embedded: int


@dataclass(frozen=True)
class SearchResult:
    """A chunk that was found. A search of several models scores by rank, and ``models`` are those that found it."""

    chunk_id: str
    document_id: str
    title: str
    text: str
    score: float
    models: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
