"""Google's Gemini embeddings, through the official ``google-genai`` client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amprenta_vectors.embedders.answers import to_matrix
from amprenta_vectors.embedders.protocol import Embedded, Limits, Model
from amprenta_vectors.embedders.requests import embed_all
from amprenta_vectors.errors import (
    AmprentaError,
    CredentialsRefused,
    KeysRefused,
    RateLimited,
    SourceError,
    SourceNotFound,
    TransientError,
)
from amprenta_vectors.extras import network_errors, require_extra

MODEL_NAME = "gemini-embedding-001"
FULL_DIMENSION = 3072
"""Values in a vector unless fewer are requested, and the only length at which the model normalises by itself.

Source: https://ai.google.dev/gemini-api/docs/embeddings#quality-for-smaller-dimensions
"""
LIMITS = Limits(texts=100)
"""The most texts that the service takes in a request."""
TIMEOUT_SECONDS = 60.0


class GeminiEmbedder:
    """`MODEL_NAME` at ``dimension`` values, each vector of length 1. Safe to share between threads.

    ``base_url`` stands in for Google's own address. A request is made once: retries are left to the caller.
    """

    limits = LIMITS

    def __init__(self, api_key: str, dimension: int, base_url: str | None = None) -> None:
        genai = require_extra("google.genai", "gemini")
        self._errors = require_extra("google.genai.errors", "gemini")
        options = {"timeout": round(TIMEOUT_SECONDS * 1000)} | ({"base_url": base_url} if base_url else {})
        self._client: Any = genai.Client(api_key=api_key, vertexai=False, http_options=options)
        self.model = Model(MODEL_NAME, dimension, "gemini")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return ``(n, dimension)`` float32, by requests of at most 100 texts.

        Raises `TransientError`, `RateLimited` with the wait that the service asks for, `CredentialsRefused`,
        `SourceNotFound` if the key has no such model, `KeysRefused` for texts that the service does not take (an empty
        one, say), `SourceError` for an answer of another length.
        """
        return embed_all(self, texts)

    def request(self, texts: Sequence[str]) -> Embedded:
        """Make one request, of at most 100 texts; raises as `embed` does."""
        dimension = self.model.dimension
        with self._told():
            answer = self._client.models.embed_content(
                model=MODEL_NAME, contents=list(texts), config={"output_dimensionality": dimension}
            )
        found = [item.values for item in answer.embeddings or ()]
        vectors = to_matrix(found, len(texts), dimension, "gemini")
        usage = answer.usage_metadata
        tokens = None if usage is None else usage.prompt_token_count
        if dimension == FULL_DIMENSION:
            return Embedded(vectors, tokens)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        lengths[lengths == 0] = 1
        normal: NDArray[np.float32] = vectors / lengths
        return Embedded(normal, tokens)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except self._errors.APIError as error:
            raise _to_error(error) from error
        except network_errors() as error:
            raise TransientError(f"gemini did not answer: {type(error).__name__}") from error
        except ValueError as error:
            raise TransientError("gemini answered what is not JSON") from error


def _to_error(error: Any) -> AmprentaError:
    """Return our error for an answer of the service, by its code alone: the message may quote the key or a text."""
    details = list(_details(error.details))
    said = f"gemini answered {error.code} {error.status or ''}".strip()
    refused_key = any(detail.get("reason") in ("API_KEY_INVALID", "API_KEY_EXPIRED") for detail in details)
    if error.code in (401, 403) or refused_key:
        return CredentialsRefused(f"{said}: it does not accept the key", hint="export GOOGLE_API_KEY=…")
    if error.code == 404:
        return SourceNotFound(f"{said}: the key has no model {MODEL_NAME}", hint="a key of a project that may use it")
    if error.code == 429:
        return RateLimited(said, retry_after=_wait(details))
    if error.code == 408 or error.code >= 500:
        return TransientError(said)
    if error.code == 400:
        return KeysRefused(f"{said}: it does not take a text, or the number of dimensions asked for")
    return SourceError(said)


def _details(body: Any) -> Iterator[Mapping[str, Any]]:
    found = body.get("error", {}).get("details", ()) if isinstance(body, Mapping) else ()
    return (detail for detail in found if isinstance(detail, Mapping))


def _wait(details: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the seconds of ``google.rpc.RetryInfo``, which are written ``"12.5s"``; None if there is none."""
    for detail in details:
        try:
            return float(str(detail["retryDelay"]).removesuffix("s"))
        except (KeyError, ValueError):
            continue
    return None
