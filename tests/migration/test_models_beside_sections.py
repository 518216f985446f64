"""Models that were added outside revisions: a section's downgrade keeps their values, its upgrade takes them back."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from embedded_rows import TEXTS, embedder
from migrating import Database, psql
from systems import RAG

from amprenta_vectors import migrate
from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.ddl.backfill import UnfinishedRuns
from amprenta_vectors.stores.factory import open_pgvector_store

Alembic = Callable[..., subprocess.CompletedProcess[str]]
SMALL = "wordllama-l2-supercat-64"
INDEX = "idx_rag_chunks_embedding_64_hnsw"
ADDED = {"embedding_64", "hash_embedding_64", "text_hash_embedding_64"}
RETIRED = {f"{name}_retired" for name in ADDED}
VALUES = """
    SELECT chunk_id, CAST(embedding_64 AS text), hash_embedding_64, text_hash_embedding_64 FROM rag_chunks
    ORDER BY chunk_id
"""
Type = Callable[..., None]


@pytest.fixture
def type_in(db: Database, monkeypatch: pytest.MonkeyPatch) -> Type:
    """A function that types a command."""
    monkeypatch.setenv("DATABASE_URL", db.url)
    monkeypatch.setattr("amprenta_vectors.moves.models.migrating.SEEN_SECONDS", 0.0)

    def run(*arguments: str, table: str = "rag_chunks") -> None:
        done = CliRunner().invoke(main, arguments, env={"AMPRENTA_TABLE": table})
        assert done.exit_code == 0, done.output

    return run


@pytest.fixture(params=["adopted", "made here"])
def added(db: Database, type_in: Type, request: pytest.FixtureRequest) -> Database:
    """A table at head, with the rows of another model beside, whose index is built and which is searched."""
    if request.param == "adopted":
        RAG.adopt(db)
    RAG.upgrade(db)
    if request.param == "made here":
        RAG.insert(db)
    RAG.fill(db)
    for number, text in enumerate(TEXTS[:20]):
        db.execute("UPDATE rag_chunks SET content = :text WHERE chunk_id = :key", text=text, key=f"chunk-{number + 1}")
    type_in("models", "add", "large", "--column", "embedding")
    type_in("models", "add", SMALL, "--provider", "wordllama", "--dimension", "64")
    type_in("models", "migrate", "--to", SMALL)
    type_in("models", "switch", SMALL)
    db.execute("ALTER TABLE rag_chunks DISABLE TRIGGER USER")
    db.execute("UPDATE rag_chunks SET updated_at = now() - interval '1 day'")
    db.execute("ALTER TABLE rag_chunks ENABLE TRIGGER USER")
    return db


def registry(db: Database, suffix: str = "") -> list[tuple[Any, ...]]:
    rows = db.execute(f"""
        SELECT model_name, column_name, written, searched
        FROM model_column{suffix} JOIN embedding_models{suffix} ON id = model_id ORDER BY column_name
    """)
    return [tuple(row) for row in rows]


def found(db: Database, text: str) -> list[str]:
    with closing(open_pgvector_store(Settings.load(database_url=db.url))) as store:
        return [hit.key for hit in store.search(text, top_k=5)]


def test_down_and_up_again_has_the_values_the_models_and_the_queries(added: Database, type_in: Type) -> None:
    values, columns, models = added.execute(VALUES), added.columns("rag_chunks"), registry(added)
    before = found(added, TEXTS[3])
    assert added.index_is_valid(INDEX)
    RAG.downgrade(added)
    adopted = bool(added.columns("rag_chunks"))
    kept = added.columns("rag_chunks" if adopted else "rag_chunks_retired")
    assert not ADDED & set(kept)
    assert set(kept) > RETIRED
    assert added.index_is_valid(INDEX) is None
    assert registry(added, "_retired") == models
    if adopted:
        added.execute("UPDATE rag_chunks SET content = 'changed', updated_at = now() WHERE chunk_id = 'chunk-9'")
    RAG.upgrade(added)
    assert added.columns("rag_chunks") == columns
    changed = {"chunk-9"} if adopted else set()
    assert added.execute(VALUES) == [row if row[0] not in changed else (row[0], None, None, None) for row in values]
    assert registry(added) == models
    assert [key for key in found(added, TEXTS[3]) if key not in changed][:4] == [
        key for key in before if key not in changed
    ][:4]
    # The index is built again by whoever fills the column next, or at once.
    type_in("models", "migrate", "--to", SMALL)
    assert added.index_is_valid(INDEX) or not changed
    type_in("index", "build", table="rag_chunks.embedding_64")
    assert added.index_is_valid(INDEX)
    RAG.check(added)
    if adopted:
        [(vector,)] = added.execute("SELECT CAST(embedding_64 AS text) FROM rag_chunks WHERE chunk_id = 'chunk-9'")
        np.testing.assert_allclose(
            np.array(vector.strip("[]").split(","), np.float32), embedder(64).embed(["changed"])[0], atol=1e-6
        )


def test_an_adopted_table_is_left_with_what_it_had_and_what_is_kept(db: Database, type_in: Type) -> None:
    RAG.adopt(db)
    before = db.columns("rag_chunks")
    RAG.upgrade(db)
    type_in("models", "add", "large", "--column", "embedding")
    type_in("models", "add", SMALL, "--provider", "wordllama", "--dimension", "64")
    RAG.downgrade(db)
    # Empty columns are dropped, and come back empty.
    assert {name: kind for name, kind in db.columns("rag_chunks").items() if "retired" not in name} == before
    assert not RETIRED & set(db.columns("rag_chunks"))
    RAG.upgrade(db)
    assert set(db.columns("rag_chunks")) > ADDED
    assert registry(db) == [("large", "embedding", True, True), (SMALL, "embedding_64", True, False)]
    assert db.execute("SELECT index_name FROM migration_index WHERE built_at IS NULL") == [(INDEX,)]


def test_what_is_purged_is_forgotten_with_its_models(added: Database) -> None:
    added.execute("CREATE TABLE theirs (id int)")
    RAG.downgrade(added, "core_0001", purge=True)
    left = added.columns("rag_chunks") or added.columns("rag_chunks_retired")
    assert not [name for name in left if "embedding" in name]
    assert registry(added) == []
    RAG.upgrade(added)
    assert not ADDED & set(added.columns("rag_chunks"))


def test_a_run_into_a_models_column_is_cancelled_before_that_is_retired(added: Database) -> None:
    of_column = "(SELECT max(id) FROM migration_run WHERE target = 'rag_chunks.embedding_64')"
    added.execute(f"UPDATE migration_run SET state = 'planned' WHERE id = {of_column}")
    with added.engine.connect() as connection:
        assert UnfinishedRuns("rag_chunks.embedding_64").find(connection)
    RAG.downgrade(added, "rag_0003")
    with added.engine.connect() as connection:
        assert not UnfinishedRuns("rag_chunks.embedding_64").find(connection)


def test_another_sections_tables_keep_their_models(added: Database) -> None:
    migrate.upgrade(RAG.settings(added), "products")
    models = registry(added)
    RAG.downgrade(added)
    assert registry(added) == models
    RAG.upgrade(added)
    assert set(added.columns("rag_chunks")) > ADDED
    assert found(added, TEXTS[3])


def test_a_script_of_alembics_own_says_that_it_knows_of_no_models(added: Database, alembic: Alembic) -> None:
    printed = alembic("downgrade", "head:base", "--sql")
    assert printed.returncode == 0, printed.stderr
    before = added.catalogue()
    done = psql(added, printed.stdout)
    assert done.returncode == 3
    assert "rag_chunks has no column of another model" in done.stderr
    assert added.catalogue() == before
