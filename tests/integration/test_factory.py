"""``get_vector_store``: the environment decides, and asks for no more than the backend needs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from amprenta_vectors.backends.pinecone.store import PineconeStore
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError, DimensionMismatch, NotUpgraded, UnknownBackend
from amprenta_vectors.stores.composites.dual import DualStore
from amprenta_vectors.stores.composites.fallback import FallbackStore
from amprenta_vectors.stores.composites.hybrid import HybridStore
from amprenta_vectors.stores.composites.shadow import ShadowStore
from amprenta_vectors.stores.factory import get_vector_store
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Record

API_KEY = "test-key"
DIMENSION = 8

RECORD = Record("k", np.ones(DIMENSION, np.float32), "text", {"a": 1})

APPLICATION = """
import sys
from amprenta_vectors.stores.composites.dual import DualStore
from amprenta_vectors.stores.composites.fallback import FallbackStore
from amprenta_vectors.stores.composites.hybrid import HybridStore
from amprenta_vectors.stores.composites.shadow import ShadowStore
from amprenta_vectors.stores.factory import get_vector_store
store = get_vector_store()
hits = store.query([1.0] * 8, filter={"a": 1})
store.close()
assert not [name for name in sys.modules if name.partition(".")[0] in ("pinecone", "grpc")], "imported"
print([(hit.key, hit.text) for hit in hits])
"""


def test_pgvector_needs_no_pinecone_setting_and_does_not_import_its_package(
    engine: sa.Engine, upgraded_url: str
) -> None:
    store = get_vector_store(Settings.load(vector_backend="pgvector", database_url=upgraded_url))
    store.upsert([RECORD])
    store.close()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PINECONE_")}
    environment |= {"VECTOR_BACKEND": "pgvector", "DATABASE_URL": upgraded_url}
    run = subprocess.run([sys.executable, "-c", APPLICATION], env=environment, capture_output=True, text=True)
    assert run.stdout == "[('k', 'text')]\n", run.stderr


MODES = {"dual": DualStore, "fallback": FallbackStore, "hybrid": HybridStore, "shadow": ShadowStore}


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_joins_the_stores_that_the_settings_name(
    engine: sa.Engine, upgraded_url: str, emulator: Callable[..., Any], mode: str
) -> None:
    options = {
        "database_url": upgraded_url,
        "pinecone_api_key": API_KEY,
        "pinecone_index_name": "test-index",
        "pinecone_controller_host": emulator().host,
    }
    store = get_vector_store(
        Settings.load(**options, vector_backend="pgvector", vector_mode=mode, vector_secondary="pinecone")
    )
    assert type(store) is MODES[mode]
    store.upsert([RECORD])
    store.close()
    there = [
        get_vector_store(Settings.load(**options, vector_backend=name)).count() for name in ("pgvector", "pinecone")
    ]
    # Dual writes to both; of the others the primary alone is written to.
    assert there == [1, int(mode == "dual")]


def test_the_default_is_pinecone_by_the_environment(
    emulator: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = emulator()
    monkeypatch.setenv("PINECONE_API_KEY", API_KEY)
    monkeypatch.setenv("PINECONE_INDEX_NAME", "test-index")
    monkeypatch.setenv("PINECONE_CONTROLLER_HOST", running.host)
    monkeypatch.setenv("PINECONE_NAMESPACE", "n")
    store = get_vector_store()
    assert isinstance(store, PineconeStore)
    store.upsert([RECORD])
    assert [(hit.key, hit.text, hit.metadata) for hit in store.query(RECORD.vector)] == [("k", "text", {"a": 1})]
    monkeypatch.setenv("PINECONE_NAMESPACE", "other")
    assert get_vector_store().count() == 0


def test_the_same_settings_answer_the_same_on_either_backend(emulator: Callable[..., Any], upgraded_url: str) -> None:
    shared = {
        "database_url": upgraded_url,
        "pinecone_api_key": API_KEY,
        "pinecone_index_name": "test-index",
        "pinecone_controller_host": emulator().host,
        "text_field": "body",
    }
    answers = []
    for backend in ("pinecone", "pgvector"):
        store = get_vector_store(Settings.load(vector_backend=backend, **shared))
        store.upsert([RECORD])
        answers.append([(hit.key, hit.text) for hit in store.query(RECORD.vector, filter={"body": "text"})])
        store.close()
    assert answers == [[("k", "text")]] * 2


@pytest.mark.parametrize("backend", ["pg", "PGVECTOR", "chroma "])
def test_an_unknown_backend_is_an_error_that_lists_those_there_are(backend: str) -> None:
    with pytest.raises(UnknownBackend, match=f"(?s)VECTOR_BACKEND is '{backend}'.*one of: pinecone, pgvector"):
        get_vector_store(Settings.load(vector_backend=backend))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vector_backend": "pinecone"}, "PINECONE_API_KEY is not set"),
        ({"vector_backend": "pinecone", "pinecone_api_key": "k"}, "PINECONE_INDEX_NAME is not set"),
        ({"vector_backend": "pgvector"}, "no database is configured"),
        (
            {"vector_backend": "pgvector", "database_url": "postgresql:///x", "table": "nope"},
            "AMPRENTA_TABLE is 'nope'",
        ),
    ],
)
def test_a_setting_that_the_backend_needs_is_named(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_vector_store(Settings.load(**settings))


def test_the_default_namespace_goes_by_both_its_names(upgraded_url: str) -> None:
    for written, read in (("", "__default__"), ("__default__", "")):
        settings = {"vector_backend": "pgvector", "database_url": upgraded_url}
        get_vector_store(Settings.load(namespace=written, **settings)).upsert([RECORD])
        store = get_vector_store(Settings.load(namespace=read, **settings))
        assert list(store.fetch(["k"])) == ["k"]
        store.delete(["k"])


def test_the_model_is_written_beside_the_vector(engine: sa.Engine, upgraded_url: str) -> None:
    settings = Settings.load(vector_backend="pgvector", database_url=upgraded_url, embedding_model="m-1")
    get_vector_store(settings).upsert([RECORD])
    with engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT embedding_model FROM rag_chunks")) == "m-1"


def test_a_dimension_that_the_column_does_not_have_is_an_error_that_names_both(upgraded_url: str) -> None:
    settings = Settings.load(vector_backend="pgvector", database_url=upgraded_url, vector_dimension=9)
    with pytest.raises(DimensionMismatch, match=r"VECTOR_DIMENSION is 9.*vector\(8\)"):
        get_vector_store(settings).count()


def test_a_database_that_is_not_upgraded_says_what_to_type(database_url: str) -> None:
    store = get_vector_store(Settings.load(vector_backend="pgvector", database_url=database_url))
    assert isinstance(store, PgVectorStore)
    with pytest.raises(NotUpgraded, match="alembic upgrade head"):
        store.count()
