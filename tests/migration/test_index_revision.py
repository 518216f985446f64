"""The revision that builds the index: concurrently, once, never left invalid, never somebody else's."""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import psycopg2
import pytest
import sqlalchemy as sa
from migrating import Database, adopted_at, prepared, settings_at, wait_until

from amprenta_vectors.backfill.database.index import build_deferred, defer_indexes
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.registry import RAG_CHUNKS
from amprenta_vectors.schema.vector_table import VectorTable

INDEX = "idx_rag_chunks_embedding"
BUILD = f"CREATE INDEX CONCURRENTLY {INDEX} ON rag_chunks USING hnsw (embedding vector_cosine_ops)"
BUILDING = "idx_rag_chunks_embedding_building"
"""What the upgrade calls the index until it is complete and marked."""
OID = "SELECT to_regclass(:name)::oid"
LIMITS = ("statement_timeout", "lock_timeout")
AT_0002 = prepared(adopted_at, "rag_0002")
AT_HEAD = prepared(adopted_at)


@contextmanager
def holding(db: Database, statement: str) -> Iterator[None]:
    """Another session's transaction that stays open after ``statement``."""
    with closing(psycopg2.connect(db.url)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        yield


def build(db: Database) -> None:
    """Build the index as an administrator does, in a session of its own."""
    with closing(psycopg2.connect(db.url, application_name="builder")) as builder:
        builder.autocommit = True
        builder.cursor().execute(BUILD)


def leave_invalid_index(db: Database) -> None:
    """Break a concurrent build off in its midst."""
    with holding(db, "UPDATE rag_chunks SET content = content"), ThreadPoolExecutor(1) as pool:
        building = pool.submit(build, db)
        wait_until(lambda: db.index_is_valid(INDEX) is False)
        db.execute("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'builder'")
        with pytest.raises(psycopg2.errors.QueryCanceled):
            building.result()
    assert db.index_is_valid(INDEX) is False


def defer(engine: sa.Engine) -> VectorTable:
    """Defer the index as a backfill does; returns the vector table it is on."""
    with engine.connect() as connection:
        table = resolve_table(connection, RAG_CHUNKS)
    assert defer_indexes(engine, table) == [INDEX]
    return table


@AT_0002
def test_an_invalid_leftover_is_rebuilt(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    leave_invalid_index(db)
    db.upgrade()
    assert db.index_is_valid(INDEX)
    assert f"{INDEX} was invalid, left by an interrupted build: dropped" in caplog.text


@AT_0002
def test_an_upgrade_killed_during_the_build_leaves_an_index_that_the_next_one_finishes_as_its_own(
    db: Database, start: Callable[..., subprocess.Popen[str]]
) -> None:
    with holding(db, "UPDATE rag_chunks SET content = content"):
        killed = start("alembic", "upgrade", "head")
        wait_until(lambda: db.index_is_valid(BUILDING) is False)
        built = db.scalar(OID, name=BUILDING)
        killed.kill()
        killed.wait()
    # PostgreSQL does not notice that its client is gone before the build is done.
    wait_until(lambda: db.index_is_valid(BUILDING))
    db.upgrade()
    assert db.scalar(OID, name=INDEX) == built
    assert db.index_is_valid(BUILDING) is None
    db.downgrade("rag_0002")
    assert db.index_is_valid(INDEX) is None


@AT_0002
def test_an_index_that_another_session_builds_is_waited_for(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    builder = threading.Thread(target=build, args=(db,))
    upgrade = threading.Thread(target=db.upgrade, args=("rag_0003",))
    with caplog.at_level(logging.INFO), holding(db, "UPDATE rag_chunks SET content = content"):
        builder.start()
        wait_until(lambda: db.index_is_valid(INDEX) is False)
        built = db.scalar(OID, name=INDEX)
        upgrade.start()
        wait_until(lambda: f"{INDEX} is being built by pid" in caplog.text)
        assert upgrade.is_alive()
    builder.join()
    upgrade.join()
    assert db.index_is_valid(INDEX)
    assert db.scalar(OID, name=INDEX) == built


@AT_0002
def test_writers_go_on_while_the_index_is_built(db: Database) -> None:
    upgrade = threading.Thread(target=db.upgrade, args=("rag_0003",))
    with holding(db, "UPDATE rag_chunks SET content = content WHERE chunk_id = 'chunk-1'"):
        upgrade.start()
        wait_until(lambda: db.index_is_valid(BUILDING) is False)
        with closing(psycopg2.connect(db.url)) as writer, writer.cursor() as cursor:
            cursor.execute("SET statement_timeout = '60s'")
            cursor.execute("UPDATE rag_chunks SET content = 'new' WHERE chunk_id = 'chunk-2'")
            writer.commit()
    upgrade.join()
    assert db.index_is_valid(INDEX)


@AT_0002
def test_the_roles_own_time_limits_do_not_end_the_build(db: Database) -> None:
    name = db.scalar("SELECT current_database()")
    for limit in LIMITS:
        db.execute(f"ALTER DATABASE {name} SET {limit} = '45s'")
    upgrade = threading.Thread(target=db.upgrade, args=("rag_0003",))
    with (
        settings_at("CREATE INDEX CONCURRENTLY", *LIMITS) as unlimited,
        settings_at("UPDATE amprenta_version_rag", *LIMITS) as restored,
    ):
        with holding(db, "UPDATE rag_chunks SET content = content"):
            upgrade.start()
            wait_until(lambda: db.index_is_valid(BUILDING) is False and db.waits())
            assert upgrade.is_alive()
        upgrade.join()
    assert (unlimited, restored) == ([("0", "0")], [("45s", "45s")])
    assert db.index_is_valid(INDEX)


@AT_HEAD
def test_an_index_whose_building_a_backfill_deferred_is_not_built_by_the_upgrade(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_engine(Settings.load(database_url=db.url))
    table = defer(engine)
    db.execute("UPDATE amprenta_version_rag SET version_num = 'rag_0002'")
    with caplog.at_level(logging.INFO, "amprenta_vectors.ddl"):
        db.upgrade()
    assert db.index_is_valid(INDEX) is None
    assert f"index {INDEX} is left to the backfill that deferred it" in caplog.text
    assert build_deferred(engine, table, threading.Event()) == [INDEX]
    assert db.index_is_valid(INDEX)


@AT_HEAD
def test_a_downgrade_drops_an_index_that_was_deferred_and_built_again(db: Database) -> None:
    engine = create_engine(Settings.load(database_url=db.url))
    build_deferred(engine, defer(engine), threading.Event())
    db.downgrade("rag_0002")
    assert db.index_is_valid(INDEX) is None


@AT_HEAD
def test_a_downgrade_forgets_an_index_that_is_deferred(db: Database) -> None:
    defer(create_engine(Settings.load(database_url=db.url)))
    db.downgrade("rag_0002")
    assert db.scalar("SELECT count(*) FROM migration_index") == 0
    db.upgrade()
    assert db.index_is_valid(INDEX)


@AT_0002
def test_an_index_of_that_name_that_was_there_is_kept_and_not_marked_as_ours(db: Database) -> None:
    db.execute(BUILD)
    built = db.scalar(OID, name=INDEX)
    db.upgrade()
    assert db.scalar("SELECT obj_description(to_regclass(:name))", name=INDEX) is None
    db.downgrade("rag_0002")
    assert db.scalar(OID, name=INDEX) == built


@AT_0002
def test_an_index_that_another_role_builds_is_waited_for_although_its_progress_is_hidden(
    db: Database, as_role: Callable[..., Database], caplog: pytest.LogCaptureFixture
) -> None:
    db.execute("CREATE INDEX ON rag_chunks (document_id)")
    migrator = as_role("hidden_migrator")
    for table in ("rag_chunks", "migration_run", "migration_index", "amprenta_version_rag"):
        db.execute(f"ALTER TABLE {table} OWNER TO hidden_migrator")

    builder = threading.Thread(target=build, args=(db,))
    upgrade = threading.Thread(target=migrator.upgrade, args=("rag_0003",))
    with caplog.at_level(logging.INFO), holding(db, "UPDATE rag_chunks SET content = content"):
        builder.start()
        wait_until(lambda: db.index_is_valid(INDEX) is False)
        built = db.scalar(OID, name=INDEX)
        assert migrator.scalar("SELECT count(index_relid) FROM pg_stat_progress_create_index") == 0
        upgrade.start()
        wait_until(lambda: f"{INDEX} is being built by pid" in caplog.text)
    builder.join()
    upgrade.join()
    assert db.index_is_valid(INDEX)
    assert db.scalar(OID, name=INDEX) == built


THEIRS = {
    "cosine": ("vector(3)", "hnsw (embedding vector_cosine_ops)"),
    "other options": ("vector(3)", "hnsw (embedding vector_cosine_ops) WITH (m = 8)"),
    "halfvec": ("halfvec(3)", "hnsw (embedding halfvec_cosine_ops)"),
    "cast to halfvec": ("vector(3072)", "hnsw ((embedding::halfvec(3072)) halfvec_cosine_ops)"),
}
NOT_EQUIVALENT = {
    "other operator class": "hnsw (embedding vector_l2_ops)",
    "other method": "ivfflat (embedding vector_cosine_ops) WITH (lists = 1)",
    "partial": "hnsw (embedding vector_cosine_ops) WHERE chunk_id > 'm'",
    "cast": "hnsw ((embedding::halfvec(3)) halfvec_cosine_ops)",
}


@pytest.mark.parametrize(("type_", "index"), THEIRS.values(), ids=THEIRS)
def test_an_index_under_another_name_that_does_the_same_is_used_and_never_dropped(
    adopted: Database, caplog: pytest.LogCaptureFixture, type_: str, index: str
) -> None:
    adopted.execute("CREATE EXTENSION vector")
    adopted.execute(f"ALTER TABLE rag_chunks ADD embedding {type_}")
    adopted.execute(f"CREATE INDEX theirs ON rag_chunks USING {index}")
    built = adopted.scalar(OID, name="theirs")
    with caplog.at_level(logging.INFO):
        adopted.upgrade()
    assert adopted.index_is_valid(INDEX) is None
    assert f"index theirs does the same as {INDEX}: used instead" in caplog.text
    adopted.downgrade()
    assert adopted.scalar(OID, name="theirs") == built
    assert adopted.scalar("SELECT obj_description(to_regclass('theirs'))") is None


@pytest.mark.parametrize("index", NOT_EQUIVALENT.values(), ids=NOT_EQUIVALENT)
def test_an_index_that_answers_other_queries_does_not_stand_in_for_ours(adopted: Database, index: str) -> None:
    adopted.execute("CREATE EXTENSION vector")
    adopted.execute("ALTER TABLE rag_chunks ADD embedding vector(3)")
    adopted.execute(f"CREATE INDEX theirs ON rag_chunks USING {index}")
    adopted.upgrade()
    assert adopted.index_is_valid(INDEX)
    assert adopted.index_is_valid("theirs")


@AT_0002
def test_an_invalid_index_of_theirs_is_neither_used_nor_dropped(db: Database) -> None:
    leave_invalid_index(db)
    db.execute(f"ALTER INDEX {INDEX} RENAME TO theirs")
    db.upgrade()
    assert db.index_is_valid(INDEX)
    assert db.index_is_valid("theirs") is False


@AT_0002
def test_a_long_transaction_delays_the_build_and_is_named(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    upgrade = threading.Thread(target=db.upgrade, args=("rag_0003",))
    with closing(psycopg2.connect(db.url, application_name="nightly report")) as report, caplog.at_level("INFO"):
        report.set_session(isolation_level="REPEATABLE READ")
        with report.cursor() as cursor:
            cursor.execute("SELECT 'a secret', pg_sleep(0.1) FROM rag_chunks LIMIT 1")
            upgrade.start()
            named = (
                f"build index {INDEX} (hnsw): waiting for pid {report.info.backend_pid} (user postgres, application "
            )
            wait_until(lambda: named + "nightly report, idle in transaction, transaction open for" in caplog.text)
            assert upgrade.is_alive()
    upgrade.join()
    assert db.index_is_valid(INDEX)
    assert "a secret" not in caplog.text


@AT_HEAD
def test_a_long_transaction_delays_the_dropping_and_is_named(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    downgrade = threading.Thread(target=db.downgrade, args=("rag_0002",))
    with holding(db, "UPDATE rag_chunks SET content = content"), caplog.at_level(logging.INFO):
        downgrade.start()
        wait_until(lambda: f"drop index {INDEX}: waiting for pid" in caplog.text)
    downgrade.join()
    assert db.index_is_valid(INDEX) is None
