"""The HTTP face over a models system in memory, on a real server and socket; and tokens to ask it with."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import httpx
import jwt

from amprenta_vectors.config import Settings
from amprenta_vectors.errors import UnknownModel
from amprenta_vectors.service.api import Aggregation, EmbeddingStatus, ModelInfo, Result, SearchAnswer
from amprenta_vectors.service.server import run_server

SECRET = "a secret of the tests that is long enough"
ISSUER, AUDIENCE = "https://issuer.example", "search"
TOKENS: dict[str, Any] = {
    "jwt_algorithm": "HS256",
    "jwt_secret": SECRET,
    "jwt_issuer": ISSUER,
    "jwt_audience": AUDIENCE,
}
SMALL, LARGE = "small", "large"
WORDS = {"one": "red green blue", "two": "red green", "three": "red"}
"""What each document has; `SMALL` finds the words as they are, `LARGE` every one of them backwards too."""


def claims(**changed: Any) -> dict[str, Any]:
    """What a valid token says; None leaves a claim out."""
    told = {"iss": ISSUER, "aud": AUDIENCE, "exp": int(time.time()) + 600, "sub": "someone", **changed}
    return {name: value for name, value in told.items() if value is not None}


def bearer(token: str | None = None) -> dict[str, str]:
    """The header with a token, a valid one unless another is given."""
    return {"Authorization": f"Bearer {token or jwt.encode(claims(), SECRET)}"}


class InMemoryModels:
    """Two models over three documents; calls fail, or wait, where a test says so."""

    def __init__(self) -> None:
        self.embedded = {(document, SMALL) for document in WORDS}
        self.fails: Exception | None = None
        self.holds = threading.Event()
        """While it is set, calls wait."""
        self.waiting = 0
        self.cancelled = 0
        self.pings = 0
        self.closed = False

    async def models_for_search(self) -> Sequence[ModelInfo]:
        await self._begin()
        return [
            ModelInfo(name, dimension, "wordllama", name == SMALL, sum(model == name for _, model in self.embedded))
            for name, dimension in ((SMALL, 64), (LARGE, 256))
        ]

    async def document_embeddings(self, document_id: str) -> Sequence[EmbeddingStatus] | None:
        await self._begin()
        if document_id not in WORDS:
            return None
        return [self._status(document_id, model) for model in (SMALL, LARGE)]

    async def update_document_embeddings(self, document_id: str, model_name: str | None) -> EmbeddingStatus | None:
        await self._begin(model_name or SMALL)
        if document_id not in WORDS:
            return None
        self.embedded.add((document_id, model_name or SMALL))
        return self._status(document_id, model_name or SMALL)

    async def search(self, query: str, model_name: str | None, top_k: int) -> SearchAnswer:
        model = model_name or SMALL
        await self._begin(model)
        return SearchAnswer(model, self._found(query, model)[:top_k])

    async def search_multi_model(
        self, query: str, model_names: Sequence[str], aggregation: Aggregation, top_k: int
    ) -> Sequence[Result]:
        await self._begin(*model_names)
        found = [{each.chunk_id: each for each in self._found(query, model)} for model in model_names]
        join = set.union if aggregation == "union" else set.intersection
        merged = {key: value for each in found for key, value in each.items()}
        return [merged[key] for key in sorted(join(*map(set, found)))][:top_k]

    async def ping(self) -> None:
        self.pings += 1
        await self._begin()

    async def close(self) -> None:
        self.closed = True

    async def _begin(self, *models: str) -> None:
        self.waiting += 1
        try:
            while self.holds.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.waiting -= 1
        if self.fails is not None:
            raise self.fails
        for model in models:
            if model not in (SMALL, LARGE):
                raise UnknownModel(f"{model!r} is no model of table chunks")

    def _found(self, query: str, model: str) -> list[Result]:
        asked = {query} if model == SMALL else {query, query[::-1]}
        return [
            Result(f"{name}-0", name, name.title(), words, 1 / len(words.split()), {"words": len(words.split())})
            for name, words in reversed(WORDS.items())
            if asked & set(words.split())
        ]

    def _status(self, document: str, model: str) -> EmbeddingStatus:
        dimension = 64 if model == SMALL else 256
        return EmbeddingStatus(model, dimension, 1, int((document, model) in self.embedded))


@contextmanager
def served(models: InMemoryModels, **settings: Any) -> Iterator[str]:
    """Serve until the block ends, in a thread; the address."""
    stop = threading.Event()
    addresses: queue.Queue[str | BaseException] = queue.Queue()

    async def open_service(_: Settings) -> InMemoryModels:
        return models

    def serve() -> None:
        try:
            loaded = Settings.load(**settings)
            run_server(loaded, "127.0.0.1", 0, open_service, lambda: nullcontext(stop), addresses.put)
        except BaseException as error:
            addresses.put(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        address = addresses.get(timeout=60)
        if isinstance(address, BaseException):
            raise address
        yield address
    finally:
        models.holds.clear()
        stop.set()
        thread.join(60)
    assert not thread.is_alive()


@contextmanager
def asking(models: InMemoryModels, **settings: Any) -> Iterator[httpx.Client]:
    """Serve with tokens, and ask with one."""
    with served(models, **TOKENS, **settings) as address, httpx.Client(base_url=address, headers=bearer()) as client:
        client.timeout = httpx.Timeout(60)
        yield client


def is_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The problem details of an answer, which it must have."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["type"] == "about:blank"
    assert body["title"]
    assert body["detail"]
    return body


Ask = Callable[..., httpx.Response]
