"""Several upgrades at once, a killed one, and tables that other sessions hold."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing

import psycopg2
import pytest
from migrating import Database, wait_until
from systems import DOCUMENTS, PRODUCTS, System

from amprenta_vectors import migrate
from amprenta_vectors.config import Settings
from amprenta_vectors.db import MIGRATION_LOCK, create_engine, migration_lock
from amprenta_vectors.ddl import blockers, locking
from amprenta_vectors.errors import AmprentaError

Start = Callable[..., subprocess.Popen[str]]
INDEX = "idx_rag_chunks_embedding"
HELD = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = :low AND classid = :high AND granted"


def lock_is_held(db: Database) -> bool:
    values = {"high": MIGRATION_LOCK >> 32, "low": MIGRATION_LOCK & 0xFFFFFFFF}
    return bool(
        db.scalar(HELD + " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())", **values)
    )


def test_eight_upgrades_at_once_all_exit_0_and_work_is_done_once(adopted: Database, start: Start) -> None:
    processes = [start("alembic", "upgrade", "head") for _ in range(8)]
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, errors
    assert sum("Running upgrade rag_0003 -> rag_0004" in error for error in errors) == 1
    assert adopted.index_is_valid(INDEX)
    assert adopted.scalar("SELECT count(*) FROM migration_run") == 1


def test_a_killed_upgrade_frees_the_lock_and_the_next_one_finishes_its_work(adopted: Database, start: Start) -> None:
    with closing(psycopg2.connect(adopted.url)) as holder:
        holder.cursor().execute("SELECT 1 FROM rag_chunks")
        killed = start("alembic", "upgrade", "head")
        wait_until(lambda: lock_is_held(adopted) and adopted.columns("migration_run"))
        killed.kill()
        killed.wait()
        wait_until(lambda: not lock_is_held(adopted))
    adopted.upgrade(migration_lock_timeout=5)
    assert adopted.index_is_valid(INDEX)


def test_an_upgrade_that_waits_too_long_for_another_says_so(db: Database, start: Start) -> None:
    with migration_lock(create_engine(Settings.load(database_url=db.url)), 1):
        waiting = start("alembic", "upgrade", "head", AMPRENTA_MIGRATION_LOCK_TIMEOUT="0.5")
        _, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert "another migration of this database has run for more than" in err
    assert "s (pid " in err
    assert "AMPRENTA_MIGRATION_LOCK_TIMEOUT" in err
    assert "Traceback" not in err


def test_a_table_in_use_delays_the_new_column_and_queues_nobody_longer_than_one_try(
    adopted: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "LOCK_SECONDS", 1)
    adopted.upgrade("rag_0001")
    upgrade = threading.Thread(target=adopted.upgrade, args=("rag_0002",))
    waits = []
    reader = psycopg2.connect(adopted.url, options="-c statement_timeout=3s")
    reader.autocommit = True
    with closing(psycopg2.connect(adopted.url)) as holder, closing(reader), reader.cursor() as cursor:
        holder.cursor().execute("SELECT 1 FROM rag_chunks")
        upgrade.start()
        end = time.monotonic() + 4
        while time.monotonic() < end:
            began = time.monotonic()
            cursor.execute("SELECT count(*) FROM rag_chunks")
            waits.append(time.monotonic() - began)
        assert upgrade.is_alive()
    upgrade.join()
    assert adopted.columns("rag_chunks")["embedding"] == "vector(1536)"
    assert max(waits) < 2.5
    assert max(waits) > 0.5, "the upgrade was never in the way: the test shows nothing"


def test_a_table_held_for_too_long_is_named_with_what_to_do(adopted: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "LOCK_SECONDS", 0.4)
    monkeypatch.setattr(locking, "GIVE_UP_SECONDS", 0.1)
    monkeypatch.setattr(blockers, "LOOK_SECONDS", 0.1)
    with closing(psycopg2.connect(adopted.url)) as holder:
        holder.cursor().execute("SELECT 1 FROM rag_chunks")
        with pytest.raises(AmprentaError) as caught:
            adopted.upgrade()
        assert f"pid {holder.info.backend_pid} (user postgres, idle in transaction" in str(caught.value)
        assert f"pg_terminate_backend({holder.info.backend_pid})" in str(caught.value)
    assert "adding rag_chunks.embedding: another session held the table" in str(caught.value)
    adopted.upgrade()
    assert adopted.index_is_valid(INDEX)


@pytest.mark.parametrize("system", [DOCUMENTS, PRODUCTS], ids=lambda system: system.section)
def test_a_live_table_of_another_section_is_upgraded_and_queues_nobody_longer_than_one_try(
    db: Database, system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "LOCK_SECONDS", 1)
    system.adopt(db)
    waits = []
    reader = psycopg2.connect(db.url, options="-c statement_timeout=3s")
    reader.autocommit = True
    settings = Settings.load(database_url=db.url)
    with closing(psycopg2.connect(db.url)) as holder, closing(reader), reader.cursor() as cursor:
        holder.cursor().execute(f"SELECT 1 FROM {system.table}")
        upgrade = threading.Thread(target=migrate.upgrade, args=(settings, system.section))
        upgrade.start()
        end = time.monotonic() + 4
        while time.monotonic() < end:
            began = time.monotonic()
            cursor.execute(f"SELECT count(*) FROM {system.table}")
            waits.append(time.monotonic() - began)
        assert upgrade.is_alive()
    upgrade.join()
    assert db.index_is_valid(system.index)
    assert max(waits) < 2.5
    assert max(waits) > 0.5, "the upgrade was never in the way: the test shows nothing"
