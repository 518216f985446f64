"""A scope never reads or writes another's rows: every public method of every store, with foreign keys and filters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from backfill_tools import execute
from hypothesis import HealthCheck, given, settings
from scope_tools import (
    CASES,
    FILTERS,
    MINE,
    THEIRS,
    WRITING,
    Texts,
    TextsEmbedder,
    World,
    assert_tells_nothing,
    hostile_filters,
    public,
    record_of,
)

from amprenta_vectors.backends.simple.store import SimpleStore
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.embedders.registered import ModelEmbedder
from amprenta_vectors.errors import AmprentaError
from amprenta_vectors.integrations.langchain import AmprentaVectorStore
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.stores.composites.dual import DualStore
from amprenta_vectors.stores.composites.fallback import FallbackStore
from amprenta_vectors.stores.composites.hybrid import HybridStore
from amprenta_vectors.stores.composites.shadow import ShadowStore
from amprenta_vectors.stores.factory import get_vector_store, open_pgvector_store, open_pinecone_store
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.systems.documents.assistant import (
    AssistantStore,
    SimpleVectorStore,
    get_document_store,
)
from amprenta_vectors.systems.documents.assistant import PgVectorStore as PgDocuments

DIMENSION, DOCUMENT_DIMENSION = 8, 256

MODES: dict[type, dict[str, Any]] = {
    PgVectorStore: {},
    DualStore: {"vector_mode": "dual", "vector_secondary": "pinecone"},
    FallbackStore: {"vector_mode": "fallback", "vector_secondary": "pinecone"},
    HybridStore: {"vector_mode": "hybrid", "vector_secondary": "pinecone"},
    ShadowStore: {"vector_mode": "shadow", "vector_secondary": "pinecone"},
    AmprentaVectorStore: {},
}
"""Stores of the chunks of a namespace, with Pinecone beside PostgreSQL."""

Open = Callable[[type], World]


@pytest.fixture
def open_world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """A function that opens a store of a kind, beside what is another's."""
    engines: list[sa.Engine] = []

    def open_it(kind: type) -> World:
        url = request.getfixturevalue("upgraded_url" if kind in MODES else "documents_url")
        engines.append(create_engine(Settings.load(database_url=url)))
        if kind in MODES:
            return of_chunks(kind, url, engines[0], request.getfixturevalue("emulator")())
        return of_documents(kind, url, engines[0], tmp_path / "user_data", monkeypatch)

    yield open_it
    for engine in engines:
        engine.dispose()


def of_chunks(kind: type, url: str, engine: sa.Engine, pinecone: PineconeEmulator) -> World:
    options = {
        "database_url": url,
        "pinecone_api_key": "test-key",
        "pinecone_index_name": "test-index",
        "pinecone_controller_host": pinecone.host,
        "vector_backend": "pgvector",
    }
    theirs = Settings.load(**options, namespace="theirs")
    mine = Settings.load(**options, namespace="mine", **MODES[kind])
    others, beside = open_pinecone_store(theirs), open_pinecone_store(mine)
    pgvector = open_pgvector_store(theirs)
    for store in (others, pgvector):
        store.upsert([record_of(key, number, DIMENSION, "theirs") for number, key in enumerate(THEIRS)])
    pgvector.close()
    store = get_vector_store(mine)
    for either in (beside, store):
        either.upsert([record_of(key, 4, DIMENSION, "mine") for key in MINE])

    def foreign() -> Any:
        rows = execute(engine, "SELECT rag_chunks::text FROM rag_chunks WHERE namespace = 'theirs' ORDER BY chunk_id")
        kept = others.fetch(THEIRS)
        return [row[0] for row in rows], {
            key: (item.vector.tobytes(), item.text, dict(item.metadata)) for key, item in kept.items()
        }

    if kind is PgVectorStore:
        execute(engine, "INSERT INTO embedding_models (model_name, dimension, provider) VALUES ('m', 8, 'wordllama')")
        execute(
            engine,
            "INSERT INTO model_column (target, model_id, column_name, searched) "
            "SELECT 'rag_chunks.embedding', id, 'embedding', true FROM embedding_models",
        )
        store.models._open_model = lambda model: ModelEmbedder(model, TextsEmbedder(DIMENSION))
        store.models.look_again()
    if kind is AmprentaVectorStore:
        return World(AmprentaVectorStore(Texts(DIMENSION), store), engine, DIMENSION, foreign, THEIRS, {"store": store})
    return World(store, engine, DIMENSION, foreign)


def of_documents(kind: type, url: str, engine: sa.Engine, root: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Two users, and a second collection, with documents of the same ids and text, in files and in PostgreSQL."""
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("SIMPLE_STORE_ROOT", str(root))
    texts = Texts(DOCUMENT_DIMENSION)
    scopes = (("alice", "personal_assistant"), ("bob", "personal_assistant"), ("alice", "other"))
    for user, collection in scopes:
        mine = (user, collection) == scopes[0]
        ids = MINE if mine else THEIRS
        for store in (
            PgDocuments(collection, texts, user),
            SimpleVectorStore(root / user / f"vector_store_{collection}", texts),
        ):
            rows = [
                record_of(key, number, DOCUMENT_DIMENSION, "mine" if mine else "theirs")
                for number, key in enumerate(ids, 4 if mine else 0)
            ]
            store.store.upsert(rows)
    keys = execute(
        engine,
        "SELECT id::text FROM vector_documents WHERE (user_id, collection_name) <> ('alice', 'personal_assistant')",
    )
    theirs = [*THEIRS, *(row[0] for row in keys)]

    def foreign() -> Any:
        rows = execute(
            engine,
            "SELECT vector_documents::text FROM vector_documents "
            "WHERE (user_id, collection_name) <> ('alice', 'personal_assistant') ORDER BY id",
        )
        files = [root / user / f"vector_store_{collection}" for user, collection in scopes[1:]]
        return [row[0] for row in rows], [path.read_bytes() for folder in files for path in sorted(folder.iterdir())]

    made_with: dict[str, Any] = {"user_id": "alice"}
    if kind is PgDocuments:
        store = PgDocuments(embedding_model=texts, user_id="alice")
    elif kind is AssistantStore:
        for name, value in (("BACKEND", "pgvector"), ("MODE", "dual"), ("SECONDARY", "simple")):
            monkeypatch.setenv(f"VECTOR_{name}", value)
        store = get_document_store(embedding_model=texts, user_id="alice")
        made_with = {"settings": Settings.load(table="vector_documents", namespace="alice/personal_assistant")}
    else:
        made_with = {"store_path": root / "alice" / "vector_store_personal_assistant"}
        store = SimpleVectorStore(**made_with, embedding_model=texts)
    if kind is SimpleStore:
        return World(store.store._store, engine, DOCUMENT_DIMENSION, foreign, theirs[3:])
    return World(store, engine, DOCUMENT_DIMENSION, foreign, theirs, made_with)


def named(kind: type) -> str:
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


@pytest.mark.parametrize("kind", CASES, ids=named)
def test_every_public_method_is_tried_below(kind: type) -> None:
    assert public(kind) == CASES[kind].keys() - {"breaker"}


@pytest.mark.parametrize("kind", CASES, ids=named)
def test_no_public_method_reads_or_writes_rows_of_another_scope(kind: type, open_world: Open) -> None:
    world = open_world(kind)
    before = world.foreign()
    assert [len(part) >= len(THEIRS) for part in before] == [True, True]
    # Reading first, while what is mine is there to be told from theirs.
    order = sorted(CASES[kind].items(), key=lambda item: (item[0] == "close", item[0] in WRITING))
    for method, case in order:
        for where in [None] if method in {*WRITING, "close"} else FILTERS:
            answer = case(world, where)
            if method not in WRITING:
                assert_tells_nothing(world, method, answer)
        assert world.foreign() == before, method


def test_a_row_is_not_taken_over_by_writing_its_key_where_keys_are_unique_beyond_a_scope(open_world: Open) -> None:
    world = open_world(PgDocuments)
    before = world.foreign()
    alone = world.store.store._store
    for key in world.theirs[len(THEIRS) :]:
        with pytest.raises(AmprentaError, match="duplicate key"):
            alone.upsert([record_of(key, 4, DOCUMENT_DIMENSION, "mine")])
    assert world.foreign() == before


@pytest.mark.parametrize("kind", CASES, ids=named)
def test_no_filter_finds_rows_of_another_scope(kind: type, open_world: Open) -> None:
    world = open_world(kind)
    searches = [CASES[kind][name] for name in ("query", "similarity_search", "search") if name in CASES[kind]]

    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(hostile_filters)
    def search(where: dict[str, Any]) -> None:
        for case in searches:
            assert_tells_nothing(world, str(where), case(world, where))

    search()
    (world.store if hasattr(world.store, "close") else world.store.store).close()
