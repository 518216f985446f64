"""The protocol of an embedder, which turns texts into vectors, and the model that it embodies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Model:
    """An embedding model. Vectors of two models never share a column and scope, whatever their dimensions."""

    name: str
    dimension: int
    provider: str

    def is_called(self, name: str) -> bool:
        """Return whether ``name`` is this model, also as Google (``models/…``) and Ollama (``…:latest``) write it."""
        return name.removeprefix("models/").removesuffix(":latest") == self.name


@dataclass(frozen=True)
class Limits:
    """The limits of an embedder's requests: so many texts, and so many UTF-8 bytes in all; None is no limit."""

    texts: int
    bytes_: int | None = None


class Embedder(Protocol):
    """One embedding model, ready for use."""

    @property
    def model(self) -> Model:
        """The model that every vector comes from."""
        ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row a text, in order: ``(n, dimension)`` float32. Raises `TransientError` for what passes."""
        ...


@dataclass(frozen=True)
class Embedded:
    """The answer to a request: a vector a text, and the tokens that the service counted; None if it does not say."""

    vectors: NDArray[np.float32]
    tokens: int | None = None


@runtime_checkable
class EmbeddingService(Embedder, Protocol):
    """An embedder whose requests cost something: money, or the time of a server."""

    @property
    def limits(self) -> Limits:
        """The limits of one request."""
        ...

    def request(self, texts: Sequence[str]) -> Embedded:
        """Make one request, for texts within `limits`. Raises as `embed` does."""
        ...
