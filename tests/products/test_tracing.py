"""Searches for products appear in LangSmith with their scores, by the official client, and never fail for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.systems.products.search import ProductSearch, product_settings
from amprenta_vectors.systems.products.tracing import open_tracer

QUESTION = "read and write compressed files"
INFO = {
    "version": "0.10.0",
    "batch_ingest_config": {
        "use_multipart_endpoint": False,
        "size_limit": 100,
        "size_limit_bytes": 20_971_520,
        "scale_up_nthreads_limit": 1,
        "scale_up_qsize_trigger": 1000,
    },
}


class LangSmithStub(ThreadingHTTPServer):
    """Keeps what was posted, by path; answers with ``status``."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, Any]] = []
        self.status = 202
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def of(self, path: str) -> list[Any]:
        return [body for posted, body in self.posted if posted == path]


class _Handler(BaseHTTPRequestHandler):
    server: LangSmithStub

    def do_GET(self) -> None:
        self._answer(200, INFO)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posted.append((self.path, json.loads(body)))
        self._answer(self.server.status, {})

    def _answer(self, status: int, values: Any) -> None:
        body = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def langsmith() -> Iterator[LangSmithStub]:
    with LangSmithStub() as stub:
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        yield stub
        stub.shutdown()


def open_search(url: str, stub: LangSmithStub, **settings: Any) -> ProductSearch:
    given = {
        "database_url": url,
        "vector_backend": "pgvector",
        "embedder": "wordllama",
        "pgvector_similarity_threshold": -1,
        "langsmith_tracing": True,
        "langsmith_api_key": "lsv2_secret",
        "langsmith_project": "shop",
        "langsmith_endpoint": stub.url,
    }
    return ProductSearch.open(product_settings(**given | settings))


def test_a_search_is_a_run_with_its_hits_and_their_mean_similarity(migrated_url: str, langsmith: LangSmithStub) -> None:
    search = open_search(migrated_url, langsmith)
    found = search.search(QUESTION, 3, max_price=20.5)
    search.close()
    [run] = [run for batch in langsmith.of("/runs/batch") for run in batch["post"]]
    assert (run["name"], run["run_type"], run["session_name"]) == ("product_search", "retriever", "shop")
    assert run["inputs"] == {
        "query": QUESTION,
        "filter": {"active": {"$ne": False}, "price": {"$lte": 20.5}},
        "limit": 3,
    }
    assert [
        (each["metadata"]["id"], each["metadata"]["score"], each["page_content"])
        for each in run["outputs"]["documents"]
    ] == [(product.id, product.score, product.row["name"]) for product in found]
    assert run["start_time"] <= run["end_time"]
    about = run["extra"]["metadata"]
    assert (about["store"], about["hits"]) == ("pgvector", 3)
    assert about["similarity"] == pytest.approx(sum(product.score for product in found) / 3)


def test_a_langsmith_that_refuses_costs_a_search_nothing(migrated_url: str, langsmith: LangSmithStub) -> None:
    langsmith.status = 403
    search = open_search(migrated_url, langsmith)
    assert len(search.search(QUESTION, 3)) == 3
    search.close()


def test_nothing_is_sent_unless_it_is_asked_for(migrated_url: str, langsmith: LangSmithStub) -> None:
    search = open_search(migrated_url, langsmith, langsmith_tracing=False)
    search.search(QUESTION, 3)
    search.close()
    assert langsmith.posted == []


def test_tracing_without_a_key_names_the_variable() -> None:
    with pytest.raises(ConfigError, match="LANGSMITH_API_KEY is not set"):
        open_tracer(product_settings(langsmith_tracing=True))
