"""Models that an Ollama server runs, through the official ``ollama`` client."""

from __future__ import annotations

from collections.abc import Sequence
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
from amprenta_vectors.shown import show_url

DEFAULT_HOST = "http://127.0.0.1:11434"
LIMITS = Limits(texts=64)
"""The texts in a request: few enough that a server without a graphics card answers in time."""
TIMEOUT_SECONDS = 120.0
"""Seconds that a request may take: a model that is not in memory is loaded first."""
PROBE = "dimension"


class OllamaEmbedder:
    """``model_name`` on ``host``, whose vectors are taken as they come. Safe to share between threads.

    Opening it embeds one word, to learn the dimension, and raises what `embed` does. A text longer than the model reads
    is cut by the server, as for each of its clients.
    """

    limits = LIMITS

    def __init__(self, host: str | None, model_name: str) -> None:
        ollama = require_extra("ollama", "ollama")
        self._client: Any = ollama.Client(host=host or DEFAULT_HOST, timeout=TIMEOUT_SECONDS)
        self._host = show_url(host or DEFAULT_HOST)
        self._refusal: type[Exception] = ollama.ResponseError
        self._name = model_name
        self.model = Model(model_name.removesuffix(":latest"), len(self._ask([PROBE])[0][0]), "ollama")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return ``(n, dimension)`` float32, by requests of at most 64 texts.

        Raises `TransientError` naming the host if it does not answer, `SourceNotFound` for a model that was not pulled,
        `CredentialsRefused`, `KeysRefused` for texts that the server does not take, `SourceError` for an answer of
        another length.
        """
        return embed_all(self, texts)

    def request(self, texts: Sequence[str]) -> Embedded:
        """Make one request, of at most 64 texts; raises as `embed` does."""
        found, tokens = self._ask(texts)
        return Embedded(to_matrix(found, len(texts), self.model.dimension, "ollama"), tokens)

    def _ask(self, texts: Sequence[str]) -> tuple[list[list[float]], int | None]:
        try:
            answer = self._client.embed(model=self._name, input=list(texts))
        except self._refusal as error:
            raise self._to_error(error) from error
        except network_errors() as error:
            raise TransientError(
                f"ollama at {self._host} did not answer: {type(error).__name__}",
                hint="start it (ollama serve), or export OLLAMA_HOST=http://HOST:11434",
            ) from error
        except ValueError as error:
            raise TransientError(f"ollama at {self._host} answered what is not JSON") from error
        found = [list(vector) for vector in answer.embeddings]
        if not found:
            raise SourceError(f"ollama at {self._host} gave no vector for {len(texts)} texts")
        return found, answer.prompt_eval_count

    def _to_error(self, error: Any) -> AmprentaError:
        """Return our error for an answer of the server, by its status alone: the message may quote a text."""
        said = f"ollama at {self._host} answered {error.status_code}"
        match error.status_code:
            case 404:
                return SourceNotFound(f"{said}: it has no model {self._name!r}", hint=f"ollama pull {self._name}")
            case 401 | 403:
                return CredentialsRefused(f"{said}: it does not accept the key", hint="export OLLAMA_API_KEY=…")
            case 429:
                return RateLimited(said)
            case 400:
                return KeysRefused(f"{said}: it does not take a text, or {self._name!r} is no embedding model")
            case _:
                return TransientError(said) if error.status_code >= 500 else SourceError(said)
