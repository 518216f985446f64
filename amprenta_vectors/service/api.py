"""What the HTTP face asks of the models system. Nothing here is about HTTP, and nothing has to be installed for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Aggregation = Literal["union", "intersection"]
"""How the results of several models become one list: what any of them found, or what all of them found."""


@dataclass(frozen=True)
class ModelInfo:
    """A registered model, and how many chunks have an embedding by it; `searched`: it is the current model."""

    name: str
    dimension: int
    provider: str | None
    searched: bool
    embedded: int


@dataclass(frozen=True)
class EmbeddingStatus:
    """How many of a document's chunks have an embedding by one model."""

    model: str
    dimension: int
    chunks: int
    embedded: int


@dataclass(frozen=True)
class Result:
    """A chunk that was found; a higher score is nearer."""

    chunk_id: str
    document_id: str
    title: str | None
    text: str | None
    score: float
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchAnswer:
    """What one model found, nearest first."""

    model: str
    results: Sequence[Result]


class ModelsService(Protocol):
    """The models system, for one event loop.

    Any call may raise an `AmprentaError`: `TransientError` if it may be made again, `UnknownModel` for a model that is
    not registered. A call may be cancelled at every wait, and leaves nothing half done.
    """

    async def models_for_search(self) -> Sequence[ModelInfo]:
        """Return every registered model."""
        ...

    async def document_embeddings(self, document_id: str) -> Sequence[EmbeddingStatus] | None:
        """Return the state of a document's embeddings, one a model; None if there is no such document."""
        ...

    async def update_document_embeddings(self, document_id: str, model_name: str | None) -> EmbeddingStatus | None:
        """Embed a document's chunks by a model, or by the one that is searched; None if there is no such document."""
        ...

    async def search(self, query: str, model_name: str | None, top_k: int) -> SearchAnswer:
        """Return the chunks nearest to a text by a model, or by the one that is searched."""
        ...

    async def search_multi_model(
        self, query: str, model_names: Sequence[str], aggregation: Aggregation, top_k: int
    ) -> Sequence[Result]:
        """Return the chunks nearest to a text by several models, joined as ``aggregation`` says."""
        ...

    async def ping(self) -> None:
        """Raise an error unless the database answers."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...
