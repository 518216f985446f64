"""``amprenta-vectors outbox``: what is pending, and bringing it."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from click.testing import CliRunner, Result

from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator
from amprenta_vectors.stores.factory import get_vector_store
from amprenta_vectors.stores.protocol import Record

RECORDS = [Record(f"k{i}", vector) for i, vector in enumerate(np.eye(8, dtype=np.float32))]


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["outbox", *arguments], catch_exceptions=False)


@pytest.fixture
def pinecone(
    emulator: Callable[..., PineconeEmulator], upgraded_url: str, monkeypatch: pytest.MonkeyPatch
) -> PineconeEmulator:
    running = emulator()
    for name, value in {
        "DATABASE_URL": upgraded_url,
        "PINECONE_API_KEY": "test-key",
        "PINECONE_INDEX_NAME": "test-index",
        "PINECONE_CONTROLLER_HOST": running.host,
        "VECTOR_MODE": "dual",
        "VECTOR_SECONDARY": "pgvector",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("amprenta_vectors.stores.composites.dual.DRAIN_SECONDS", 3600.0)
    return running


def test_nothing_pending_is_said_and_exits_0(pinecone: PineconeEmulator) -> None:
    result = command("status")
    assert (result.exit_code, "nothing is pending" in result.output) == (0, True)
    assert json.loads(command("status", "--json").output) == {
        "pending": 0,
        "failing": 0,
        "oldest_seconds": None,
        "errors": {},
    }


def test_what_is_pending_is_shown_brought_and_gone(pinecone: PineconeEmulator) -> None:
    pinecone.faults.set("upsert", Fault(status=503))
    store = get_vector_store(Settings.load())
    store.upsert(RECORDS)
    store.close()
    result = command("status")
    assert result.exit_code == 1
    assert "8 key(s) pending, 8 after a failure" in result.output
    assert "amprenta-vectors outbox drain" in result.output
    failed = command("drain")
    assert failed.exit_code == 1
    assert "0 key(s) brought to pinecone, 8 pending" in failed.output
    assert "pinecone said: " in failed.output
    pinecone.faults.clear()
    assert command("drain").output == "8 key(s) brought to pinecone, 0 pending\n"
    result = command("drain")
    assert (result.exit_code, result.output) == (0, "0 key(s) brought to pinecone, 0 pending\n")
    assert command("status").exit_code == 0


def test_without_another_store_it_says_which_setting_is_missing(
    pinecone: PineconeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTOR_BACKEND", "pgvector")
    monkeypatch.delenv("VECTOR_SECONDARY")
    result = command("drain")
    assert result.exit_code == 2
    assert "export VECTOR_SECONDARY=pinecone" in result.output


def test_every_namespace_is_counted_and_brought(pinecone: PineconeEmulator) -> None:
    pinecone.faults.set("upsert", Fault(status=503))
    for namespace in ("one", "two"):
        store = get_vector_store(Settings.load(namespace=namespace))
        store.upsert(RECORDS)
        store.close()
    pinecone.faults.clear()
    assert "16 key(s) pending" in command("status").output
    assert command("drain").output == "16 key(s) brought to pinecone, 0 pending\n"
    for namespace in ("one", "two"):
        store = get_vector_store(Settings.load(namespace=namespace))
        assert store.count() == 8
        store.close()
