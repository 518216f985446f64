"""A downgrade keeps what has values, drops what is empty and ours, and an upgrade takes everything back."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg2
import pytest
from migrating import Database, adopted_at, at, prepared, settings_at

from amprenta_vectors.ddl.catalogue import has_value
from amprenta_vectors.errors import AmprentaError, SchemaMismatch

Alembic = Callable[..., subprocess.CompletedProcess[str]]
DIMENSION = 4
BITS = "SELECT chunk_id, encode(vector_send(embedding), 'hex'), embedding_model FROM rag_chunks ORDER BY chunk_id"


def fill(db: Database) -> list[Any]:
    """Give every row of rag_chunks an embedding of any finite bit pattern, dated yesterday; returns all bits."""
    random = np.random.default_rng(5)
    keys = [row[0] for row in db.execute("SELECT chunk_id FROM rag_chunks ORDER BY chunk_id")]
    patterns = random.integers(0, 2**32, (len(keys), DIMENSION), dtype=np.uint32).view(np.float32)
    patterns[~np.isfinite(patterns)] = -0.0
    db.execute(
        "UPDATE rag_chunks SET embedding = CAST(filled.vector AS vector), embedding_model = 'm', "
        "updated_at = now() - interval '1 day' "
        "FROM unnest(CAST(:keys AS text[]), CAST(:vectors AS text[])) AS filled (key, vector) WHERE chunk_id = key",
        keys=keys,
        vectors=[str([float(value) for value in vector]) for vector in patterns],
    )
    return list(db.execute(BITS))


def fill_adopted(db: Database) -> None:
    """Make an adopted table at head, every row with an embedding."""
    adopted_at(db, dimension=DIMENSION)
    fill(db)


def fill_made(db: Database) -> None:
    """Make a table by the revisions, with rows and embeddings."""
    at(db, dimension=DIMENSION)
    db.execute("INSERT INTO rag_chunks (chunk_id) SELECT 'chunk-' || n FROM generate_series(1, 20) n")
    fill(db)


FILLED = prepared(fill_adopted)
MADE = prepared(fill_made)


@pytest.mark.parametrize("_", [pytest.param("filled", marks=FILLED), pytest.param("made", marks=MADE)])
def test_down_and_up_again_brings_back_every_embedding_bit_for_bit(db: Database, alembic: Alembic, _: str) -> None:
    before, schema = db.execute(BITS), db.catalogue()
    down = alembic("downgrade", "base")
    assert down.returncode == 0, down.stderr
    assert "rag_chunks.embedding: its values are kept as embedding_retired" in down.stderr
    assert "embedding" not in db.columns("rag_chunks")
    up = alembic("upgrade", "head")
    assert up.returncode == 0, up.stderr
    assert "rag_chunks.embedding: its values are back; 0 rows changed meanwhile" in up.stderr
    # Of the sessions that steps run in beside the migration's, Alembic says nothing.
    assert up.stderr.count("Context impl") == up.stderr.count("Will assume") == 1
    assert db.execute(BITS) == before
    assert db.catalogue() == schema


@FILLED
def test_rows_changed_meanwhile_are_null_and_counted(db: Database, alembic: Alembic) -> None:
    before = db.execute(BITS)
    db.downgrade()
    db.execute("UPDATE rag_chunks SET content = 'new', updated_at = now() WHERE chunk_id IN ('chunk-3', 'chunk-5')")
    db.execute("INSERT INTO rag_chunks (chunk_id) VALUES ('chunk-new')")
    db.execute("DELETE FROM rag_chunks WHERE chunk_id = 'chunk-9'")
    up = alembic("upgrade", "head")
    assert up.returncode == 0, up.stderr
    assert "rag_chunks.embedding: its values are back; 2 rows changed meanwhile and are NULL again" in up.stderr
    changed = {"chunk-3", "chunk-5"}
    expected = [(key, None, None) if key in changed else (key, *rest) for key, *rest in before if key != "chunk-9"]
    assert db.execute(BITS) == sorted([*expected, ("chunk-new", None, None)])


@FILLED
def test_a_transaction_begun_before_the_downgrade_that_writes_after_it_counts_as_a_change(db: Database) -> None:
    with psycopg2.connect(db.url) as writer, writer.cursor() as cursor:
        cursor.execute("SELECT now()")
        db.downgrade()
        cursor.execute("UPDATE rag_chunks SET content = 'new', updated_at = now() WHERE chunk_id = 'chunk-3'")
        writer.commit()
    db.upgrade()
    assert db.execute("SELECT chunk_id FROM rag_chunks WHERE embedding IS NULL") == [("chunk-3",)]


@pytest.mark.parametrize("type_", [None, "text", "date", "bigint"])
def test_without_a_timestamp_of_changes_the_values_come_back_but_for_rows_that_changed(
    adopted: Database, type_: str | None
) -> None:
    adopted.execute("ALTER TABLE rag_chunks DROP COLUMN updated_at")
    if type_ is not None:
        adopted.execute(f"ALTER TABLE rag_chunks ADD COLUMN updated_at {type_}")
    adopted.upgrade(vector_dimension=3)
    adopted.execute("UPDATE rag_chunks SET embedding = '[1,2,3]'")
    adopted.downgrade()
    adopted.execute("UPDATE rag_chunks SET content = 'new' WHERE chunk_id IN ('chunk-3', 'chunk-5')")
    adopted.upgrade()
    without = "SELECT chunk_id FROM rag_chunks WHERE embedding IS NULL ORDER BY chunk_id"
    assert adopted.execute(without) == [("chunk-3",), ("chunk-5",)]


@FILLED
def test_the_roles_own_time_limit_does_not_end_the_taking_back(db: Database) -> None:
    db.downgrade()
    db.execute("UPDATE rag_chunks SET updated_at = now() WHERE chunk_id IN ('chunk-1', 'chunk-2', 'chunk-3')")
    db.execute(f"ALTER DATABASE {db.scalar('SELECT current_database()')} SET statement_timeout = '45s'")
    with settings_at("UPDATE rag_chunks", "statement_timeout") as limits:
        db.upgrade()
    assert set(limits) == {("0",)}
    assert db.scalar("SELECT count(embedding) FROM rag_chunks") == 97


@FILLED
def test_the_old_applications_inserts_work_after_a_downgrade_from_not_null(db: Database) -> None:
    db.execute("ALTER TABLE rag_chunks ALTER embedding SET NOT NULL, ALTER embedding_model SET NOT NULL")
    before = db.execute(BITS)
    db.downgrade()
    db.execute("INSERT INTO rag_chunks (chunk_id) VALUES ('a new one')")
    db.upgrade()
    assert [row for row in db.execute(BITS) if row[0] != "a new one"] == before


@FILLED
@pytest.mark.parametrize("validity", ["", " NOT VALID"], ids=["validated", "not valid"])
def test_a_check_that_says_not_null_is_dropped_as_not_null_is_and_said(
    db: Database, caplog: pytest.LogCaptureFixture, validity: str
) -> None:
    db.execute(f"ALTER TABLE rag_chunks ADD CONSTRAINT filled CHECK (embedding IS NOT NULL){validity}")
    db.execute("ALTER TABLE rag_chunks ADD CONSTRAINT short CHECK (embedding IS NULL OR chunk_id <> 'x')")
    before = db.execute(BITS)
    db.downgrade()
    assert "rag_chunks.embedding: CHECK constraint filled, which forbids NULL, is dropped" in caplog.text
    db.execute("INSERT INTO rag_chunks (chunk_id) VALUES ('a new one')")
    assert db.execute("SELECT conname FROM pg_constraint WHERE conname IN ('filled', 'short')") == [("short",)]
    db.upgrade()
    assert [row for row in db.execute(BITS) if row[0] != "a new one"] == before


@FILLED
def test_what_another_roles_transaction_writes_after_the_downgrade_counts_as_changed(
    db: Database, as_role: Callable[..., Database]
) -> None:
    migrator = as_role("blind_migrator")
    for (table,) in db.execute("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 2200"):
        db.execute(f"ALTER TABLE {table} OWNER TO blind_migrator")
    with psycopg2.connect(db.url) as writer:
        writer.cursor().execute("SELECT now()")
        migrator.downgrade("rag_0001")
        comments = "SELECT description FROM pg_description WHERE objoid = 'rag_chunks'::regclass"
        assert "retired by amprenta_vectors at unknown;" in str(db.execute(comments))
        # Its updated_at is of before the downgrade, when the transaction began.
        writer.cursor().execute("UPDATE rag_chunks SET content = 'new', updated_at = now() WHERE chunk_id = 'chunk-3'")
        writer.commit()
    migrator.upgrade()
    assert db.execute("SELECT chunk_id FROM rag_chunks WHERE embedding IS NULL") == [("chunk-3",)]


def test_what_was_adopted_is_never_dropped_even_when_purging(adopted: Database, alembic: Alembic) -> None:
    adopted.execute("CREATE EXTENSION vector")
    adopted.execute("ALTER TABLE rag_chunks ADD COLUMN embedding vector(3) DEFAULT '[1,2,3]'")
    adopted.execute("ALTER TABLE rag_chunks ADD COLUMN embedding_model text DEFAULT 'm'")
    adopted.execute("CREATE INDEX idx_rag_chunks_embedding ON rag_chunks USING hnsw (embedding vector_cosine_ops)")
    before = adopted.catalogue()
    adopted.upgrade()
    done = alembic("-x", "purge=true", "downgrade", "base")
    assert done.returncode == 0, done.stderr
    assert [row for row in adopted.catalogue() if not row[0].startswith("amprenta_version")] == before
    assert adopted.scalar("SELECT count(embedding) FROM rag_chunks") == 100


def test_what_was_made_here_and_is_empty_is_dropped(db: Database, alembic: Alembic) -> None:
    db.upgrade()
    db.execute("DELETE FROM migration_run")
    done = alembic("downgrade", "base")
    assert done.returncode == 0, done.stderr
    assert {row[0] for row in db.catalogue()} == {"amprenta_version_rag", "amprenta_version_rag_pkc", "plpgsql"}


def test_empty_columns_of_an_adopted_table_are_dropped_and_its_own_stay(adopted: Database) -> None:
    before = adopted.columns("rag_chunks")
    adopted.upgrade()
    adopted.downgrade()
    assert adopted.columns("rag_chunks") == before
    assert adopted.scalar("SELECT count(*) FROM rag_chunks") == 100


def test_the_record_of_runs_outlives_a_downgrade(db: Database) -> None:
    db.upgrade()
    db.execute("UPDATE migration_run SET last_error = 'remember me'")
    db.downgrade()
    assert not db.columns("migration_run")
    db.upgrade()
    runs = db.execute("SELECT id, state, last_error FROM migration_run ORDER BY id")
    assert runs == [(1, "cancelled", "remember me"), (2, "planned", None)]


@MADE
@pytest.mark.parametrize(
    "command",
    [
        ("alembic", "-x", "purge=true", "downgrade", "base"),
        ("amprenta_vectors", "db", "downgrade", "--purge"),
    ],
    ids=["alembic", "amprenta-vectors"],
)
def test_purging_says_how_much_goes_then_drops_it(db: Database, typed: Alembic, command: tuple[str, ...]) -> None:
    done = typed(*command)
    assert done.returncode == 0, done.stderr
    assert "rag_chunks.embedding: dropping 20 values" in done.stderr
    assert "rag_chunks: dropping 20 rows" in done.stderr
    assert {row[0] for row in db.catalogue()} == {"amprenta_version_rag", "amprenta_version_rag_pkc", "plpgsql"}


@FILLED
def test_a_purge_drops_the_embeddings_of_an_adopted_table_and_nothing_else_of_it(db: Database) -> None:
    db.downgrade(purge=True)
    assert set(db.columns("rag_chunks")) == {"chunk_id", "document_id", "content", "updated_at"}
    assert db.scalar("SELECT count(content) FROM rag_chunks") == 100


@FILLED
def test_a_view_on_the_embedding_survives_and_is_named_when_it_stands_in_the_way_of_a_purge(db: Database) -> None:
    db.execute("CREATE VIEW theirs AS SELECT chunk_id, embedding FROM rag_chunks")
    with pytest.raises(AmprentaError, match="something of yours depends on it"):
        db.downgrade(purge=True)
    assert db.scalar("SELECT count(embedding) FROM theirs") == 100
    db.downgrade()
    assert db.scalar("SELECT count(embedding) FROM theirs") == 100
    db.upgrade()
    assert db.scalar("SELECT count(embedding) FROM rag_chunks") == 100


def test_a_view_on_empty_things_of_ours_survives_a_downgrade(db: Database) -> None:
    db.upgrade()
    schema = db.catalogue()
    db.execute("CREATE VIEW theirs AS SELECT chunk_id, embedding FROM rag_chunks")
    db.downgrade()
    assert db.execute("SELECT * FROM theirs") == []
    db.execute("DROP VIEW theirs")
    db.upgrade()
    assert db.catalogue() == schema


@FILLED
def test_something_foreign_under_the_retired_name_is_named_and_left(db: Database) -> None:
    db.execute("ALTER TABLE rag_chunks ADD COLUMN embedding_retired text DEFAULT 'theirs'")
    with pytest.raises(SchemaMismatch, match=r"column rag_chunks\.embedding_retired is in the way"):
        db.downgrade()
    assert db.scalar("SELECT count(embedding) FROM rag_chunks WHERE embedding_retired = 'theirs'") == 100


@MADE
def test_a_foreign_table_under_the_retired_name_is_named_and_left(db: Database) -> None:
    db.execute("CREATE TABLE rag_chunks_retired (theirs text)")
    with pytest.raises(SchemaMismatch, match="table rag_chunks_retired is in the way"):
        db.downgrade()
    db.execute("ALTER TABLE rag_chunks_retired RENAME TO theirs")
    db.downgrade()
    db.upgrade()
    assert db.scalar("SELECT count(embedding) FROM rag_chunks") == 20


def test_a_value_that_comes_while_the_downgrade_looks_for_values_is_kept(
    adopted: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopted.upgrade(vector_dimension=3)

    def look_then_write(*arguments: Any) -> bool:
        found = has_value(*arguments)
        adopted.execute("UPDATE rag_chunks SET embedding = '[1,2,3]' WHERE chunk_id = 'chunk-1'")
        return found

    monkeypatch.setattr("amprenta_vectors.ddl.catalogue.has_value", look_then_write)
    adopted.downgrade("rag_0001")
    assert adopted.scalar("SELECT count(embedding_retired) FROM rag_chunks") == 1


def test_a_downgrade_broken_off_while_it_drops_has_changed_nothing_and_goes_on(
    adopted: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = adopted.columns("rag_chunks")
    adopted.upgrade()
    with monkeypatch.context() as patched:
        patched.setattr("amprenta_vectors.ddl.columns.has_value", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            adopted.downgrade()
    assert "embedding" in adopted.columns("rag_chunks")
    adopted.downgrade()
    assert adopted.columns("rag_chunks") == before


def test_20000_rows_come_back_but_for_those_that_changed(db: Database, alembic: Alembic) -> None:
    db.execute(
        "CREATE TABLE rag_chunks (chunk_id text PRIMARY KEY, content text, updated_at timestamptz DEFAULT now())"
    )
    db.execute("INSERT INTO rag_chunks SELECT 'chunk-' || n, 'text ' || n FROM generate_series(1, 20000) n")
    db.upgrade("rag_0002", vector_dimension=DIMENSION)
    db.execute("""
        UPDATE rag_chunks SET updated_at = now() - interval '1 day', embedding_model = 'm',
            embedding = CAST(ARRAY[random(), random(), random(), random()] AS vector)
    """)
    kept = "SELECT md5(string_agg(chunk_id || embedding || embedding_model, ',' ORDER BY chunk_id)) FROM rag_chunks "
    unchanged = kept + "WHERE chunk_id NOT LIKE '%77'"
    before = db.scalar(unchanged)
    assert alembic("downgrade", "base").returncode == 0
    changed = "UPDATE rag_chunks SET content = 'new', updated_at = now() WHERE chunk_id LIKE '%77' RETURNING 1"
    assert len(db.execute(changed)) == 200
    up = alembic("upgrade", "rag_0002")
    assert up.returncode == 0, up.stderr
    assert "rag_chunks.embedding: its values are back; 200 rows changed meanwhile and are NULL again" in up.stderr
    assert db.scalar(unchanged) == before
    assert db.scalar("SELECT count(embedding) FROM rag_chunks") == 19_800
    assert db.scalar("SELECT count(*) FROM rag_chunks WHERE embedding IS NULL AND chunk_id LIKE '%77'") == 200
