"""The section ``models``: tables made or adopted, an old application that runs on, kills, and the contraction."""

from __future__ import annotations

import io
import itertools
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from click.testing import CliRunner, Result
from fingerprint import fingerprint
from killing import Copies, copies, finish, name_of, start, wait_for  # noqa: F401 - a fixture among them
from migrating import Database
from systems import System

from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.errors import SchemaMismatch
from amprenta_vectors.schema.registry import CHUNK_EMBEDDINGS
from amprenta_vectors.stores.pgvector.options import StoreOptions
from amprenta_vectors.stores.pgvector.store import PgVectorStore

DIMENSION = 1536
ADA = "text-embedding-ada-002"
VECTOR = "array_fill(0.5::real, ARRAY[1536])::vector"
ADOPTED = (
    "CREATE EXTENSION IF NOT EXISTS vector",
    "CREATE TABLE documents (id uuid PRIMARY KEY, title text NOT NULL)",
    "CREATE TABLE chunks (id uuid PRIMARY KEY, document_id uuid NOT NULL REFERENCES documents ON DELETE CASCADE, "
    "chunk_index int NOT NULL, content text NOT NULL)",
    "CREATE TABLE chunk_embeddings (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, chunk_id uuid NOT NULL UNIQUE "
    "REFERENCES chunks ON DELETE CASCADE, embedding vector(1536) NOT NULL, updated_at timestamptz DEFAULT now())",
)


@dataclass(frozen=True)
class ModelsSystem(System):
    """The section, with tables of an application's of which each chunk has one embedding."""

    def adopt(self, db: Database, rows: int = 20) -> None:
        for statement in self.adopted:
            db.execute(statement)
        self.insert(db, rows)

    def insert(self, db: Database, rows: int = 20, *, first: int = 1) -> None:
        numbers = f"generate_series({first}, {first + rows - 1}) n"
        id_ = "md5(n::text)::uuid"
        db.execute(f"INSERT INTO documents (id, title) SELECT {id_}, 'title' FROM {numbers}")
        db.execute(
            f"INSERT INTO chunks (id, document_id, chunk_index, content) SELECT {id_}, {id_}, 0, 'text ' || n "
            f"FROM {numbers}"
        )
        db.execute(f"INSERT INTO chunk_embeddings (chunk_id, embedding) SELECT {id_}, {VECTOR} FROM {numbers}")

    def live_on(self, db: Database, *, first: int) -> None:
        self.insert(db, 3, first=first)

    def contents(self, db: Database) -> list[Any]:
        tables = ("chunk_embeddings", "embedding_models", "embedding_models_retired")
        rows: list[Any] = []
        for table in tables:
            if db.columns(table):
                rows += db.execute(
                    f"SELECT to_jsonb(t) - 'updated_at' - 'created_at' - 'embedding' FROM {table} t ORDER BY id"
                )
        return rows


MODELS = ModelsSystem(
    section="models", table="chunk_embeddings", index="", rows="", change="", adopted=ADOPTED, models=False
)


@pytest.fixture
def db(database_url: str) -> Database:
    return Database(database_url)


@pytest.fixture
def run(db: Database, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setenv("DATABASE_URL", db.url)
    monkeypatch.setenv("AMPRENTA_TABLE", "chunk_embeddings")

    def invoke(*arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(main, list(arguments))
        assert result.exit_code == code, result.output
        return result

    return invoke


def test_what_is_made_is_checked_taken_back_and_made_again(db: Database) -> None:
    MODELS.upgrade(db)
    MODELS.check(db)
    assert db.columns("chunk_embeddings")["model_id"] == "integer"
    MODELS.downgrade(db)
    assert [db.columns(table) for table in ("documents", "chunks", "chunk_embeddings", "embedding_models")] == [{}] * 4
    MODELS.upgrade(db)
    MODELS.check(db)


def test_adopted_tables_are_as_they_were_after_a_downgrade_but_for_what_is_retired(db: Database) -> None:
    MODELS.adopt(db)
    columns = db.columns("chunk_embeddings")
    MODELS.upgrade(db)
    MODELS.check(db)
    assert db.execute("SELECT DISTINCT model_id FROM chunk_embeddings") == [(1,)]
    assert db.execute("SELECT model_name, dimension FROM embedding_models") == [(ADA, DIMENSION)]
    assert db.execute("SELECT target, column_name, searched FROM model_column") == [
        ("chunk_embeddings.embedding", "embedding", True)
    ]
    MODELS.downgrade(db)
    assert db.columns("chunk_embeddings") == {**columns, "model_id_retired": "integer"}
    MODELS.insert(db, 1, first=100)
    MODELS.upgrade(db)
    MODELS.check(db)
    assert db.execute("SELECT DISTINCT model_id FROM chunk_embeddings") == [(1,)]


def test_of_an_unusual_dimension_the_settings_say_the_model(db: Database) -> None:
    db.execute("CREATE EXTENSION vector")
    for statement in ADOPTED[1:]:
        db.execute(statement.replace("1536", "256"))
    with pytest.raises(SchemaMismatch, match="nothing says which model the vectors in chunk_embeddings"):
        MODELS.upgrade(db)
    db.upgrade(section="models", embedding_model="ours")
    assert db.execute("SELECT model_name, dimension FROM embedding_models") == [("ours", 256)]


class OldApplication:
    """An application that knows nothing of models, in a thread, with every kind of statement that it has."""

    def __init__(self, db: Database) -> None:
        self.errors: list[BaseException] = []
        self.rounds = 0
        self._url = db.url
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> OldApplication:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        vector = str([0.25] * DIMENSION)
        try:
            connection = psycopg2.connect(self._url)
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '10s'")
                while not self._over.is_set():
                    self._use(cursor, vector, f"old {self.rounds}")
                    self.rounds += 1
            connection.close()
        except BaseException as error:
            self.errors.append(error)

    @staticmethod
    def _use(cursor: Any, vector: str, name: str) -> None:
        keys = [f"{name} {number}" for number in range(2)]
        for key in keys:
            cursor.execute("INSERT INTO documents VALUES (md5(%s)::uuid, 't')", (key,))
            cursor.execute("INSERT INTO chunks VALUES (md5(%s)::uuid, md5(%s)::uuid, 0, 'old text')", (key, key))
        cursor.execute(
            "INSERT INTO chunk_embeddings (chunk_id, embedding) VALUES (md5(%s)::uuid, %s)", (keys[0], vector)
        )
        cursor.execute(
            "INSERT INTO chunk_embeddings (chunk_id, embedding) VALUES (md5(%s)::uuid, %s) "
            "ON CONFLICT (chunk_id) DO UPDATE SET embedding = excluded.embedding",
            (keys[0], vector),
        )
        cursor.execute("SELECT md5(%s)::uuid", (keys[1],))
        [key] = cursor.fetchone()
        cursor.copy_expert("COPY chunk_embeddings (chunk_id, embedding) FROM STDIN", io.StringIO(f"{key}\t{vector}\n"))
        cursor.execute("UPDATE chunk_embeddings SET embedding = %s WHERE chunk_id = %s", (vector, key))
        cursor.execute(
            "SELECT c.content FROM chunk_embeddings e JOIN chunks c ON c.id = e.chunk_id "
            "ORDER BY e.embedding <=> %s LIMIT 5",
            (vector,),
        )
        assert len(cursor.fetchall()) == 5
        cursor.execute("DELETE FROM documents WHERE id IN (SELECT md5(k)::uuid FROM unnest(%s) k)", (keys,))


def test_the_old_application_runs_through_the_upgrade_and_the_downgrade(db: Database) -> None:
    MODELS.adopt(db)
    with OldApplication(db) as application:
        for _ in range(2):
            MODELS.upgrade(db)
            MODELS.downgrade(db)
        MODELS.upgrade(db)
        seen = application.rounds
        while application.rounds < seen + 2 and not application.errors:
            pass
    assert application.errors == []
    assert application.rounds > 2


def test_killed_at_any_commit_the_same_command_finishes_the_work(copies: Copies) -> None:  # noqa: F811
    with copies(None) as undisturbed:
        MODELS.adopt(undisturbed)
        way = (("upgrade", "head"), ("downgrade", "base"), ("upgrade", "head"))
        for number, (command, revision) in enumerate(way, 1):
            with copies(name_of(undisturbed)) as killed:
                finish(undisturbed, MODELS, command, revision)
                for commits in itertools.count(1):
                    code = wait_for(start(killed, MODELS, command, revision, commits=commits))
                    if code == 0:
                        break
                    assert code == -signal.SIGKILL
                assert commits > 1, "nothing was killed"
                assert fingerprint(killed) == fingerprint(undisturbed), command
                assert MODELS.contents(killed) == MODELS.contents(undisturbed), command
            MODELS.live_on(undisturbed, first=1000 * number)


def test_killed_at_any_commit_the_other_command_leads_back(copies: Copies) -> None:  # noqa: F811
    with copies(None) as undisturbed:
        MODELS.adopt(undisturbed)
        MODELS.upgrade(undisturbed)
        MODELS.downgrade(undisturbed)
        for commits in itertools.count(1):
            with copies(name_of(undisturbed)) as killed:
                code = wait_for(start(killed, MODELS, "upgrade", "head", commits=commits))
                MODELS.downgrade(killed)
                assert fingerprint(killed) == fingerprint(undisturbed)
                if code == 0:
                    break
        assert commits > 1


def test_the_column_is_renamed_once_the_old_application_is_gone(
    db: Database, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    MODELS.adopt(db)
    MODELS.upgrade(db)
    monkeypatch.setattr("amprenta_vectors.stores.pgvector.models.LOOK_SECONDS", 3600.0)
    engine = create_engine(Settings.load(database_url=db.url))
    store = PgVectorStore(engine, CHUNK_EMBEDDINGS, {"model_id": ""}, StoreOptions())
    asked = [0.5] * DIMENSION
    assert len(store.query(asked, top_k=5)) == 5
    assert "would fail" in run("models", "contract", code=2).output
    refused = run("models", "contract", "--yes", code=2)
    assert "unique index chunk_embeddings_chunk_id_key on (chunk_id) alone" in refused.output
    db.execute("ALTER TABLE chunk_embeddings DROP CONSTRAINT chunk_embeddings_chunk_id_key")
    run("models", "contract", "--yes")
    assert "embedding" not in db.columns("chunk_embeddings")
    # A running store looks again where the column is gone.
    assert len(store.query(asked, top_k=5)) == 5
    assert "nothing is left to rename" in run("models", "contract", "--yes", code=2).output
    MODELS.check(db)
    store.close()
    engine.dispose()


def test_each_step_of_the_setup_is_repeatable(
    db: Database, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    first = run("setup", "init").output
    assert "pg_dump --format=custom" in first
    assert "pg_restore --clean --if-exists" in first
    assert "next: python scripts/setup_migrations.py run" in run("setup", "status", code=2).output
    for _ in range(2):
        assert "the schema is at its last revision" in run("setup", "run").output
        listed = run("setup", "setup-models").output
        for name, dimension in ((ADA, 1536), ("all-MiniLM-L6-v2", 384), ("text-embedding-3-large", 3072)):
            assert f"{name}: {dimension} dimensions in embedding_{dimension}" in listed
    assert "revision: models_0003" in run("setup", "status").output
    assert list((tmp_path / "logs").iterdir())
    waiting = db.execute("SELECT index_name, definition FROM migration_index ORDER BY index_name")
    names = [f"idx_embeddings_hnsw_{dimension}" for dimension in (1536, 3072, 384, 768)]
    assert [row[0] for row in waiting] == names
    assert "halfvec(3072)" in waiting[1][1]
    assert db.execute("SELECT count(*) FROM model_column WHERE written") == [(1,)]


def test_columns_of_models_are_retired_with_the_section_and_come_back(
    db: Database, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amprenta_vectors.moves.models.migrating.SEEN_SECONDS", 0.0)
    MODELS.adopt(db)
    columns = db.columns("chunk_embeddings")
    MODELS.upgrade(db)
    db.execute("ALTER TABLE chunk_embeddings DROP CONSTRAINT chunk_embeddings_chunk_id_key")
    run("models", "add", "small", "--provider", "wordllama", "--dimension", "64")
    run("models", "migrate", "--to", "small")
    before = db.execute("SELECT chunk_id, embedding_64 FROM chunk_embeddings WHERE model_id = 2 ORDER BY chunk_id")
    assert len(before) == 20
    MODELS.check(db)
    MODELS.downgrade(db)
    left = {name for name in db.columns("chunk_embeddings") if not name.endswith("_retired")}
    assert left == set(columns)
    assert db.index_is_valid("idx_embeddings_hnsw_64") is None
    MODELS.upgrade(db)
    again = db.execute("SELECT chunk_id, embedding_64 FROM chunk_embeddings WHERE model_id = 2 ORDER BY chunk_id")
    assert again == before
    assert "small" in run("models", "list").output
    run("models", "migrate", "--to", "small")
    assert db.index_is_valid("idx_embeddings_hnsw_64") is True
