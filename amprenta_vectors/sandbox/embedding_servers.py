"""Embedding services on 127.0.0.1 for tests and demonstrations: the routes of three over wordllama's vectors.

The vectors mean something: wordllama's, turned into the dimension that is asked for by one fixed matrix. From 256
dimensions on its columns are orthonormal, so that every cosine stays what it was; below, it is a random projection.
"""

from __future__ import annotations

import json
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from amprenta_vectors.embedders.wordllama import MODEL, WordLlamaEmbedder

SEED = 768


@dataclass(frozen=True)
class Answer:
    """A status and its JSON body (bytes are sent as they are); a hang-up instead where ``status`` is 0."""

    status: int
    body: Any = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


def embed_as(texts: Sequence[str], dimension: int) -> NDArray[np.float32]:
    """Return wordllama's vectors in another number of dimensions, ``(n, dimension)`` float32."""
    vectors: NDArray[np.float32] = (_wordllama().embed(texts) @ _turn(dimension)).astype(np.float32)
    return vectors


@cache
def _wordllama() -> WordLlamaEmbedder:
    return WordLlamaEmbedder()


@cache
def _turn(dimension: int) -> NDArray[np.float64]:
    """Return the ``(256, dimension)`` matrix that turns wordllama's vectors into that many dimensions."""
    drawn = np.random.default_rng(SEED).standard_normal((max(dimension, MODEL.dimension), MODEL.dimension))
    turned: NDArray[np.float64] = np.linalg.qr(drawn)[0][:dimension].T
    return turned


class EmbeddingServer:
    """The common part of the services: Gemini's, Ollama's and OpenAI's.

    ``requests`` are the bodies that came; ``faults`` are answered first, one a request.
    """

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Mapping[str, Any]] = []
        self.faults: deque[Answer] = deque()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), _handler_for(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def host(self) -> str:
        """The address of the server, ``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Answer:
        """Return the answer to a request: the next fault, or what the service says."""
        with self._lock:
            self.requests.append(body)
            if self.faults:
                return self.faults.popleft()
        return self._served(path, headers, body)

    def _served(self, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Answer:
        raise NotImplementedError


class GeminiServer(EmbeddingServer):
    """``models/*:batchEmbedContents`` of ``api_key``'s project; vectors below 3072 values are not of length 1."""

    def __init__(self, api_key: str = "sandbox-key", port: int = 0) -> None:
        super().__init__(port)
        self._api_key = api_key

    def _served(self, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Answer:
        if _header(headers, "x-goog-api-key") != self._api_key:
            return gemini_refusal(400, "INVALID_ARGUMENT", {"reason": "API_KEY_INVALID"})
        if not path.endswith("models/gemini-embedding-001:batchEmbedContents"):
            return gemini_refusal(404, "NOT_FOUND")
        asked = body["requests"]
        texts = [request["content"]["parts"][0].get("text", "") for request in asked]
        if len(texts) > 100 or not all(texts):
            return gemini_refusal(400, "INVALID_ARGUMENT")
        vectors = embed_as(texts, asked[0].get("outputDimensionality", 3072))
        return Answer(200, {"embeddings": [{"values": vector.tolist()} for vector in vectors]})


def _header(headers: Mapping[str, str], name: str) -> str | None:
    return next((value for each, value in headers.items() if each.lower() == name), None)


def gemini_refusal(code: int, status: str, *details: Mapping[str, Any]) -> Answer:
    """Return a refusal in Google's form."""
    return Answer(code, {"error": {"code": code, "status": status, "message": status.lower(), "details": details}})


class OllamaServer(EmbeddingServer):
    """``/api/embed`` of the models that were pulled, by name with their dimension; vectors have length 1."""

    def __init__(self, pulled: Mapping[str, int] | None = None, port: int = 0) -> None:
        super().__init__(port)
        self._pulled = pulled or {"nomic-embed-text": 768}

    def _served(self, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Answer:
        name = str(body.get("model", "")).removesuffix(":latest")
        if path != "/api/embed":
            return Answer(404, b"404 page not found")
        if name not in self._pulled:
            return Answer(404, {"error": f'model "{name}" not found, try pulling it first'})
        given = body["input"]
        vectors = embed_as([given] if isinstance(given, str) else given, self._pulled[name])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return Answer(200, {"model": name, "embeddings": (vectors / np.where(lengths == 0, 1, lengths)).tolist()})


class OpenAIServer(EmbeddingServer):
    """``/v1/embeddings`` for ``api_key``; ``billed`` counts the texts that were embedded, by text, ``tokens`` theirs.

    The tokens are those of wordllama's own tokenizer, which is Llama 2's.
    It takes 2048 texts a request and `MOST_CHARACTERS` a text, as the service takes so many tokens.
    """

    def __init__(self, api_key: str = "sandbox-key", port: int = 0) -> None:
        super().__init__(port)
        self._api_key = api_key
        self.billed: Counter[str] = Counter()
        self.tokens = 0

    def _served(self, path: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Answer:
        key = _header(headers, "authorization")
        if key != f"Bearer {self._api_key}":
            return openai_refusal(401, "invalid_api_key", f"Incorrect API key provided: {key}")
        usual = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "local-model": 256}.get(body["model"])
        if path != "/v1/embeddings" or usual is None:
            return openai_refusal(404, "model_not_found", f"The model {body['model']} does not exist")
        texts = body["input"]
        if not all(texts) or len(texts) > MOST_TEXTS or max(map(len, texts)) > MOST_CHARACTERS:
            return openai_refusal(400, "invalid_request_error", f"'$.input' is invalid: {texts[0][:20]}")
        vectors = embed_as(texts, body.get("dimensions", usual))
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        data = [{"object": "embedding", "index": at, "embedding": row.tolist()} for at, row in enumerate(vectors)]
        tokens = sum(_wordllama().count_tokens(texts))
        with self._lock:
            self.billed.update(texts)
            self.tokens += tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return Answer(200, {"object": "list", "data": data, "model": body["model"], "usage": usage})


MOST_TEXTS, MOST_CHARACTERS = 2048, 30_000


def openai_refusal(status: int, code: str, message: str = "") -> Answer:
    """Return a refusal in OpenAI's form."""
    return Answer(status, {"error": {"code": code, "type": code, "message": message, "param": None}})


def _handler_for(server: EmbeddingServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = server.answer(self.path.partition("?")[0], dict(self.headers.items()), body)
            if not answer.status:
                self.close_connection = True
                return
            raw = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            # A client that was killed does not wait for its answer.
            with suppress(ConnectionError):
                self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            """Log nothing: a text may stand in a path."""

    return Handler
