"""Embedders of services, through their official clients over a socket: what they send, take and refuse."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from amprenta_vectors.config import Settings
from amprenta_vectors.embedders.factory import open_embedder
from amprenta_vectors.embedders.protocol import Embedder, Model
from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder
from amprenta_vectors.errors import (
    AmprentaError,
    ConfigError,
    CredentialsRefused,
    KeysRefused,
    MissingExtra,
    RateLimited,
    SourceError,
    SourceNotFound,
    TransientError,
)
from amprenta_vectors.sandbox.embedding_servers import (
    Answer,
    EmbeddingServer,
    GeminiServer,
    OllamaServer,
    OpenAIServer,
    embed_as,
    gemini_refusal,
    openai_refusal,
)

KEY = "a-secret-key"
TEXTS = ["a gaming laptop with a fast graphics card", "a notebook for games", "olive oil from Spain"]


@pytest.fixture
def gemini() -> Iterator[GeminiServer]:
    with GeminiServer(KEY) as server:
        yield server


@pytest.fixture
def ollama() -> Iterator[OllamaServer]:
    with OllamaServer() as server:
        yield server


@pytest.fixture
def openai() -> Iterator[OpenAIServer]:
    with OpenAIServer(KEY) as server:
        yield server


def of_openai(server: OpenAIServer, **settings: Any) -> Embedder:
    settings = {"openai_api_key": KEY, **settings}
    return open_embedder(Settings.load(embedder="openai", openai_base_url=f"{server.host}/v1", **settings))


def of_gemini(server: GeminiServer, **settings: Any) -> Embedder:
    settings = {"google_api_key": KEY, **settings}
    return open_embedder(Settings.load(embedder="gemini", google_gemini_base_url=server.host, **settings))


def of_ollama(server: OllamaServer, **settings: Any) -> Embedder:
    return open_embedder(Settings.load(embedder="ollama", ollama_host=server.host, **settings))


def cosines(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    normal = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normal @ normal.T


# Gemini.


def test_gemini_is_asked_for_768_values_which_come_normalised(gemini: GeminiServer) -> None:
    embedder = of_gemini(gemini)
    vectors = embedder.embed(TEXTS)
    assert (vectors.shape, vectors.dtype) == ((3, 768), np.float32)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    assert [request["outputDimensionality"] for request in gemini.requests[0]["requests"]] == [768] * 3
    assert (embedder.model.name, embedder.model.dimension) == ("gemini-embedding-001", 768)
    given = embed_as(TEXTS, 768)
    assert np.linalg.norm(given, axis=1) != pytest.approx(1, abs=0.1)
    assert vectors == pytest.approx(given / np.linalg.norm(given, axis=1, keepdims=True), abs=1e-6)


def test_gemini_gives_what_vector_dimension_says_and_whole_vectors_as_they_are(gemini: GeminiServer) -> None:
    assert of_gemini(gemini, vector_dimension=1536).embed(TEXTS).shape == (3, 1536)
    whole = of_gemini(gemini, vector_dimension=3072).embed(TEXTS)
    assert (whole == embed_as(TEXTS, 3072)).all()


def test_gemini_is_sent_a_hundred_texts_at_a_time_and_answers_in_order(gemini: GeminiServer) -> None:
    texts = [f"text number {number}" for number in range(230)]
    embedder = of_gemini(gemini)
    vectors = embedder.embed(texts)
    assert [len(request["requests"]) for request in gemini.requests] == [100, 100, 30]
    assert (vectors[[0, 150, 229]] == embedder.embed([texts[0], texts[150], texts[229]])).all()


def test_no_texts_ask_for_nothing(gemini: GeminiServer, ollama: OllamaServer) -> None:
    assert of_gemini(gemini).embed([]).shape == (0, 768)
    assert gemini.requests == []
    embedder = of_ollama(ollama)
    asked = len(ollama.requests)
    assert embedder.embed([]).shape == (0, 768)
    assert len(ollama.requests) == asked


@pytest.mark.parametrize("name", ["google_api_key", "gemini_api_key"])
def test_gemini_takes_its_key_from_either_variable(
    gemini: GeminiServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name.upper(), KEY)
    settings = Settings.load(embedder="gemini", google_gemini_base_url=gemini.host)
    assert open_embedder(settings).embed(TEXTS[:1]).shape == (1, 768)
    assert KEY not in repr(settings)


def test_gemini_without_a_key_says_what_to_export() -> None:
    with pytest.raises(ConfigError, match="GOOGLE_API_KEY is not set"):
        open_embedder(Settings.load(embedder="gemini"))


@pytest.mark.parametrize("text", ["", "a secret text"])
def test_texts_that_gemini_refuses_are_for_the_caller_to_halve_and_are_not_repeated(
    gemini: GeminiServer, text: str
) -> None:
    if text:
        gemini.faults.append(gemini_refusal(400, "INVALID_ARGUMENT"))
    with pytest.raises(KeysRefused) as caught:
        of_gemini(gemini).embed(["fine", text])
    assert "secret" not in str(caught.value)


def test_a_key_that_gemini_refuses_stops_everything_and_is_not_shown(gemini: GeminiServer) -> None:
    with pytest.raises(CredentialsRefused, match="GOOGLE_API_KEY") as caught:
        of_gemini(gemini, google_api_key="wrong-key").embed(TEXTS)
    assert "wrong-key" not in str(caught.value)


def test_gemini_says_how_long_to_wait(gemini: GeminiServer) -> None:
    gemini.faults.append(gemini_refusal(429, "RESOURCE_EXHAUSTED", {"reason": "x"}, {"retryDelay": "12.5s"}))
    with pytest.raises(RateLimited) as caught:
        of_gemini(gemini).embed(TEXTS)
    assert caught.value.retry_after == 12.5


# Either.


def opened(kind: str, gemini: GeminiServer, ollama: OllamaServer) -> tuple[EmbeddingServer, Embedder]:
    return (gemini, of_gemini(gemini)) if kind == "gemini" else (ollama, of_ollama(ollama))


@pytest.mark.parametrize("kind", ["gemini", "ollama"])
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Answer(429), RateLimited),
        (Answer(500), TransientError),
        (Answer(503, b"<html>busy</html>"), TransientError),
        (Answer(200, b"{cut off"), TransientError),
        (Answer(0), TransientError),
        (Answer(401), CredentialsRefused),
        (Answer(403), CredentialsRefused),
        (Answer(404), SourceNotFound),
        (Answer(400), KeysRefused),
        (Answer(409), SourceError),
    ],
)
def test_an_answers_kind_decides_and_each_request_is_made_once(
    kind: str, fault: Answer, error: type[AmprentaError], gemini: GeminiServer, ollama: OllamaServer
) -> None:
    server, embedder = opened(kind, gemini, ollama)
    asked = len(server.requests)
    server.faults.append(fault)
    with pytest.raises(error) as caught:
        embedder.embed(TEXTS)
    assert type(caught.value) is error
    assert len(server.requests) == asked + 1
    assert embedder.embed(TEXTS).shape == (3, 768)


def answer_of(kind: str, vectors: list[Any]) -> Answer:
    if kind == "gemini":
        return Answer(200, {"embeddings": [{"values": vector} for vector in vectors]})
    return Answer(200, {"model": "nomic-embed-text", "embeddings": vectors})


@pytest.mark.parametrize("kind", ["gemini", "ollama"])
@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[0.5] * 768] * 2, "2 vectors for 3 texts"),
        ([[0.5] * 768] * 4, "4 vectors for 3 texts"),
        ([[0.5] * 768, [0.5] * 768, [0.5] * 767], r"vectors of \[767, 768\] dimensions; expected 768"),
        ([[0.5] * 3072] * 3, r"vectors of \[3072\] dimensions; expected 768"),
        ([[1e39] * 768] * 3, "no finite number"),
    ],
)
def test_an_answer_of_another_count_or_dimension_is_refused(
    kind: str, vectors: list[Any], message: str, gemini: GeminiServer, ollama: OllamaServer
) -> None:
    server, embedder = opened(kind, gemini, ollama)
    server.faults.append(answer_of(kind, vectors))
    with pytest.raises(SourceError, match=message):
        embedder.embed(TEXTS)


@pytest.mark.parametrize("kind", ["gemini", "ollama"])
def test_a_service_that_hangs_is_left_in_time(
    kind: str, monkeypatch: pytest.MonkeyPatch, gemini: GeminiServer, ollama: OllamaServer
) -> None:
    monkeypatch.setattr(f"amprenta_vectors.embedders.{kind}.TIMEOUT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings = Settings.load(embedder=kind, google_api_key=KEY, google_gemini_base_url=host, ollama_host=host)
        with pytest.raises(TransientError, match="did not answer"):
            open_embedder(settings).embed(TEXTS)


# Ollama.


def test_ollama_embeds_by_the_model_that_the_variable_names(
    ollama: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = of_ollama(ollama)
    assert (embedder.model.name, embedder.model.dimension) == ("nomic-embed-text", 768)
    vectors = embedder.embed(TEXTS * 50)
    assert (vectors.shape, vectors.dtype) == ((150, 768), np.float32)
    assert (vectors[:3] == vectors[-3:]).all()
    monkeypatch.setenv("OLLAMA_API_MODEL_EMBEDDING", "all-minilm:latest")
    with OllamaServer({"all-minilm": 384}) as other:
        assert of_ollama(other).model.name == "all-minilm"
        assert of_ollama(other).embed(TEXTS).shape == (3, 384)


def test_a_model_that_was_not_pulled_is_named_with_the_command_that_pulls_it(ollama: OllamaServer) -> None:
    with pytest.raises(SourceNotFound, match="it has no model 'mxbai-embed-large'") as caught:
        of_ollama(ollama, ollama_api_model_embedding="mxbai-embed-large")
    assert caught.value.hint == "ollama pull mxbai-embed-large"


def test_an_ollama_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        host = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with pytest.raises(TransientError, match=f"ollama at {host} did not answer") as caught:
        open_embedder(Settings.load(embedder="ollama", ollama_host=host))
    assert "OLLAMA_HOST" in caught.value.hint


@pytest.mark.parametrize(
    ("model", "name", "same"),
    [
        ("gemini-embedding-001", "models/gemini-embedding-001", True),
        ("gemini-embedding-001", "gemini-embedding-001", True),
        ("nomic-embed-text", "nomic-embed-text:latest", True),
        ("nomic-embed-text", "nomic-embed-text:v1.5", False),
        ("gemini-embedding-001", "text-embedding-004", False),
    ],
)
def test_a_model_answers_to_the_names_that_its_provider_has_for_it(model: str, name: str, same: bool) -> None:
    assert Model(model, 768, "any").is_called(name) is same


@pytest.mark.parametrize("kind", ["gemini", "ollama", "openai"])
def test_the_tokens_that_a_service_counts_come_with_its_vectors(
    kind: str, gemini: GeminiServer, ollama: OllamaServer, openai: OpenAIServer
) -> None:
    if kind == "openai":
        embedder = of_openai(openai)
        assert embedder.request(TEXTS).tokens == openai.tokens > 0
        return
    server, embedder = opened(kind, gemini, ollama)
    usage = {"gemini": {"usageMetadata": {"promptTokenCount": 17}}, "ollama": {"prompt_eval_count": 17}}[kind]
    server.faults.append(Answer(200, answer_of(kind, [[0.5] * 768] * 3).body | usage))
    assert embedder.request(TEXTS).tokens == 17
    assert embedder.request(TEXTS).tokens is None


# The settings, and the servers of the sandbox.


def test_a_model_on_this_machine_needs_an_extra_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtra) as caught:
        open_embedder(Settings.load(embedder="sentence_transformers"))
    assert caught.value.hint == "pip install 'amprenta_vectors[sentence_transformers]'"


def test_no_embedder_is_an_error_that_lists_those_there_are() -> None:
    with pytest.raises(
        ConfigError,
        match=r"(?s)AMPRENTA_EMBEDDER is not set.*wordllama, .*gemini, ollama, openai, sentence_transformers",
    ):
        open_embedder(Settings.load())
    with pytest.raises(ConfigError, match="AMPRENTA_EMBEDDER"):
        Settings.load(embedder="voyage")
    assert isinstance(open_embedder(Settings.load(embedder="wordllama")), WordLlamaEmbedder)


def test_the_sandboxs_vectors_mean_what_wordllamas_do() -> None:
    expected = cosines(WordLlamaEmbedder().embed(TEXTS))
    for dimension in (768, 3072):
        assert cosines(embed_as(TEXTS, dimension)) == pytest.approx(expected, abs=1e-5)
    assert expected[0, 1] > expected[0, 2]


# OpenAI, and services with its interface.


def test_openai_gives_its_models_dimension_and_a_shorter_one_when_asked(openai: OpenAIServer) -> None:
    embedder = of_openai(openai)
    vectors = embedder.embed(TEXTS)
    assert (vectors.shape, vectors.dtype) == ((3, 1536), np.float32)
    assert (embedder.model.name, embedder.model.provider) == ("text-embedding-3-small", "openai")
    assert "dimensions" not in openai.requests[0]
    assert cosines(vectors) == pytest.approx(cosines(embed_as(TEXTS, 1536)), abs=1e-6)
    assert of_openai(openai, vector_dimension=512).embed(TEXTS).shape == (3, 512)
    large = of_openai(openai, openai_embedding_model="text-embedding-3-large")
    assert large.embed(TEXTS).shape == (3, 3072)


def test_a_model_of_another_service_is_asked_for_its_dimension(openai: OpenAIServer) -> None:
    assert of_openai(openai, openai_embedding_model="local-model").embed(TEXTS).shape == (3, 256)


def test_openai_is_sent_what_a_request_takes_and_answers_in_order(openai: OpenAIServer) -> None:
    texts = [f"text {number} " + "x" * 20_000 for number in range(40)]
    embedder = of_openai(openai)
    vectors = embedder.embed(texts)
    assert [len(request["input"]) for request in openai.requests] == [14, 14, 12]
    assert (vectors[[0, 39]] == embedder.embed([texts[0], texts[39]])).all()
    many = of_openai(openai, vector_dimension=8)
    assert many.embed(["one text"] * 2100).shape == (2100, 8)
    assert [len(request["input"]) for request in openai.requests[-2:]] == [2048, 52]


def test_openai_without_a_key_says_what_to_export_and_a_wrong_one_is_not_shown(openai: OpenAIServer) -> None:
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        open_embedder(Settings.load(embedder="openai"))
    with pytest.raises(CredentialsRefused, match="OPENAI_API_KEY") as caught:
        of_openai(openai, openai_api_key="wrong-key").embed(TEXTS)
    assert "wrong-key" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (openai_refusal(429, "insufficient_quota"), CredentialsRefused),
        (openai_refusal(404, "model_not_found"), SourceNotFound),
        (openai_refusal(400, "invalid_request_error", "a secret text"), KeysRefused),
        (openai_refusal(500, "server_error"), TransientError),
        (openai_refusal(418, "teapot"), SourceError),
        (Answer(0), TransientError),
        (Answer(200, b"not json"), TransientError),
        (Answer(200, {"object": "list", "model": "m", "data": []}), SourceError),
    ],
)
def test_what_openai_answers_decides_what_happens_and_quotes_no_text(
    openai: OpenAIServer, answer: Answer, expected: type[AmprentaError]
) -> None:
    openai.faults.append(answer)
    with pytest.raises(AmprentaError) as caught:
        of_openai(openai).embed(TEXTS)
    assert type(caught.value) is expected, caught.value
    assert "secret" not in str(caught.value)
    assert len(openai.requests) == 1


def test_openai_says_how_long_to_wait(openai: OpenAIServer) -> None:
    for headers, seconds in (({"Retry-After": "7"}, 7.0), ({"retry-after-ms": "250"}, 0.25), ({}, None)):
        refusal = openai_refusal(429, "rate_limit_exceeded")
        openai.faults.append(Answer(refusal.status, refusal.body, headers))
        with pytest.raises(RateLimited) as caught:
            of_openai(openai).embed(TEXTS)
        assert caught.value.retry_after == seconds


@pytest.mark.parametrize(
    "wrong",
    [
        [{"index": 0, "embedding": [0.5] * 1536}],
        [{"index": at, "embedding": [0.5] * 1535} for at in range(3)],
        [{"index": 0, "embedding": [0.5] * 1536}] * 3,
        [{"index": at, "embedding": ["x"] * 1536} for at in range(3)],
    ],
    ids=["fewer", "shorter", "one index thrice", "no numbers"],
)
def test_an_answer_of_other_vectors_than_were_asked_for_is_named(openai: OpenAIServer, wrong: Any) -> None:
    openai.faults.append(Answer(200, {"object": "list", "model": "m", "data": wrong}))
    with pytest.raises(SourceError, match="openai gave"):
        of_openai(openai).embed(TEXTS)
