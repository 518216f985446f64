"""The last revision queues a backfill; its reverse cancels it and waits for whoever is at work."""

from __future__ import annotations

import threading
import time

import pytest
from migrating import Database

from amprenta_vectors.ddl import leases
from amprenta_vectors.errors import AmprentaError


def hold_a_batch(db: Database, lease: str) -> None:
    """A begun run with one batch that a worker holds for ``lease``."""
    db.execute("UPDATE migration_run SET state = 'running', source_kind = 'pinecone', source = 'index'")
    db.execute(
        "INSERT INTO migration_progress (run_id, batch, first_key, last_key, keys, status, owner, lease_expires_at) "
        "SELECT id, 1, 'a', 'a', '{a}', 'running', 'worker', clock_timestamp() + CAST(:lease AS interval) "
        "FROM migration_run",
        lease=lease,
    )


def test_an_unfinished_run_is_cancelled(db: Database) -> None:
    db.upgrade()
    db.execute("UPDATE migration_run SET state = 'running', source_kind = 'pinecone', source = 'index'")
    db.downgrade("rag_0003")
    assert db.execute("SELECT state, desired_state, finished_at IS NOT NULL FROM migration_run") == [
        ("cancelled", "cancelled", True)
    ]


@pytest.mark.parametrize("state", ["finished", "failed"])
def test_a_run_that_has_ended_keeps_its_state(db: Database, state: str) -> None:
    db.upgrade()
    db.execute("UPDATE migration_run SET state = :state", state=state)
    db.downgrade("rag_0003")
    assert db.execute("SELECT state FROM migration_run") == [(state,)]


def test_no_second_run_is_queued_beside_an_unfinished_one(db: Database) -> None:
    db.upgrade("rag_0003")
    db.execute(
        "INSERT INTO migration_run (vector_table, target, state, desired_state) "
        "VALUES ('rag_chunks', 'rag_chunks.embedding', 'paused', 'running')"
    )
    db.upgrade()
    assert db.execute("SELECT state FROM migration_run") == [("paused",)]


def test_a_run_into_another_column_goes_on(db: Database) -> None:
    db.upgrade()
    db.execute(
        "INSERT INTO migration_run (vector_table, target, state, desired_state) "
        "VALUES ('theirs', 'theirs.embedding', 'running', 'running')"
    )
    db.downgrade("rag_0003")
    assert db.scalar("SELECT state FROM migration_run WHERE target = 'theirs.embedding'") == "running"


def test_a_downgrade_waits_for_a_live_lease_and_no_longer(db: Database) -> None:
    db.upgrade()
    hold_a_batch(db, "1 hour")
    told = threading.Event()

    def finish_when_told() -> None:
        while db.scalar("SELECT desired_state FROM migration_run") != "cancelled":
            time.sleep(0.05)
        told.set()
        db.execute("UPDATE migration_progress SET status = 'done', lease_expires_at = NULL")

    worker = threading.Thread(target=finish_when_told)
    worker.start()
    db.downgrade("rag_0001")
    worker.join()
    assert told.is_set()
    assert "embedding" not in db.columns("rag_chunks")


def test_a_lease_that_has_run_out_is_not_waited_for(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "DRAIN_SECONDS", 0.0)
    db.upgrade()
    hold_a_batch(db, "-1 second")
    db.downgrade("rag_0001")


def test_a_worker_that_does_not_let_go_stops_the_downgrade_every_time(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "DRAIN_SECONDS", 0.2)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.05)
    db.upgrade()
    hold_a_batch(db, "1 hour")
    for _ in range(2):
        with pytest.raises(AmprentaError, match="a backfill worker still holds a batch after 0 s") as caught:
            db.downgrade()
        assert "stop the backfill processes" in str(caught.value)
        assert "embedding" in db.columns("rag_chunks")
