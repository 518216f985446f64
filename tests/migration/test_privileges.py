"""Roles with what docs/grants.md gives them do their work; what is missing is said with the grant that mends it."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import psycopg2
import pytest
from click.testing import CliRunner
from databases import janitor
from migrating import ROOT, Database, wait_until

from amprenta_vectors.backfill.database.preflight import check_target
from amprenta_vectors.backfill.database.stats_view import refresh_stats
from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.embedders.registered import open_registered
from amprenta_vectors.errors import AmprentaError, ServerUnsuitable
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.registry import PRODUCTS, RAG_CHUNKS
from amprenta_vectors.stores.composites.dual import DualStore
from amprenta_vectors.stores.composites.shadow import Answered, Asked, ShadowLog
from amprenta_vectors.stores.pgvector.models import _warn_unreadable
from amprenta_vectors.stores.pgvector.options import StoreOptions
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Record

Alembic = Callable[..., subprocess.CompletedProcess[str]]
MIGRATOR, WORKER, APPLICATION = ROLES = ("amprenta_migrator", "amprenta_worker", "amprenta_application")
RECORDS = (
    "migration_run",
    "migration_progress",
    "migration_quarantine",
    "migration_insert",
    "migration_text",
    "migration_limit",
    "migration_event",
    "shadow_query",
    "vector_forgotten",
    "vector_setting",
    "vector_outbox",
    "vector_row_mark",
    "migration_index",
    "embedding_models",
    "model_column",
    "model_process",
)


def documented() -> list[str]:
    """Every SQL statement of the page, in its order."""
    blocks = re.findall(r"```sql\n(.*?)```", Path(ROOT, "docs/grants.md").read_text(), re.DOTALL)
    return [statement.strip() for block in blocks for statement in block.split(";") if statement.strip()]


def inline(role: str) -> list[str]:
    """Every grant to a role that stands in the text of the page."""
    return re.findall(rf"`(GRANT [^`]+ TO {role})`", Path(ROOT, "docs/grants.md").read_text())


@pytest.fixture
def app(postgres_server: EmbeddedPostgres) -> Iterator[Database]:
    """Database ``app``, in which nobody may do anything but what is granted, with the table of ``app_owner``."""
    with janitor(postgres_server, "app"):
        db = Database(postgres_server.url("app"))
        db.execute("REVOKE ALL ON DATABASE app FROM PUBLIC")
        db.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
        db.execute("CREATE ROLE app_owner")
        db.execute(
            "CREATE TABLE rag_chunks (chunk_id text PRIMARY KEY, content text, updated_at timestamptz DEFAULT now())"
        )
        db.execute("ALTER TABLE rag_chunks OWNER TO app_owner")
        db.execute("INSERT INTO rag_chunks SELECT 'chunk-' || n FROM generate_series(1, 100) n")
        yield db
        for role in (*ROLES, "app_owner"):
            if db.execute("SELECT FROM pg_roles WHERE rolname = :role", role=role):
                db.execute(f"DROP OWNED BY {role} CASCADE")
        for role in (*ROLES, "app_owner"):
            db.execute(f"DROP ROLE IF EXISTS {role}")


@pytest.fixture
def granted(app: Database) -> Database:
    """The same, with the roles of the page."""
    for statement in documented():
        app.execute(statement)
    return app


def as_role(db: Database, role: str) -> Database:
    return Database(db.url, role=role)


def check_as_worker(db: Database) -> None:
    with create_engine(Settings.load(database_url=as_role(db, WORKER).url)).connect() as connection:
        check_target(connection, resolve_table(connection, RAG_CHUNKS), insert=True)


def refused(done: subprocess.CompletedProcess[str], *messages: str) -> None:
    assert done.returncode == 2, done.stderr
    for message in messages:
        assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_documented_grants_suffice_for_each_role(granted: Database) -> None:
    migrator = as_role(granted, MIGRATOR)
    migrator.upgrade(vector_dimension=3)
    assert granted.index_is_valid("idx_rag_chunks_embedding")

    check_as_worker(granted)
    worker = as_role(granted, WORKER)
    for table in RECORDS:
        for privilege in ("SELECT", "INSERT", "UPDATE", "DELETE"):
            assert worker.scalar("SELECT has_table_privilege(:table, :privilege)", table=table, privilege=privilege)
    worker.execute(
        "INSERT INTO migration_run (vector_table, target, state, desired_state) VALUES ('t', 't', 'planned', 'running')"
    )

    engine = create_engine(Settings.load(database_url=as_role(granted, APPLICATION).url))
    store = PgVectorStore(engine, RAG_CHUNKS, {"namespace": ""})
    store.upsert([Record("chunk-1", [1.0, 2.0, 3.0]), Record("new", [1.0, 0.0, 0.0])])
    assert [hit.key for hit in store.query([1.0, 0.0, 0.0], top_k=2)] == ["new", "chunk-1"]
    with pytest.raises(AmprentaError, match="cannot write to vector_row_mark"):
        store.delete(["chunk-1"])
    with pytest.raises(AmprentaError, match="permission denied for table vector_outbox"):
        store.open_outbox().status()
    migrator.upgrade(section="products", vector_dimension=3)
    for statement in inline(APPLICATION):
        migrator.execute(statement)
    assert as_role(granted, APPLICATION).execute("SELECT * FROM product_embedding_stats") == []
    store.delete(["new"])
    dual = DualStore(store, store, store.open_outbox(), primary=store)
    dual.upsert([Record("both", [1.0, 0.0, 0.0])])
    dual.delete(["both"])
    assert store.open_outbox().status().pending == 0
    asked = Asked(np.ones(3, np.float32), 1, None, [], 1.0)
    ShadowLog(engine, "one", "other").keep(asked, Answered(1.0, error="none"), 0)
    dual.close()
    engine.dispose()

    migrator.downgrade()
    migrator.upgrade()
    assert granted.scalar("SELECT count(*) FROM rag_chunks") == 101


def models(db: Database, role: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Type a command on models, or another, as a role."""
    monkeypatch.setenv("DATABASE_URL", as_role(db, role).url)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output


@pytest.fixture
def two_models(granted: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """The same with a table of two models, which the migrator has added."""
    as_role(granted, MIGRATOR).upgrade(vector_dimension=3)
    granted.execute("UPDATE rag_chunks SET content = 'the text of ' || chunk_id")
    models(granted, MIGRATOR, monkeypatch, "models", "add", "large", "--column", "embedding")
    models(granted, MIGRATOR, monkeypatch, "models", "add", "small", "--dimension", "64", "--provider", "wordllama")
    return granted


def application_store(db: Database) -> PgVectorStore:
    engine = create_engine(Settings.load(database_url=as_role(db, APPLICATION).url))
    options = StoreOptions(open_model=partial(open_registered, settings=Settings.load(database_url="postgresql://")))
    return PgVectorStore(engine, RAG_CHUNKS, {"namespace": ""}, options, owns_engine=True)


def test_the_documented_grants_suffice_to_change_the_model(
    two_models: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for statement in inline(APPLICATION):
        if "product" not in statement:
            as_role(two_models, MIGRATOR).execute(statement)
    with closing(application_store(two_models)) as store:
        store.upsert([Record("chunk-1", [1.0, 2.0, 3.0], "a text of the application")])
        assert as_role(two_models, WORKER).scalar("SELECT count(*) FROM model_process") == 1
        assert two_models.scalar("SELECT count(embedding_64) FROM rag_chunks") == 1
        models(two_models, WORKER, monkeypatch, "models", "migrate", "--to", "small")
        monkeypatch.setenv("AMPRENTA_TABLE", "rag_chunks.embedding_64")
        models(two_models, MIGRATOR, monkeypatch, "index", "build")
        monkeypatch.delenv("AMPRENTA_TABLE")
        models(two_models, WORKER, monkeypatch, "models", "switch", "small")
        store.models.look_again()
        assert [hit.key for hit in store.search("a text of the application", top_k=1)] == ["chunk-1"]
        models(two_models, MIGRATOR, monkeypatch, "models", "retire", "large")
    assert as_role(two_models, WORKER).scalar("SELECT count(*) FROM model_process") == 0


def test_a_role_that_may_only_read_and_write_its_table_does_so_beside_models_that_it_cannot_see(
    two_models: Database, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_unreadable.cache_clear()
    for _ in range(2):
        with closing(application_store(two_models)) as store:
            store.upsert([Record("chunk-1", [1.0, 2.0, 3.0], "changed"), Record("new", [1.0, 0.0, 0.0], "new")])
            assert [hit.key for hit in store.query([1.0, 0.0, 0.0], top_k=2)] == ["new", "chunk-1"]
            assert set(store.fetch(["chunk-1", "new"])) == {"chunk-1", "new"}
            assert (store.model, store.count()) == (None, 2)
    warned = [message for message in caplog.messages if "may not read which models rag_chunks has" in message]
    assert caplog.messages == warned[:1]
    assert "GRANT SELECT ON embedding_models, model_column" in warned[0]


@pytest.mark.parametrize("read_only", [False, True])
def test_a_role_that_cannot_note_itself_uses_its_models_all_the_same(
    two_models: Database, caplog: pytest.LogCaptureFixture, read_only: bool
) -> None:
    two_models.execute("GRANT SELECT ON embedding_models, model_column TO amprenta_application")
    with closing(application_store(two_models)) as store:
        store.upsert([Record("chunk-1", [1.0, 2.0, 3.0], "a text")])
    assert two_models.scalar("SELECT count(embedding_64) FROM rag_chunks") == 1
    if read_only:
        two_models.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON model_process TO amprenta_application")
        two_models.execute("ALTER ROLE amprenta_application SET default_transaction_read_only = on")
    with closing(application_store(two_models)) as store:
        assert [hit.key for hit in store.search("a text", top_k=1, model="small")] == ["chunk-1"]
    assert two_models.execute("SELECT * FROM model_process") == []
    assert caplog.messages == []


def test_a_worker_refreshes_the_counts_of_products_by_the_documented_grant(granted: Database) -> None:
    as_role(granted, MIGRATOR).upgrade(section="products", vector_dimension=3)
    engine = create_engine(Settings.load(database_url=as_role(granted, WORKER).url))
    assert "permission denied" in str(refresh_stats(engine, PRODUCTS))
    for grant in inline(WORKER) + inline(MIGRATOR):
        granted.execute(grant)
    assert refresh_stats(engine, PRODUCTS) is None
    engine.dispose()


@pytest.mark.parametrize(
    ("revoked", "message"),
    [
        ("REVOKE UPDATE ON rag_chunks FROM amprenta_worker", "this role lacks UPDATE on rag_chunks"),
        ("REVOKE TEMP ON DATABASE app FROM amprenta_worker", "this role may not make temporary tables"),
    ],
)
def test_a_worker_that_lacks_something_is_told_what(granted: Database, revoked: str, message: str) -> None:
    as_role(granted, MIGRATOR).upgrade(vector_dimension=3)
    granted.execute(revoked)
    with pytest.raises(ServerUnsuitable, match=message) as caught:
        check_as_worker(granted)
    assert caught.value.exit_code == 2
    assert "GRANT" in caught.value.hint


def typed(done: subprocess.CompletedProcess[str]) -> str:
    """The statement that a message says to run."""
    return done.stderr.rsplit("hint: ", 1)[1].split(", or: ")[0].strip()


def test_a_migrator_that_may_make_nothing_in_the_schema_is_told_what_to_grant(
    granted: Database, alembic: Alembic
) -> None:
    granted.execute("REVOKE CREATE ON SCHEMA public FROM amprenta_migrator")
    url = as_role(granted, MIGRATOR).url
    done = alembic("upgrade", "head", DATABASE_URL=url)
    refused(done, "role amprenta_migrator may not make tables in schema public")
    granted.execute(typed(done))
    done = alembic("upgrade", "head", DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    granted.execute("REVOKE CREATE ON SCHEMA public FROM amprenta_migrator")
    done = alembic("upgrade", "head", DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    granted.execute("DROP INDEX idx_rag_chunks_embedding")
    granted.execute("UPDATE amprenta_version_rag SET version_num = 'rag_0002'")
    done = alembic("upgrade", "head", DATABASE_URL=url)
    refused(done, "role amprenta_migrator may not make anything in schema public")
    granted.execute(typed(done))
    done = alembic("upgrade", "head", DATABASE_URL=url)
    assert done.returncode == 0, done.stderr


def test_a_migrator_that_does_not_own_the_table_is_told_what_to_grant(granted: Database, alembic: Alembic) -> None:
    granted.execute("REVOKE app_owner FROM amprenta_migrator")
    url = as_role(granted, MIGRATOR).url
    before = granted.columns("rag_chunks")
    done = alembic("upgrade", "head", DATABASE_URL=url)
    refused(done, "role amprenta_migrator may not alter table rag_chunks: app_owner owns it")
    assert granted.columns("rag_chunks") == before
    granted.execute(typed(done))
    done = alembic("upgrade", "head", DATABASE_URL=url)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("seen", [True, False], ids=["granted", "revoked"])
def test_another_roles_transaction_is_named_with_its_age_only_to_who_may_see_it(
    granted: Database, caplog: pytest.LogCaptureFixture, seen: bool
) -> None:
    if not seen:
        granted.execute("REVOKE pg_read_all_stats FROM amprenta_migrator")
    upgrade = threading.Thread(target=as_role(granted, MIGRATOR).upgrade)
    expected = "idle in transaction, transaction open for" if seen else "lacks pg_read_all_stats)"
    with closing(psycopg2.connect(granted.url)) as holder, caplog.at_level("INFO"):
        holder.cursor().execute("SELECT FROM rag_chunks")
        upgrade.start()
        wait_until(lambda: f"waiting for pid {holder.info.backend_pid} (user postgres, " in caplog.text)
    upgrade.join()
    assert expected in caplog.text
    assert granted.index_is_valid("idx_rag_chunks_embedding")


def test_a_role_that_may_only_read_is_told_how_to_write_and_may_ask_where_the_schema_is(
    granted: Database, alembic: Alembic
) -> None:
    granted.execute("ALTER ROLE amprenta_migrator SET default_transaction_read_only = on")
    url = as_role(granted, MIGRATOR).url
    done = alembic("upgrade", "head", DATABASE_URL=url)
    refused(done, "role amprenta_migrator may only read: default_transaction_read_only is on")
    assert alembic("current", DATABASE_URL=url).returncode == 0
    granted.execute(typed(done))
    done = alembic("upgrade", "head", DATABASE_URL=url)
    assert done.returncode == 0, done.stderr


def test_a_standby_is_refused_before_anything_and_by_the_worker_too(
    own_server: EmbeddedPostgres, alembic: Alembic
) -> None:
    db = Database(own_server.url())
    db.upgrade(vector_dimension=3)
    own_server.stop()
    Path(own_server.folder, "standby.signal").touch(mode=0o644)
    own_server.start()
    assert db.scalar("SELECT pg_is_in_recovery()")
    refused(alembic("upgrade", "head", DATABASE_URL=db.url), "this server is a read-only standby", "at the primary")
    current = alembic("current", DATABASE_URL=db.url)
    assert "rag_0004 (head)" in current.stdout, current.stderr
    with (
        create_engine(Settings.load(database_url=db.url)).connect() as connection,
        pytest.raises(ServerUnsuitable, match="read-only standby"),
    ):
        check_target(connection, resolve_table(connection, RAG_CHUNKS), insert=False)
