"""The endpoints on a real server: what they answer, and what they answer to whatever cannot be answered."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import replace

import httpx
import psycopg2
import pytest
from http_service import LARGE, SMALL, InMemoryModels, asking, is_problem
from openapi_core import OpenAPI
from sqlalchemy.exc import OperationalError, ProgrammingError

from amprenta_vectors.errors import (
    AmprentaError,
    ConfigError,
    DimensionMismatch,
    NotUpgraded,
    RateLimited,
    TimedOut,
    TransientError,
)
from amprenta_vectors.service.api import SearchAnswer

ASKED = "a text that nobody else may read"
SEARCH = "/api/v1/search"


@pytest.fixture(scope="module")
def served_models() -> Iterator[tuple[InMemoryModels, httpx.Client]]:
    models = InMemoryModels()
    with asking(models) as client:
        yield models, client


@pytest.fixture
def models(served_models: tuple[InMemoryModels, httpx.Client]) -> Iterator[InMemoryModels]:
    models = served_models[0]
    before = set(models.embedded)
    yield models
    models.fails, models.embedded = None, before


@pytest.fixture
def client(served_models: tuple[InMemoryModels, httpx.Client], models: InMemoryModels) -> httpx.Client:
    return served_models[1]


def found(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [each["document_id"] for each in answer.json()["results"]]


def test_the_models_that_can_be_searched_are_listed(client: httpx.Client) -> None:
    listed = client.get("/api/v1/models/search").json()["models"]
    small = {"name": SMALL, "dimension": 64, "provider": "wordllama", "searched": True, "embedded": 3}
    assert listed == [small, small | {"name": LARGE, "dimension": 256, "searched": False, "embedded": 0}]


def test_a_document_is_embedded_by_the_model_that_is_named_and_by_the_current_one_else(client: httpx.Client) -> None:
    address = "/api/v1/documents/one/embeddings"
    assert [each["embedded"] for each in client.get(address).json()["embeddings"]] == [1, 0]
    done = client.put(address, params={"model": LARGE})
    assert done.json() == {"model": LARGE, "dimension": 256, "chunks": 1, "embedded": 1}
    assert [each["embedded"] for each in client.get(address).json()["embeddings"]] == [1, 1]
    assert client.put(address).json()["model"] == SMALL


def test_a_document_that_is_not_there_is_404(client: httpx.Client) -> None:
    for method in ("GET", "PUT"):
        problem = is_problem(client.request(method, "/api/v1/documents/none/embeddings"), 404)
        assert problem["detail"] == "there is no such document"


def test_a_search_takes_the_current_model_and_five_results_unless_told(client: httpx.Client) -> None:
    answer = client.post(SEARCH, json={"query": "red"})
    assert found(answer) == ["three", "two", "one"]
    assert answer.json()["models"] == [SMALL]
    assert answer.json()["results"][0] == {
        "chunk_id": "three-0",
        "document_id": "three",
        "title": "Three",
        "text": "red",
        "score": 1.0,
        "metadata": {"words": 1},
    }
    assert found(client.post(SEARCH, json={"query": "der", "model": LARGE, "top_k": 2})) == ["three", "two"]


def test_without_top_k_five_results_are_asked_for(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    async def note(_: object, query: str, model: str | None, top_k: int) -> SearchAnswer:
        asked.append((query, model, top_k))
        return SearchAnswer("any", [])

    monkeypatch.setattr(InMemoryModels, "search", note)
    assert found(client.post(SEARCH, json={"query": "red"})) == []
    assert asked == [("red", None, 5)]


def test_several_models_are_joined_as_asked(client: httpx.Client) -> None:
    both = {"query": "der", "models": [SMALL, LARGE]}
    assert found(client.post(SEARCH, json=both)) == ["one", "three", "two"]
    assert found(client.post(SEARCH, json=both | {"aggregation": "union", "top_k": 1})) == ["one"]
    answer = client.post(SEARCH, json=both | {"aggregation": "intersection"})
    assert found(answer) == []
    assert answer.json()["models"] == [SMALL, LARGE]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", SEARCH, {"query": ASKED, "model": "nobody"}),
        ("POST", SEARCH, {"query": ASKED, "models": [SMALL, "nobody"]}),
        ("PUT", "/api/v1/documents/one/embeddings?model=nobody", None),
    ],
)
def test_a_model_that_nobody_registered_is_422_and_says_where_they_are_listed(
    client: httpx.Client, method: str, path: str, body: object
) -> None:
    problem = is_problem(client.request(method, path, json=body), 422)
    assert "GET /api/v1/models/search" in problem["detail"]
    assert client.get("/api/v1/models/search").status_code == 200


LIMITS = [
    ({}, "#/query"),
    ({"query": None}, "#/query"),
    ({"query": [ASKED]}, "#/query"),
    ({"query": " \n"}, "#/query"),
    ({"query": ASKED * 1000}, "#/query"),
    ({"query": ASKED, "model": ""}, "#/model"),
    ({"query": ASKED, "model": "a\x00b"}, "#/model"),
    ({"query": ASKED, "model": "m" * 301}, "#/model"),
    ({"query": ASKED, "models": []}, "#/models"),
    ({"query": ASKED, "models": ["m"] * 9}, "#/models"),
    ({"query": ASKED, "models": ["m", ""]}, "#/models/1"),
    ({"query": ASKED, "models": ["m"], "model": "m"}, "#"),
    ({"query": ASKED, "aggregation": "union"}, "#"),
    ({"query": ASKED, "models": ["m"], "aggregation": "sum"}, "#/aggregation"),
    ({"query": ASKED, "top_k": 0}, "#/top_k"),
    ({"query": ASKED, "top_k": 101}, "#/top_k"),
    ({"query": ASKED, "top_k": "5"}, "#/top_k"),
    ({"query": ASKED, "top_k": 1.5}, "#/top_k"),
    ({"query": ASKED, "top_k": True}, "#/top_k"),
    ({"query": ASKED, "filter": {}}, "#/filter"),
    ({"query": ASKED, "a/b~": 1}, "#/a~1b~0"),
    ([ASKED], "#"),
    (ASKED, "#"),
]


@pytest.mark.parametrize(("body", "pointer"), LIMITS, ids=[f"{index}{at}" for index, (_, at) in enumerate(LIMITS)])
def test_a_value_beyond_its_limits_is_422_and_pointed_at_but_not_repeated(
    client: httpx.Client, body: object, pointer: str
) -> None:
    answer = client.post(SEARCH, json=body)
    problem = is_problem(answer, 422)
    assert [each["pointer"] for each in problem["errors"]] == [pointer]
    assert ASKED not in answer.text


def test_what_is_just_within_the_limits_is_taken(client: httpx.Client) -> None:
    # The longest query whose every character takes the most bytes that JSON has for one.
    body = json.dumps({"query": "\U0001f600" * 16_000, "top_k": 100, "models": [SMALL] * 8})
    assert len(body) > 190_000
    assert found(client.post(SEARCH, content=body, headers={"Content-Type": "application/json"})) == []


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "application/json", 422),
        (b"{", "application/json", 400),
        (b'{"query": "\xff"}', "application/json", 400),
        (b'{"query": "\\ud800"}', "application/json", 422),
        (b"[" * 100_000, "application/json", 400),
        (b'{"query": "a", "top_k": ' + b"9" * 5000 + b"}", "application/json", 400),
        (b'{"query": "a", "top_k": NaN}', "application/json", 422),
        (b"null", "application/json", 422),
        (b'{"query": "a"}', "text/plain", 415),
        (b"query=a", "application/x-www-form-urlencoded", 415),
        (b'{"query": "a"}', "", 415),
    ],
)
def test_a_body_that_is_no_question_is_never_a_fault_of_the_service(
    client: httpx.Client, content: bytes, kind: str, status: int
) -> None:
    is_problem(client.post(SEARCH, content=content, headers={"Content-Type": kind}), status)


@pytest.mark.parametrize("name", ["a%00b", "%ff", "%ed%a0%80", "a" * 301, "..%2f..", "%F0%9F%98%80"])
def test_an_id_that_no_document_can_have_is_never_a_fault_of_the_service(client: httpx.Client, name: str) -> None:
    answer = client.get(f"/api/v1/documents/{name}/embeddings")
    is_problem(answer, answer.status_code)
    assert answer.status_code in (404, 422)


def test_what_is_not_there_and_what_cannot_be_done_there_are_problems_too(client: httpx.Client) -> None:
    for path in ("/", "/api/v1/nothing", "/api/v1/search/", "/redoc"):
        is_problem(client.get(path), 404)
    answer = client.get(SEARCH)
    is_problem(answer, 405)
    assert answer.headers["allow"] == "POST"
    is_problem(client.request("BREW", SEARCH), 405)


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (TransientError("the database is away"), 503, "2"),
        (TimedOut("the statement took too long"), 503, "2"),
        (RateLimited("slower", retry_after=6.2), 503, "7"),
        (OperationalError("SELECT 1", {}, psycopg2.OperationalError("server closed the connection")), 503, "2"),
        (ProgrammingError("SELECT 1", {}, psycopg2.ProgrammingError("no such table")), 500, None),
        (DimensionMismatch("64 and 256"), 500, None),
        (NotUpgraded("no table"), 500, None),
        (ConfigError("OPENAI_API_KEY is not set"), 500, None),
        (AmprentaError("something else"), 500, None),
        (ValueError("a fault of ours"), 500, None),
        (TimeoutError("of somebody's socket"), 500, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_is_answered_by_its_type_and_its_own_words_stay_here(
    client: httpx.Client, models: InMemoryModels, error: Exception, status: int, retry: str | None
) -> None:
    models.fails = error
    answer = client.post(SEARCH, json={"query": ASKED})
    is_problem(answer, status)
    assert answer.headers.get("retry-after") == retry
    assert str(error) not in answer.text


def test_neither_log_nor_answer_tells_what_was_asked_nor_a_stack(
    client: httpx.Client, models: InMemoryModels, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    for error in (
        None,
        ValueError(ASKED),
        AmprentaError("the reason"),
        ProgrammingError(ASKED, {"q": ASKED}, ValueError(ASKED)),
    ):
        models.fails = error
        said.append(client.post(SEARCH, json={"query": ASKED}).text)
        said.append(client.put(f"/api/v1/documents/{ASKED}/embeddings?model={ASKED}").text)
        said.append(client.get(f"/{ASKED}?{ASKED}").text)
    logged = [record for record in caplog.records if not record.name.startswith(("httpcore", "httpx"))]
    text = "\n".join(f"{record.getMessage()} {record.exc_info}" for record in logged)
    assert "POST /api/v1/search: ValueError in _begin (http_service.py:" in text
    assert "POST /api/v1/search: AmprentaError: the reason" in text
    assert "PUT /api/v1/documents/{document_id}/embeddings 500 in " in text
    assert not [each for each in (text, *said) if ASKED in each or ASKED.replace(" ", "%20") in each]
    assert not [each for each in (text, *said) if "Traceback" in each or "Authorization" in each or "eyJ" in each]


def test_an_answer_is_json_whatever_was_found(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = InMemoryModels._found

    def strange(models: InMemoryModels, query: str, model: str) -> list[object]:
        first = ordinary(models, query, model)[0]
        return [replace(first, score=math.nan, title=None, text=None, metadata={"\x00": [math.inf, "\u202e", None]})]

    monkeypatch.setattr(InMemoryModels, "_found", strange)
    (result,) = client.post(SEARCH, json={"query": "red"}).json()["results"]
    assert (result["score"], result["text"], result["metadata"]) == (None, None, {"\x00": [None, "\u202e", None]})


def test_headers_say_what_a_browser_needs_and_not_what_the_server_is(client: httpx.Client) -> None:
    for answer in (client.get("/health"), client.get("/nothing"), client.post(SEARCH, json={"query": "red"})):
        assert "server" not in answer.headers
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_of_the_endpoints_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "POST /api/v1/search" in page.text
    assert "script" not in page.text
    assert "//" not in page.text.replace("application/", "")
    described = client.get("/openapi.json").json()
    assert {"HTTPValidationError", "ValidationError"} & set(described["components"]["schemas"]) == set()
    assert described["components"]["securitySchemes"] == {
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    }
    # It checks the document, every reference too.
    OpenAPI.from_dict(described)
