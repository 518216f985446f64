"""Opens the embedder of a registered model, and puts the model's prefixes before what is embedded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amprenta_vectors.config import Settings
from amprenta_vectors.embedders.factory import open_embedder
from amprenta_vectors.embedders.protocol import Embedded, Embedder, EmbeddingService, Limits, Model
from amprenta_vectors.embedders.providers import PROVIDERS
from amprenta_vectors.errors import ConfigError, DimensionMismatch
from amprenta_vectors.schema.models import RegisteredModel


class ModelEmbedder:
    """The embedder of a registered model, under the name that the model is registered by."""

    model: Model

    def __init__(self, registered: RegisteredModel, embedder: Embedder) -> None:
        """Raise `DimensionMismatch` if the embedder makes vectors of another dimension than is registered."""
        if embedder.model.dimension != registered.dimension:
            raise DimensionMismatch(
                f"embedding dimension mismatch: {registered.provider} gives {embedder.model.dimension} dimensions for "
                f"{embedder.model.name}, and {registered.name} is registered with {registered.dimension}",
                hint=f"register the model as it is: amprenta-vectors models add NAME --dimension "
                f"{embedder.model.dimension}",
            )
        self.model = Model(registered.name, registered.dimension, embedder.model.provider)
        self._embedder = embedder
        self._query_prefix = registered.parameter("query_prefix") or ""
        self._text_prefix = registered.parameter("text_prefix") or ""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one row a text, in order, ``(n, dimension)`` float32. Raises what the embedder raises."""
        return self._checked([self._text_prefix + text for text in texts])

    def embed_query(self, text: str) -> NDArray[np.float32]:
        """Return the vector of a query, ``(dimension,)`` float32. Raises what the embedder raises."""
        vector: NDArray[np.float32] = self._checked([self._query_prefix + text])[0]
        return vector

    def _checked(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = np.asarray(self._embedder.embed(texts), dtype=np.float32)
        if vectors.shape != (len(texts), self.model.dimension):
            raise DimensionMismatch(
                f"embedding dimension mismatch: {self.model.name} gave vectors of shape {vectors.shape}; expected "
                f"({len(texts)}, {self.model.dimension})",
                hint="SELECT * FROM embedding_models says how the model is registered",
            )
        return vectors


class ModelService(ModelEmbedder):
    """The same of an embedder whose requests cost something."""

    def __init__(self, registered: RegisteredModel, embedder: EmbeddingService) -> None:
        super().__init__(registered, embedder)
        self._service = embedder
        self.limits: Limits = embedder.limits

    def request(self, texts: Sequence[str]) -> Embedded:
        """Make one request, for texts within `limits`. Raises as `embed` does."""
        return self._service.request([self._text_prefix + text for text in texts])


def open_registered(registered: RegisteredModel, settings: Settings) -> ModelEmbedder:
    """Open the embedder of a registered model; keys and addresses are those of the settings.

    Raises `ConfigError` for a model without a provider, and what `open_embedder` raises.
    """
    embedder = open_embedder(settings.model_copy(update=embedder_settings(registered)))
    if isinstance(embedder, EmbeddingService):
        return ModelService(registered, embedder)
    return ModelEmbedder(registered, embedder)


def embedder_settings(registered: RegisteredModel) -> dict[str, Any]:
    """Return the settings that name the embedder of a registered model. Raises `ConfigError`."""
    name = registered.parameter("model") or registered.name
    match registered.provider:
        case "wordllama":
            embedder = {256: "wordllama", 128: "wordllama-128", 64: "wordllama-64"}.get(registered.dimension)
            if embedder is None:
                raise ConfigError(
                    f"wordllama has 256, 128 or 64 dimensions; {registered.name} is registered with "
                    f"{registered.dimension}",
                    hint="models add NAME --dimension 256|128|64",
                )
            own: dict[str, Any] = {"embedder": embedder}
        case "gemini":
            own = {"embedder": "gemini"}
        case "ollama":
            own = {"embedder": "ollama", "ollama_api_model_embedding": name}
        case "openai":
            own = {"embedder": "openai", "openai_embedding_model": name}
        case "sentence_transformers":
            own = {"embedder": "sentence_transformers", "sentence_transformers_model": name}
        case other:
            found = "none" if other is None else repr(other)
            raise ConfigError(
                f"model {registered.name} has no provider that could embed a text, found {found}",
                hint=f"one of {', '.join(PROVIDERS)}: amprenta-vectors models add {registered.name} --provider …",
            )
    return {"embedding_model": None, "vector_dimension": registered.dimension, **own}
