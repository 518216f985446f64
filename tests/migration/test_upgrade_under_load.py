"""Several upgrades at once, a killed one, and tables that other sessions hold."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing

import psycopg2
import pytest
from migrating import Database, settings_at, wait_until
from systems import DOCUMENTS, PRODUCTS, System

from amprenta_vectors import migrate
from amprenta_vectors.config import Settings
from amprenta_vectors.db import MIGRATION_LOCK, create_engine, migration_lock
from amprenta_vectors.errors import AmprentaError
from amprenta_vectors.pg import sessions

Start = Callable[..., subprocess.Popen[str]]
INDEX = "idx_rag_chunks_embedding"
HELD = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = :low AND classid = :high AND granted"


def lock_is_held(db: Database) -> bool:
    values = {"high": MIGRATION_LOCK >> 32, "low": MIGRATION_LOCK & 0xFFFFFFFF}
    return bool(
        db.scalar(HELD + " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())", **values)
    )


def test_eight_upgrades_at_once_all_exit_0_and_work_is_done_once(
    adopted: Database, at_once: Callable[..., list[subprocess.CompletedProcess[str]]]
) -> None:
    upgrades = at_once(8, "alembic", "upgrade", "head")
    assert [done.returncode for done in upgrades] == [0] * 8, [done.stderr for done in upgrades]
    assert sum("Running upgrade rag_0003 -> rag_0004" in done.stderr for done in upgrades) == 1
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
    adopted.upgrade(migration_lock_timeout=60)
    assert adopted.index_is_valid(INDEX)


def test_an_upgrade_that_waits_too_long_for_another_says_so(
    db: Database, alembic: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    with migration_lock(create_engine(Settings.load(database_url=db.url)), 1):
        waiting = alembic("upgrade", "head", AMPRENTA_MIGRATION_LOCK_TIMEOUT="0.1")
    assert waiting.returncode == 1
    assert "another migration of this database has run for more than" in waiting.stderr
    assert "s (pid " in waiting.stderr
    assert "AMPRENTA_MIGRATION_LOCK_TIMEOUT" in waiting.stderr
    assert "Traceback" not in waiting.stderr


def read_while_held(db: Database, table: str, upgrade: threading.Thread) -> None:
    """Read a table, which another session holds as well, until an upgrade has tried three times to change it.

    Every read comes back although the table is held on, so it waited for one try at most; the server is asked how long
    a try may be, since how long a read took also tells how busy the machine is.
    """
    reader = psycopg2.connect(db.url, options="-c statement_timeout=60s")
    reader.autocommit = True
    longest = 0.0
    with (
        closing(psycopg2.connect(db.url)) as holder,
        closing(reader),
        reader.cursor() as cursor,
        settings_at((f"ALTER TABLE {table} ADD", "LOCK TABLE"), "lock_timeout") as tries,
    ):
        holder.cursor().execute(f"SELECT 1 FROM {table}")
        upgrade.start()
        deadline = time.monotonic() + 60
        # A read that waited shows that the upgrade was in the way.
        while len(tries) < 3 or longest < sessions.LOCK_SECONDS / 2:
            assert time.monotonic() < deadline
            began = time.monotonic()
            cursor.execute(f"SELECT count(*) FROM {table}")
            longest = max(longest, time.monotonic() - began)
        assert upgrade.is_alive()
        assert set(tries) == {(f"{sessions.LOCK_SECONDS * 1000:.0f}ms",)}
    upgrade.join()


def test_a_table_in_use_delays_the_new_column_and_queues_nobody_longer_than_one_try(
    adopted: Database, brief_tries: None
) -> None:
    adopted.upgrade("rag_0001")
    read_while_held(adopted, "rag_chunks", threading.Thread(target=adopted.upgrade, args=("rag_0002",)))
    assert adopted.columns("rag_chunks")["embedding"] == "vector(1536)"


def test_a_table_held_for_too_long_is_named_with_what_to_do(
    adopted: Database, brief_tries: None, give_up_when_named: None
) -> None:
    with closing(psycopg2.connect(adopted.url)) as holder:
        holder.cursor().execute("SELECT 1 FROM rag_chunks")
        with pytest.raises(AmprentaError) as caught:
            adopted.upgrade()
        assert f"pid {holder.info.backend_pid} (user postgres, idle in transaction" in str(caught.value)
        assert f"pg_terminate_backend({holder.info.backend_pid})" in str(caught.value)
    assert "rag_chunks: add column embedding vector(1536): another session held the table for " in str(caught.value)
    adopted.upgrade()
    assert adopted.index_is_valid(INDEX)


@pytest.mark.parametrize("system", [DOCUMENTS, PRODUCTS], ids=lambda system: system.section)
def test_a_live_table_of_another_section_is_upgraded_and_queues_nobody_longer_than_one_try(
    db: Database, system: System, brief_tries: None
) -> None:
    system.adopt(db)
    settings = Settings.load(database_url=db.url)
    read_while_held(db, system.table, threading.Thread(target=migrate.upgrade, args=(settings, system.section)))
    assert db.index_is_valid(system.index)
