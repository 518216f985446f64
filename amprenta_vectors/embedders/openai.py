"""OpenAI's embeddings, and those of any service with its interface, through the official ``openai`` client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from amprenta_vectors.extras import require_extra

DIMENSIONS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}
"""Values in a vector of each model, unless fewer are asked for (https://platform.openai.com/docs/guides/embeddings)."""
SHORTENED = ("text-embedding-3-small", "text-embedding-3-large")
"""The models that make shorter vectors when asked for."""
LIMITS = Limits(texts=2048, bytes_=300_000)
"""A request takes 2048 texts and 300,000 tokens, and a token has a byte at least
(https://platform.openai.com/docs/api-reference/embeddings/create)."""
TIMEOUT_SECONDS = 60.0


class OpenAIEmbedder:
    """``model_name`` at ``dimension`` values. Safe to share between threads.

    ``base_url`` stands in for OpenAI's own address. A request is made once: retries are left to the caller.
    """

    limits = LIMITS

    def __init__(self, api_key: str, model_name: str, dimension: int | None, base_url: str | None = None) -> None:
        self._openai = require_extra("openai", "openai")
        self._client: Any = self._openai.OpenAI(
            api_key=api_key, base_url=base_url, max_retries=0, timeout=TIMEOUT_SECONDS
        )
        usual = DIMENSIONS.get(model_name)
        self._asked = dimension if model_name in SHORTENED and dimension != usual else None
        # Of another service's model nothing is known: it is asked, by one word.
        self.model = Model(
            model_name, self._asked or usual or len(self._ask(model_name, ["dimension"])[0][0]), "openai"
        )

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return ``(n, dimension)`` float32, by requests within `LIMITS`.

        Raises `TransientError`, `RateLimited` with the wait that the service asks for, `CredentialsRefused`, also for
        an account without credit, `SourceNotFound` for a model that is not there, `KeysRefused` for texts that the
        service does not take (an empty one, or one that is too long), `SourceError` for an answer of another length.
        """
        return embed_all(self, texts)

    def request(self, texts: Sequence[str]) -> Embedded:
        """Make one request, for texts within `LIMITS`; raises as `embed` does."""
        found, tokens = self._ask(self.model.name, texts)
        return Embedded(to_matrix(found, len(texts), self.model.dimension, "openai"), tokens)

    def _ask(self, model_name: str, texts: Sequence[str]) -> tuple[list[Any], int | None]:
        shorter = {} if self._asked is None else {"dimensions": self._asked}
        with self._told(model_name):
            # As numbers: the client would have them as base64 from services that may not know it.
            answer = self._client.embeddings.create(
                model=model_name, input=list(texts), encoding_format="float", **shorter
            )
        found = sorted(answer.data or (), key=lambda item: item.index)
        if [item.index for item in found] != list(range(len(texts))):
            raise SourceError(f"openai gave {len(found)} vectors for {len(texts)} texts")
        return [list(item.embedding) for item in found], answer.usage.total_tokens if answer.usage else None

    @contextmanager
    def _told(self, model_name: str) -> Iterator[None]:
        try:
            yield
        except self._openai.APIStatusError as error:
            raise _to_error(error, model_name) from error
        except self._openai.APIConnectionError as error:
            raise TransientError(f"openai did not answer: {type(error).__name__}") from error
        except (self._openai.APIError, ValueError) as error:
            raise TransientError("openai answered what is not JSON") from error


def _to_error(error: Any, model_name: str) -> AmprentaError:
    """Return our error for an answer, by its status and code: the message may quote the key or a text."""
    said = f"openai answered {error.status_code}"
    if error.code == "insufficient_quota":
        return CredentialsRefused(
            f"{said}: the account has no credit left", hint="add credit, or export OPENAI_API_KEY=…"
        )
    match error.status_code:
        case 401 | 403:
            return CredentialsRefused(f"{said}: it does not accept the key", hint="export OPENAI_API_KEY=…")
        case 404:
            return SourceNotFound(f"{said}: it has no model {model_name!r}", hint="export OPENAI_EMBEDDING_MODEL=…")
        case 429:
            return RateLimited(said, retry_after=_wait(error.response.headers))
        case 400 | 413 | 422:
            return KeysRefused(f"{said}: it does not take a text, or the number of dimensions asked for")
        case 408 | 409:
            return TransientError(said)
        case _:
            return TransientError(said) if error.status_code >= 500 else SourceError(said)


def _wait(headers: Any) -> float | None:
    """Return the seconds that the service asks to wait; None if it does not say."""
    for name, a_second in (("retry-after-ms", 1000), ("retry-after", 1)):
        try:
            return float(headers[name]) / a_second
        except (KeyError, ValueError):
            continue
    return None
