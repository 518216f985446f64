"""Pinecone's own client and the emulator speak as Pinecone's published OpenAPI description of the data plane says.

The description is of 2026-04 and made stricter here: no object has a field that it does not name. The control plane's
answers, of 2026-07, are checked by the client's parsing of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest
import yaml
from openapi_core import Config, OpenAPI
from openapi_core.testing import MockRequest, MockResponse
from pinecone.errors import exceptions as sdk
from pinecone.index import Index
from werkzeug.datastructures import MultiDict

from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator
from amprenta_vectors.sandbox.pinecone.faults import ROUTES

SPEC = Path(__file__).parent.parent / "data" / "pinecone" / "db_data_2026-04.oas.yaml"
KEY = "sandbox-key"
DIMENSION = 4

Exchange = tuple[httpx.Request, httpx.Response]
Call = Callable[[Index], Any]

CALLS: dict[str, Call] = {
    "upsert": lambda index: index.upsert(
        vectors=[
            {
                "id": "new",
                "values": [1.0, 2.0, 3.0, 4.0],
                "sparse_values": {"indices": [1, 5], "values": [0.5, 0.1]},
                "metadata": {"page": 1, "tags": ["a"], "new": True, "title": "x"},
            }
        ],
        namespace="n",
    ),
    "fetch": lambda index: index.fetch(ids=["a", "b", "absent"], namespace="n"),
    "fetch from the default namespace": lambda index: index.fetch(ids=["a"]),
    "fetch by metadata": lambda index: index.fetch_by_metadata(filter={"page": {"$gte": 0}}, namespace="n", limit=1),
    "query by vector": lambda index: index.query(
        vector=[1.0] * DIMENSION, top_k=2, namespace="n", include_values=True, include_metadata=True
    ),
    "query by id": lambda index: index.query(id="a", top_k=2, namespace="n", filter={"page": {"$in": [0, 1]}}),
    "query of nothing": lambda index: index.query(id="a", top_k=2, namespace="absent"),
    "list": lambda index: index.list_paginated(namespace="n", prefix="", limit=1),
    "list on": lambda index: list(index.list(namespace="n", limit=1)),
    "update": lambda index: index.update(id="a", values=[1.0] * DIMENSION, set_metadata={"x": 1}, namespace="n"),
    "update by filter": lambda index: index.update(filter={"page": 0}, set_metadata={"x": 1}, namespace="n"),
    "delete ids": lambda index: index.delete(ids=["a"], namespace="n"),
    "delete by filter": lambda index: index.delete(filter={"page": 0}, namespace="n"),
    "delete all": lambda index: index.delete(delete_all=True, namespace="n"),
    "stats": lambda index: index.describe_index_stats(),
    "namespaces": lambda index: index.list_namespaces_paginated(prefix="", limit=1),
    "namespace": lambda index: index.describe_namespace(name="n"),
}

REFUSED: dict[str, Call] = {
    "wrong dimension": lambda index: index.upsert(vectors=[("a", [1.0])]),
    "bad filter": lambda index: index.query(id="a", top_k=1, filter={"a": {"$regex": "x"}}),
    "bad token": lambda index: index.list_paginated(pagination_token="garbage"),
    "unknown namespace": lambda index: index.delete(ids=["a"], namespace="absent"),
}


@pytest.fixture(scope="module")
def description() -> OpenAPI:
    """The published description, with no room for fields that it does not name."""
    spec = yaml.safe_load(SPEC.read_text())
    for schema in spec["components"]["schemas"].values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return OpenAPI.from_dict(spec, config=Config(spec_base_uri="https://unknown"))


@pytest.fixture
def emulator() -> Iterator[PineconeEmulator]:
    with PineconeEmulator(dimension=DIMENSION, metric="dotproduct") as emulator:
        emulator.load(
            "n",
            ["a", "b"],
            [[1, 2, 3, 4], [4, 3, 2, 1]],
            [{"page": 0}, {"page": 1}],
            [{"indices": [1], "values": [0.5]}, None],
        )
        emulator.load("", ["a"], [[1, 2, 3, 4]])
        yield emulator


@pytest.fixture
def exchanges(monkeypatch: pytest.MonkeyPatch) -> list[Exchange]:
    """Everything that the client sends from now on, with what it gets."""
    seen: list[Exchange] = []
    send = httpx.HTTPTransport.handle_request

    def recorded(transport: httpx.HTTPTransport, request: httpx.Request) -> httpx.Response:
        response = send(transport, request)
        response.read()
        seen.append((request, response))
        return response

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", recorded)
    monkeypatch.setattr("pinecone._internal.http_client._retry_sleep", lambda seconds: None)
    return seen


def check(description: OpenAPI, request: httpx.Request, response: httpx.Response) -> None:
    """Raise what is wrong with the request or with the response."""
    asked = MockRequest(
        "https://unknown",
        request.method,
        request.url.path,
        # Without the empty ones that the client sends where the description would have none.
        args=MultiDict(parse_qsl(request.url.query.decode())),
        headers=dict(request.headers),
        data=request.content or None,
        content_type=request.headers.get("content-type", ""),
    )
    answered = MockResponse(response.content, response.status_code, dict(response.headers))
    description.validate_request(asked)
    description.validate_response(asked, answered)


@pytest.mark.parametrize("name", CALLS)
def test_requests_and_answers_are_as_described(
    description: OpenAPI, emulator: PineconeEmulator, exchanges: list[Exchange], name: str
) -> None:
    CALLS[name](Index(host=emulator.host, api_key=KEY))
    assert exchanges
    for request, response in exchanges:
        assert response.status_code == 200
        check(description, request, response)


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_are_as_described(
    description: OpenAPI, emulator: PineconeEmulator, exchanges: list[Exchange], name: str
) -> None:
    with pytest.raises(sdk.ApiError):
        REFUSED[name](Index(host=emulator.host, api_key=KEY))
    [(request, response)] = exchanges
    assert 400 <= response.status_code < 500
    check(description, request, response)


@pytest.mark.parametrize("status", [401, 429, 503])
def test_faults_are_as_described(
    description: OpenAPI, emulator: PineconeEmulator, exchanges: list[Exchange], status: int
) -> None:
    emulator.faults.set("fetch", Fault(status=status))
    with pytest.raises(sdk.ApiError):
        Index(host=emulator.host, api_key=KEY).fetch(ids=["a"])
    for request, response in exchanges:
        assert response.status_code == status
        check(description, request, response)


def test_the_calls_above_try_every_data_plane_route(emulator: PineconeEmulator) -> None:
    index = Index(host=emulator.host, api_key=KEY)
    for call in CALLS.values():
        call(index)
    assert set(emulator.calls) == set(ROUTES) - {"describe"}


def test_an_answer_with_a_wrong_or_unnamed_field_would_be_noticed(description: OpenAPI) -> None:
    request = httpx.Request(
        "GET", "http://x/vectors/list", headers={"Api-Key": KEY, "X-Pinecone-Api-Version": "2026-07"}
    )
    check(description, request, httpx.Response(200, json={"vectors": [{"id": "a"}]}))
    for wrong in ({"vectors": [{"id": 1}]}, {"vectors": [{"id": "a", "colour": "red"}]}, {"vektors": []}):
        with pytest.raises(Exception, match="InvalidData"):
            check(description, request, httpx.Response(200, json=wrong))
