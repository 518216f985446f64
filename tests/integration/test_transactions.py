"""What holds for every transaction of a run: it goes by the database's clock, asks no source, and ends its settings."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import (
    Recorder,
    StubSource,
    add_rows,
    environment,
    execute,
    expected,
    run_job,
    stored,
    to_ids,
    to_job,
    to_vectors,
)
from click.testing import CliRunner
from transaction_pooler import alternating

from amprenta_vectors.backends.rows.source import RowsSource
from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.backfill.engine.run import Backfill
from amprenta_vectors.backfill.progress import batches, plans, runs, transactions
from amprenta_vectors.backfill.verify.compare import Verifier
from amprenta_vectors.batch import Vectors
from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.embedders.protocol import Model
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.schema.keymaps import OwnKeys
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.factory import get_vector_store
from amprenta_vectors.stores.protocol import Record

IDS, VECTORS = to_ids(60), to_vectors(60)


def stub() -> StubSource:
    return StubSource({key: [vector] for key, vector in zip(IDS, VECTORS, strict=True)})


# Leases.


@pytest.mark.parametrize("off", ["1 day", "-1 day"])
def test_leases_are_of_the_databases_clock_whatever_a_hosts_own_says(engine: sa.Engine, off: str) -> None:
    clock = f"RETURNS timestamptz LANGUAGE sql AS $$ SELECT pg_catalog.clock_timestamp() + interval '{off}' $$"
    execute(engine, f"CREATE SCHEMA off; CREATE FUNCTION off.clock_timestamp() {clock}")
    execute(engine, f"CREATE FUNCTION off.now() {clock}")
    [(database,)] = execute(engine, "SELECT current_database()")
    execute(engine, f"ALTER DATABASE {database} SET search_path = off, public, pg_catalog")
    engine.dispose()
    listed = to_job(engine, stub())
    run = Backfill(engine, listed, Recorder(), threading.Event()).start("new")
    with transactions.transaction(engine) as connection:
        assert plans.claim_plan(connection, run.id, "first", 600.0) is not None
        assert plans.claim_plan(connection, run.id, "second", 600.0) is None
        runs.cancel(connection, run.id)
    job = to_job(engine, stub(), keys_from="given", given=IDS, batch_size=20)
    run = Backfill(engine, job, Recorder(), threading.Event()).start("new")

    def claim(owner: str, lease_seconds: float) -> tuple[int, int] | None:
        with transactions.transaction(engine) as connection:
            batch = batches.claim(connection, run.id, owner, lease_seconds)
        return None if batch is None else (batch.number, batch.attempt)

    first = claim("first", 600.0)
    second = claim("second", 0.0)
    assert first is not None
    assert second is not None
    with transactions.transaction(engine) as connection:
        batches.renew(connection, run.id, "first", [first[0]], 600.0)
    # A lease that is over is anybody's at once, one that is not is nobody's.
    assert claim("third", 600.0) == (second[0], 2)
    assert claim("third", 600.0) not in {None, (first[0], 2)}
    assert claim("third", 600.0) is None
    left = "SELECT extract(epoch FROM lease_expires_at - clock_timestamp()) BETWEEN 500 AND 600 FROM migration_progress"
    assert execute(engine, left) == [(True,)] * 3


# Calls of a source.


class Watch:
    """Notes the calls during which a transaction stayed open that had been when they began."""

    OPEN = """
        SELECT pid, xact_start, query FROM pg_stat_activity WHERE datname = current_database()
          AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self.calls = 0
        self.open: list[str] = []

    def __call__(self, _: object) -> None:
        self.calls += 1
        began = self._open()
        deadline = time.monotonic() + 30.0
        while began and not self.open:
            # Those of other threads end by themselves, one that the call was made in does not.
            left = self._open()
            began = {transaction: query for transaction, query in began.items() if transaction in left}
            if time.monotonic() > deadline:
                self.open += began.values()

    def _open(self) -> dict[tuple[int, datetime], str]:
        """The last statement of each transaction that is open."""
        return {(pid, began): query for pid, began, query in execute(self._engine, self.OPEN)}


@pytest.fixture
def watch(engine: sa.Engine) -> Watch:
    return Watch(engine)


def watched(watch: Watch) -> StubSource:
    source = stub()
    source.before_page = source.before_fetch = watch
    return source


@pytest.mark.parametrize("keys_from", ["table", "source", "given", "reconcile"])
def test_no_call_of_a_source_is_made_in_a_transaction(engine: sa.Engine, watch: Watch, keys_from: str) -> None:
    # The backfill that a revision queued comes first.
    run_job(engine, to_job(engine, StubSource({})), "resume")
    add_rows(engine, IDS[:30])
    job = to_job(engine, watched(watch), keys_from=keys_from, given=IDS, batch_size=20)
    run_job(engine, job)
    assert watch.calls >= 2
    assert watch.open == []


def test_no_call_of_a_comparison_is_made_in_a_transaction(engine: sa.Engine, watch: Watch) -> None:
    run_job(engine, to_job(engine, stub()))
    job = to_job(engine, watched(watch))
    retry = Backoff(5.0, threading.Event(), lambda _: None)
    verifier = Verifier(engine, job.slice, job.source, batch_size=20, workers=2, retry=retry)
    assert verifier.run(lambda _: None).clean
    assert watch.calls >= 4
    assert watch.open == []


def test_no_text_is_embedded_in_a_transaction(engine: sa.Engine, watch: Watch) -> None:
    class Watched:
        model = Model("watched", 8, "tests")

        def embed(self, texts: Sequence[str]) -> Vectors:
            watch(texts)
            return np.ones((len(texts), 8), np.float32)

    execute(engine, "CREATE TABLE notes (id integer PRIMARY KEY, body text, embedding vector(8))")
    execute(engine, "INSERT INTO notes SELECT n, 'text ' || n FROM generate_series(1, 60) n")
    table = VectorTable(name="notes", table="notes", key=("id",), text="body", dimension=8, source="rows")
    resolved = to_job(engine, stub(), table=table).slice.table
    source = RowsSource(engine, resolved, {}, Watched(), count=60)
    key_map = OwnKeys([resolved.column_types["id"]])
    run_job(engine, to_job(engine, source, table=table, key_map=key_map, keys_from="table", batch_size=20))
    assert execute(engine, "SELECT count(embedding) FROM notes") == [(60,)]
    assert watch.calls >= 3
    assert watch.open == []


# Settings.


SESSIONS = 12
"""Of the server, behind a pooler that takes them by turns."""
LEFT_BEHIND = sa.text("""
    SELECT pg_backend_pid() AS session,
           (SELECT string_agg(name || ' = ' || setting, ', ') FROM pg_settings WHERE source = 'session') AS settings,
           (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory') AS locks,
           (SELECT count(*) FROM pg_prepared_statements) AS statements,
           (SELECT count(*) FROM pg_class WHERE relnamespace = pg_my_temp_schema()) AS relations,
           (SELECT count(*) FROM pg_listening_channels()) AS channels
""")


def left_behind(url: str) -> dict[int, tuple[object, ...]]:
    """What each session of the server still has of the transactions that it was in."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg2:"))
    found = {}
    for _ in range(SESSIONS):
        with engine.connect() as connection:
            session, *rest = connection.execute(LEFT_BEHIND).one()
            found[session] = tuple(rest)
    engine.dispose()
    return found


def test_behind_a_pooler_all_but_migrations_works_and_leaves_nothing_with_a_session(
    engine: sa.Engine,
    upgraded_url: str,
    emulator: Callable[..., PineconeEmulator],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pinecone = emulator()
    pinecone.load("", IDS, VECTORS)
    # Of its own, a build of the index takes them off for its session.
    [(database,)] = execute(engine, "SELECT current_database()")
    execute(engine, f"ALTER DATABASE {database} SET statement_timeout = '10min'")
    with alternating(upgraded_url, SESSIONS) as url:
        variables = environment(url, pinecone, AMPRENTA_REPORT=str(tmp_path), AMPRENTA_INDEX_WORKERS="0")

        def run(*arguments: str) -> str:
            done = CliRunner().invoke(main, arguments, env=variables)
            assert done.exit_code == 0, done.output
            return done.output

        run("backfill", "--keys-from", "source", "--batch-size", "10")
        assert stored(engine) == expected(IDS, VECTORS)
        assert "statement_timeout among them" in caplog.text
        run("verify")
        run("reconcile")
        run("index", "rebuild")
        run("gate")
        assert json.loads(run("status", "--json"))
        settings = Settings.load(
            **{name.lower(): value for name, value in variables.items() if name.startswith(("DATABASE", "PINECONE"))},
            vector_backend="pgvector",
            vector_mode="dual",
            vector_secondary="pinecone",
        )
        store = get_vector_store(settings)
        store.upsert([Record("new", VECTORS[0], "text")])
        assert [hit.key for hit in store.query(VECTORS[0], top_k=2, filter={"text": "text"})] == ["new"]
        store.delete(["new"])
        assert store.count() == 60
        store.close()
        found = left_behind(url)
        assert len(found) > 1
        assert set(found.values()) == {(None, 0, 0, 0, 0)}


def test_a_new_connection_asks_the_catalogue_for_no_type_that_nothing_reads(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("psycopg2.extras.HstoreAdapter.get_oids", lambda *found: asked.append(found))
    engine.connect().close()
    assert asked == []
