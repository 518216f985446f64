"""``amprenta-vectors canary``: one search through the settings, and what a scheduler learns from it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator
from amprenta_vectors.stores.canary import sing
from amprenta_vectors.stores.factory import open_pgvector_store
from amprenta_vectors.stores.protocol import Record

SECRET = "a text that is nobody else's"
RECORDS = [Record(f"k{i}", vector, SECRET) for i, vector in enumerate(np.eye(8, dtype=np.float32))]


def canary(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["canary", *arguments], catch_exceptions=False)


def as_json(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = canary("--json", *arguments)
    return result.exit_code, json.loads(result.stdout)


@pytest.fixture
def pgvector(engine: sa.Engine, upgraded_url: str, monkeypatch: pytest.MonkeyPatch) -> sa.Engine:
    monkeypatch.setenv("DATABASE_URL", upgraded_url)
    monkeypatch.setenv("VECTOR_BACKEND", "pgvector")
    store = open_pgvector_store(Settings.load())
    store.upsert([Record("all", np.ones(8, np.float32)), *RECORDS])
    store.close()
    return engine


@pytest.fixture
def pinecone(emulator: Callable[..., PineconeEmulator], monkeypatch: pytest.MonkeyPatch) -> PineconeEmulator:
    running = emulator()
    running.load("", [record.key for record in RECORDS], np.eye(8, dtype=np.float32))
    monkeypatch.setenv("PINECONE_API_KEY", "test-key")
    monkeypatch.setenv("PINECONE_INDEX_NAME", "test-index")
    monkeypatch.setenv("PINECONE_CONTROLLER_HOST", running.host)
    return running


def test_a_search_that_finds_something_exits_0_and_says_store_time_and_hits(pgvector: sa.Engine) -> None:
    result = canary()
    assert result.exit_code == 0
    assert result.stdout.startswith("pgvector answered in ")
    assert "with 9 hit(s)" in result.stdout
    code, said = as_json("--top-k", "3")
    assert (code, said["ok"], said["failures"], said["backend"], said["hits"]) == (0, True, [], "pgvector", 3)
    assert said["latency_ms"] > 0
    assert said["connect_ms"] > 0
    assert 0 < said["mean_score"] <= 1


def test_neither_text_nor_vector_is_printed_or_logged(pgvector: sa.Engine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="amprenta_vectors"):
        printed = canary().output + canary("--json").output
    assert "search backend=pgvector" in caplog.text
    for secret in (SECRET, "0.0, 0.0", "[1.0"):
        assert secret not in printed + caplog.text


def test_the_application_on_pinecone_is_asked_there_and_needs_no_database(pinecone: PineconeEmulator) -> None:
    code, said = as_json()
    assert (code, said["backend"], said["hits"]) == (0, "pinecone", 8)


def test_the_search_goes_the_way_of_the_mode(
    pgvector: sa.Engine, pinecone: PineconeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTOR_MODE", "fallback")
    monkeypatch.setenv("VECTOR_SECONDARY", "pinecone")
    assert as_json()[1]["backend"] == "pgvector, else pinecone"


@pytest.mark.parametrize("mode", ["shadow", "dual"])
def test_the_applications_comparisons_and_pending_writes_are_left_as_they_are(
    pgvector: sa.Engine, pinecone: PineconeEmulator, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("VECTOR_MODE", mode)
    monkeypatch.setenv("VECTOR_SECONDARY", "pinecone")
    with pgvector.begin() as connection:
        statement = "INSERT INTO vector_outbox (target, scope, key, operation) VALUES (:target, :scope, 'k0', 'delete')"
        connection.execute(sa.text(statement), {"target": "rag_chunks.embedding", "scope": '{"namespace": ""}'})
    ticks = iter([0.0, 1.0])
    monkeypatch.setattr("amprenta_vectors.stores.composites.dual.DRAIN_SECONDS", 0.02)

    def clock() -> float:
        # Longer than a drain of an application would wait before it looks.
        time.sleep(0.2)
        return next(ticks, 2.0)

    song = sing(Settings.load(), np.ones(8, np.float32), top_k=3, clock=clock)
    assert (song.backend, song.hits) == ("pgvector", 3)
    with pgvector.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM shadow_query")).scalar_one() == 0
        pending = "SELECT count(*) FROM vector_outbox WHERE cleared_at IS NULL AND claimed_by IS NULL"
        assert connection.execute(sa.text(pending)).scalar_one() == 1
    monkeypatch.setenv("VECTOR_SECONDARY", "pgvector")
    assert as_json()[0] == 2


def test_too_few_hits_are_a_failure(pgvector: sa.Engine) -> None:
    code, said = as_json("--min-hits", "10")
    assert (code, said["ok"], said["failures"]) == (1, False, ["9 hit(s); expected 10 or more (--min-hits)"])
    result = canary("--min-hits", "10")
    assert (result.exit_code, "failed: 9 hit(s)" in result.stderr) == (1, True)


def test_a_search_that_takes_too_long_is_a_failure(pinecone: PineconeEmulator) -> None:
    pinecone.faults.set("query", Fault(latency=0.2))
    code, said = as_json("--max-ms", "100")
    assert code == 1
    assert said["latency_ms"] >= 200
    assert "expected 100 ms at most (--max-ms)" in said["failures"][0]
    assert as_json("--max-ms", "60000")[0] == 0


def test_opening_connections_does_not_count_as_the_search(pgvector: sa.Engine) -> None:
    ticks = iter([0.0, 4.0, 4.25])
    question = np.ones(8, np.float32)
    song = sing(Settings.load(), question, top_k=1, clock=lambda: next(ticks))
    assert (song.connect_ms, song.latency_ms) == (4000.0, 250.0)


def test_a_search_that_fails_is_said_in_json_too(pinecone: PineconeEmulator) -> None:
    pinecone.faults.set("query", Fault(status=400))
    code, said = as_json()
    assert (code, said["ok"]) == (1, False)
    assert "querying index 'test-index'" in said["failures"][0]
    assert canary().exit_code == 1


def test_a_store_that_hangs_is_a_failure_in_time(pinecone: PineconeEmulator) -> None:
    pinecone.faults.set("query", Fault(stall=2.0))
    code, said = as_json("--timeout-seconds", "0.3")
    assert (code, said) == (1, {"ok": False, "failures": ["no answer in 0.3 s"]})
    assert canary("--timeout-seconds", "0.3").exit_code == 1


def test_an_empty_store_says_what_to_do(pgvector: sa.Engine) -> None:
    with pgvector.begin() as connection:
        connection.execute(sa.text("DELETE FROM rag_chunks"))
    result = canary()
    assert result.exit_code == 2
    assert "pgvector has no stored vector at hand" in result.stderr


def test_a_zero_vector_is_not_asked_for(pgvector: sa.Engine) -> None:
    with pgvector.begin() as connection:
        connection.execute(sa.text("UPDATE rag_chunks SET embedding = '[0,0,0,0,0,0,0,0]'"))
        # Written last, so that it is not the first to be met.
        connection.execute(sa.text("UPDATE rag_chunks SET embedding = '[1,0,0,0,0,0,0,0]' WHERE chunk_id = 'k5'"))
    assert as_json()[1]["hits"] == 1


def test_a_text_is_embedded_where_an_embedder_is_set(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from amprenta_vectors.migrate import upgrade

    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("VECTOR_BACKEND", "pgvector")
    upgrade(Settings.load(vector_dimension=256))
    store = open_pgvector_store(Settings.load())
    store.upsert([Record("k", np.ones(256, np.float32))])
    store.close()
    refused = canary("--text", SECRET)
    assert (refused.exit_code, SECRET in refused.output) == (2, False)
    assert "AMPRENTA_EMBEDDER is not set" in refused.stderr
    monkeypatch.setenv("AMPRENTA_EMBEDDER", "wordllama")
    answered = canary("--text", SECRET)
    assert (answered.exit_code, SECRET in answered.output) == (0, False)
    assert "with 1 hit(s)" in answered.stdout


def test_a_setting_that_is_wrong_exits_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECTOR_BACKEND", "nope")
    assert canary().exit_code == 2
    assert as_json()[0] == 2
