"""What is sent and what is answered, with the limits of each value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from amprenta_vectors.service.api import Aggregation, EmbeddingStatus, ModelInfo, Result

MAX_QUERY_CHARACTERS = 16_000
MAX_NAME_CHARACTERS = 300
MAX_MODELS = 8
MAX_TOP_K = 100
"""The texts of that many chunks are one answer; a store itself gives more."""

# PostgreSQL has no NUL in a text.
Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARACTERS, pattern=r"^[^\x00]+$")]
Query = Annotated[str, StringConstraints(max_length=MAX_QUERY_CHARACTERS, pattern=r"\S")]


class SearchRequest(BaseModel):
    """A text to search for: by the current model, by `model`, or by each of `models` and joined."""

    model_config = ConfigDict(extra="forbid")

    query: Query = Field(description=f"not blank, at most {MAX_QUERY_CHARACTERS:,} characters")
    model: Name | None = Field(None, description="the name of a registered model; the current one if it is left out")
    models: list[Name] | None = Field(
        None, min_length=1, max_length=MAX_MODELS, description=f"in place of `model`: up to {MAX_MODELS} names"
    )
    aggregation: Aggregation | None = Field(
        None, description="with `models`: what any of them found (`union`, the default), or what all found"
    )
    top_k: int = Field(5, ge=1, le=MAX_TOP_K, strict=True, description="how many results are wanted")

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        if self.model is not None and self.models is not None:
            raise ValueError("model and models exclude each other")
        if self.aggregation is not None and self.models is None:
            raise ValueError("aggregation is for models")
        return self


class SearchResponse(BaseModel):
    """What was found, nearest first, and by which models."""

    models: Sequence[str]
    results: Sequence[Result]


class ModelsResponse(BaseModel):
    """The models that a search may name."""

    models: Sequence[ModelInfo]


class EmbeddingsResponse(BaseModel):
    """The state of a document's embeddings, one entry a model."""

    document_id: str
    embeddings: Sequence[EmbeddingStatus]


class Health(BaseModel):
    """Returned while all is well."""

    status: Literal["ok"] = "ok"
