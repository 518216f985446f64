"""A run waits while the database has no room for it: each sign on a real server, and what must not stop a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from backfill_tools import (
    ROOT,
    Recorder,
    StubSource,
    environment,
    execute,
    expected,
    run_forked,
    stored,
    to_ids,
    to_job,
    to_vectors,
)
from click.testing import CliRunner
from servers import make_standby, serving

from amprenta_vectors.backfill.database import throttle as throttle_module
from amprenta_vectors.backfill.database.server_load import Replica, ServerLoad, unarchived
from amprenta_vectors.backfill.database.throttle import MB, Throttle, WalHistory, furthest_replica
from amprenta_vectors.backfill.engine.run import Backfill
from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings, Thresholds
from amprenta_vectors.db import COMMAND_SESSION, create_engine
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres
from amprenta_vectors.schema.registry import RAG_CHUNKS


@pytest.fixture
def engine(upgraded_url: str) -> Iterator[sa.Engine]:
    """As a command's own."""
    engine = create_engine(Settings.load(database_url=upgraded_url), application_name=COMMAND_SESSION, pool_size=20)
    yield engine
    engine.dispose()


@pytest.fixture
def application(upgraded_url: str) -> Iterator[sa.Engine]:
    """As the application's own."""
    engine = sa.create_engine(upgraded_url, pool_size=20)
    yield engine
    engine.dispose()


def to_thresholds(**thresholds: Any) -> Thresholds:
    """Of all thresholds only these."""
    return Thresholds(**(dict.fromkeys(Thresholds.model_fields) | thresholds))


def to_throttle(engine: sa.Engine, **thresholds: Any) -> Throttle:
    return Throttle(engine, RAG_CHUNKS, to_thresholds(**thresholds))


def wait_for_reason(throttle: Throttle, expected: Callable[[str | None], bool], seconds: float = 20) -> str | None:
    """The first reason that is as expected."""
    deadline = time.monotonic() + seconds
    while not expected(reason := throttle.reason()):
        assert time.monotonic() < deadline, f"the reason is still: {reason}"
        time.sleep(0.05)
    return reason


@contextmanager
def in_background(*works: Callable[[], object]) -> Iterator[None]:
    """Each work in a thread, which ends by itself once the block is left."""
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.join(20)


def test_sessions_that_wait_for_the_table_are_given_way(engine: sa.Engine, application: sa.Engine) -> None:
    throttle = to_throttle(engine, max_lock_waiters=0)
    assert throttle.reason() is None
    with application.connect() as holder:
        holder.execute(sa.text("LOCK TABLE rag_chunks IN ACCESS EXCLUSIVE MODE"))
        with in_background(lambda: execute(application, "SELECT count(*) FROM rag_chunks")):
            reason = wait_for_reason(throttle, bool)
            holder.rollback()
    assert reason == "sessions that wait for locks on rag_chunks: 1 (limit 0, AMPRENTA_MAX_LOCK_WAITERS)"
    assert throttle.reason() is None


def test_a_session_that_waits_for_one_row_is_a_lock_waiter(engine: sa.Engine, application: sa.Engine) -> None:
    execute(application, "INSERT INTO rag_chunks (chunk_id) VALUES ('a')")
    throttle, write = to_throttle(engine, max_lock_waiters=0), "UPDATE rag_chunks SET content = 'x'"
    with application.connect() as holder:
        holder.execute(sa.text(write))
        with in_background(lambda: execute(application, write)):
            wait_for_reason(throttle, bool)
            holder.rollback()
    wait_for_reason(throttle, lambda reason: reason is None)


def test_waiters_of_other_tables_and_our_own_do_not_count(engine: sa.Engine, application: sa.Engine) -> None:
    execute(application, "CREATE TABLE elsewhere (id int)")
    throttle = to_throttle(engine, max_lock_waiters=0)
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation'"
    with application.connect() as holder:
        holder.execute(sa.text("LOCK TABLE rag_chunks, elsewhere IN ACCESS EXCLUSIVE MODE"))
        ours, others = "SELECT count(*) FROM rag_chunks", "SELECT count(*) FROM elsewhere"
        with in_background(lambda: execute(engine, ours), lambda: execute(application, others)):
            while execute(engine, waiting)[0][0] < 2:
                pass
            assert throttle.reason() is None
            holder.rollback()


def test_waiters_of_a_partition_count_for_the_table(engine: sa.Engine, application: sa.Engine) -> None:
    execute(application, "CREATE TABLE parts (id int) PARTITION BY LIST (id)")
    execute(application, "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1)")
    throttle = Throttle(engine, RAG_CHUNKS.with_columns(table="parts"), to_thresholds(max_lock_waiters=0))
    with application.connect() as holder:
        holder.execute(sa.text("LOCK TABLE ONLY parts_1 IN ACCESS EXCLUSIVE MODE"))
        with in_background(lambda: execute(application, "SELECT count(*) FROM parts_1")):
            wait_for_reason(throttle, bool)
            holder.rollback()


def test_other_sessions_at_work_are_counted_and_our_own_are_not(engine: sa.Engine, application: sa.Engine) -> None:
    throttle = to_throttle(engine, max_active_sessions=1)
    nap = "SELECT pg_sleep(1.5)"
    with in_background(*[lambda: execute(engine, nap)] * 3):
        time.sleep(0.3)
        assert throttle.reason() is None
    with in_background(*[lambda: execute(application, nap)] * 3):
        reason = wait_for_reason(throttle, bool)
    assert reason is not None
    assert reason.startswith("active sessions: ")
    assert reason.endswith(" (limit 1, AMPRENTA_MAX_ACTIVE_SESSIONS)")
    wait_for_reason(throttle, lambda reason: reason is None)


def test_wal_is_measured_in_megabytes_a_second(engine: sa.Engine, application: sa.Engine) -> None:
    throttle = to_throttle(engine, max_wal_mb_per_second=1)
    assert throttle.reason() is None
    execute(application, "CREATE TABLE written AS SELECT repeat('x', 1000) AS content FROM generate_series(1, 100000)")
    reason = throttle.reason()
    assert reason is not None
    assert reason.startswith("WAL is written at ")
    assert reason.endswith(" MB/s (limit 1 MB/s, AMPRENTA_MAX_WAL_MB_PER_SECOND)")
    wait_for_reason(throttle, lambda reason: reason is None)


def test_the_oldest_snapshot_is_that_of_the_longest_transaction(engine: sa.Engine, application: sa.Engine) -> None:
    throttle = to_throttle(engine, max_snapshot_seconds=0.5)
    with application.connect().execution_options(isolation_level="REPEATABLE READ") as reader:
        reader.execute(sa.text("SELECT count(*) FROM rag_chunks"))
        reason = wait_for_reason(throttle, bool)
    assert reason == "a transaction has held its snapshot for 1 s (limit 0.5 s, AMPRENTA_MAX_SNAPSHOT_SECONDS)"
    assert throttle.reason() is None
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as ours:
        ours.execute(sa.text("SELECT pg_sleep(0.7)"))
        assert throttle.reason() is None


def test_a_vacuum_is_waited_for_but_not_for_ever(engine: sa.Engine, application: sa.Engine) -> None:
    execute(
        application,
        "INSERT INTO rag_chunks (chunk_id, content) SELECT n, repeat('x', 500) FROM generate_series(1, 3000) n",
    )
    patient, hasty = to_throttle(engine, autovacuum_wait_seconds=600), to_throttle(engine, autovacuum_wait_seconds=0.2)
    assert patient.reason() is None

    def vacuum() -> None:
        with application.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(sa.text("SET vacuum_cost_delay = 100"))
            connection.execute(sa.text("SET vacuum_cost_limit = 10"))
            connection.execute(sa.text("VACUUM rag_chunks"))

    with in_background(vacuum):
        reason = wait_for_reason(patient, bool)
        assert reason is not None
        assert reason.startswith("a VACUUM has worked on rag_chunks for ")
        assert reason.endswith("(waited for up to 600 s, AMPRENTA_AUTOVACUUM_WAIT_SECONDS)")
        time.sleep(0.3)
        assert (patient.reason() is not None, hasty.reason()) == (True, None)
    wait_for_reason(patient, lambda reason: reason is None)


def test_autovacuum_is_told_from_a_vacuum_of_somebodys(own_folder: Path) -> None:
    slow = {"autovacuum_naptime": "1", "autovacuum_vacuum_cost_delay": "100", "autovacuum_vacuum_cost_limit": "5"}
    with serving(own_folder, **slow) as server, closing_engine(with_table(server)) as engine:
        execute(engine, "ALTER TABLE rag_chunks SET (autovacuum_vacuum_threshold = 1)")
        execute(engine, "INSERT INTO rag_chunks SELECT n FROM generate_series(1, 50000) n")
        execute(engine, "DELETE FROM rag_chunks")
        reason = wait_for_reason(to_throttle(engine, autovacuum_wait_seconds=600), bool, seconds=60)
    assert reason is not None
    assert reason.startswith("autovacuum has worked on rag_chunks for ")


def test_several_reasons_are_all_named(engine: sa.Engine, application: sa.Engine) -> None:
    throttle = to_throttle(engine, max_snapshot_seconds=0, throttle_sql="SELECT 'batch night'::text")
    with application.connect().execution_options(isolation_level="REPEATABLE READ") as reader:
        reader.execute(sa.text("SELECT count(*) FROM rag_chunks"))
        reason = throttle.reason()
    assert reason is not None
    assert reason.startswith("a transaction has held its snapshot")
    assert reason.endswith("; AMPRENTA_THROTTLE_SQL says: batch night")


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("SELECT true", "AMPRENTA_THROTTLE_SQL says: wait"),
        ("SELECT false", None),
        ("SELECT NULL::boolean", None),
        ("SELECT ''::text", None),
        ("SELECT true WHERE false", None),
        ("SELECT 'the month is being closed'::text", "AMPRENTA_THROTTLE_SQL says: the month is being closed"),
        ("SELECT count(*) > 0 FROM rag_chunks WHERE chunk_id LIKE '%x:y'", None),
    ],
)
def test_a_query_of_ones_own_says_wait_or_why(engine: sa.Engine, query: str, reason: str | None) -> None:
    throttle = to_throttle(engine, throttle_sql=query)
    throttle.check()
    assert throttle.reason() == reason


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT nonsense", 'AMPRENTA_THROTTLE_SQL fails: column "nonsense" does not exist'),
        ("SELECT pg_sleep(5)", "AMPRENTA_THROTTLE_SQL fails: canceling statement due to statement timeout"),
        ("DELETE FROM rag_chunks", "cannot execute DELETE in a read-only transaction"),
        ("SELECT 1", "AMPRENTA_THROTTLE_SQL gives a value of another type (int)"),
        ("SELECT true, false", "AMPRENTA_THROTTLE_SQL gives 2 columns"),
        ("SELECT true FROM generate_series(1, 2)", "AMPRENTA_THROTTLE_SQL gives several rows"),
        ("SET enable_sort = off", "AMPRENTA_THROTTLE_SQL gives no rows: it is no query"),
    ],
)
def test_a_query_that_cannot_say_it_is_refused_at_the_start(engine: sa.Engine, query: str, message: str) -> None:
    throttle = to_throttle(engine, throttle_sql=query)
    with pytest.raises(ConfigError) as caught:
        throttle.check()
    assert message in caught.value.message
    assert "true or a text means wait" in caught.value.hint
    assert throttle.reason() is None, "later on, what cannot be known stops nothing"


def test_a_reason_holds_for_a_while_when_the_server_cannot_be_looked_at(engine: sa.Engine) -> None:
    now = 1000.0
    execute(engine, "CREATE TABLE verdict AS SELECT 'closed'::text AS said")
    throttle = Throttle(engine, RAG_CHUNKS, to_thresholds(throttle_sql="SELECT said FROM verdict"), clock=lambda: now)
    said = throttle.reason()
    execute(engine, "DROP TABLE verdict")
    now += throttle_module.FORGET_SECONDS
    assert throttle.reason() == said == "AMPRENTA_THROTTLE_SQL says: closed"
    now += 1
    assert throttle.reason() is None


def test_a_threshold_that_was_passed_is_left_well_below(engine: sa.Engine, application: sa.Engine) -> None:
    throttle, active = to_throttle(engine, max_active_sessions=5), "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with application.connect() as holder, ExitStack() as waiting:

        def release(number: int) -> None:
            holder.execute(sa.text("SELECT pg_advisory_unlock(:number)"), {"number": number})

        def wait(number: int) -> None:
            with application.connect() as connection:
                connection.execute(sa.text("SELECT pg_advisory_lock(:number)"), {"number": number})
                connection.invalidate()

        for number in range(6):
            holder.execute(sa.text("SELECT pg_advisory_lock(:number)"), {"number": number})
            waiting.enter_context(in_background(lambda number=number: wait(number)))
        waiting.callback(lambda: [release(number) for number in range(6)])
        wait_for_reason(throttle, bool)
        release(0)
        while execute(engine, active) != [(5,)]:
            pass
        assert throttle.reason() is not None, "five are not more than five, yet it was passed"
        assert to_throttle(engine, max_active_sessions=5).reason() is None
        release(1)
        while execute(engine, active) != [(4,)]:
            pass
        assert throttle.reason() is None


def test_what_is_off_is_not_even_looked_at(engine: sa.Engine) -> None:
    seen: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *call: seen.append(call[2]))
    assert to_throttle(engine).reason() is None
    assert seen == []
    assert to_throttle(engine, max_lock_waiters=0).reason() is None
    assert not [statement for statement in seen if "pg_stat_replication" in statement or "pg_current_wal" in statement]


ALL = {name: 0.0 for name in Thresholds.model_fields if name != "throttle_sql"}


@pytest.fixture
def blind(engine: sa.Engine) -> Iterator[sa.Engine]:
    """A role that sees nobody's sessions but its own."""
    execute(engine, "DO $$ BEGIN CREATE ROLE amprenta_blind LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    blind = sa.create_engine(
        engine.url.set(username="amprenta_blind"), connect_args={"application_name": COMMAND_SESSION}
    )
    yield blind
    blind.dispose()
    execute(engine, "DROP OWNED BY amprenta_blind CASCADE")


def test_what_a_role_may_not_see_is_no_reason_to_wait(
    blind: sa.Engine, engine: sa.Engine, application: sa.Engine
) -> None:
    watched = {"max_active_sessions": 0, "max_snapshot_seconds": 0, "autovacuum_wait_seconds": 600}
    with application.connect().execution_options(isolation_level="REPEATABLE READ") as reader:
        reader.execute(sa.text("SELECT count(*) FROM rag_chunks"))
        with in_background(lambda: execute(application, "SELECT pg_sleep(1)")):
            wait_for_reason(to_throttle(engine, max_active_sessions=0), bool)
            throttle = to_throttle(blind, **watched)
            assert throttle.reason() is None
        assert throttle.unseen() == [
            "role amprenta_blind may not see what AMPRENTA_MAX_ACTIVE_SESSIONS, AMPRENTA_AUTOVACUUM_WAIT_SECONDS, "
            "AMPRENTA_MAX_SNAPSHOT_SECONDS would watch; the run goes on without: "
            "GRANT pg_read_all_stats TO amprenta_blind"
        ]
        execute(engine, "GRANT pg_read_all_stats TO amprenta_blind")
        seeing = to_throttle(blind, **watched)
        assert seeing.unseen() == []
        assert seeing.reason() is not None
        execute(engine, "REVOKE pg_read_all_stats FROM amprenta_blind")


def test_functions_that_a_role_may_not_call_are_left_out(blind: sa.Engine, engine: sa.Engine) -> None:
    for function in ("pg_current_wal_lsn()", "pg_prepared_xact()"):
        execute(engine, f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")
    throttle = to_throttle(blind, max_lock_waiters=0, max_wal_mb_per_second=0, max_snapshot_seconds=0)
    assert throttle.reason() is None
    (said,) = throttle.unseen()
    assert "AMPRENTA_MAX_WAL_MB_PER_SECOND" in said
    assert "AMPRENTA_MAX_LOCK_WAITERS" not in said
    assert to_throttle(blind, **ALL).reason() is None


def test_a_role_that_sees_everything_is_told_nothing(engine: sa.Engine) -> None:
    assert to_throttle(engine, **ALL).unseen() == []
    assert to_throttle(engine, throttle_sql="SELECT true").unseen() == []


def test_segments_that_wait_are_counted_by_their_names() -> None:
    archiver = {"current": "000000020000000200000001", "segment_bytes": 16 * MB}
    assert unarchived({**archiver, "archived": "0000000100000001000000FF"}) == 1
    assert unarchived({**archiver, "archived": "000000010000000200000000.00000028.backup"}) == 0
    assert unarchived({**archiver, "archived": "000000010000000000000001"}) == 511
    assert unarchived({**archiver, "archived": "00000002.history"}) is None
    assert unarchived({**archiver, "archived": None}) is None


def test_lag_is_the_time_since_the_wal_was_past_a_replicas_position() -> None:
    history = WalHistory()
    for seconds, position in ((0, 100), (1, 200), (2, 300), (10, 400)):
        history.record(seconds, position)
    assert [history.behind(position) for position in (50, 150, 200, 399, 400)] == [10, 9, 8, 0, 0]
    assert history.rate() == pytest.approx(100 / 8)
    history.record(11, 50)
    assert (history.rate(), history.behind(40)) == (None, 0), "another server after a failover"


def test_the_lag_of_a_replica_is_what_the_server_says_or_what_was_watched_if_that_is_more() -> None:
    history = WalHistory()
    for seconds, position in ((0, 100), (50, 900)):
        history.record(seconds, position)
    silent, slow = Replica("silent", 50, None), Replica("slow", 800, 20.0)
    caught_up = Replica("caught up", 900, 99.0)
    load = ServerLoad(50, 900, (slow, caught_up))
    assert furthest_replica(load, history) == ("slow", 20)
    assert furthest_replica(replace(load, replicas=(silent, slow)), history) == ("silent", 50)
    assert furthest_replica(replace(load, replicas=(caught_up,)), history) is None
    assert furthest_replica(replace(load, wal_position=None), history) is None


def with_table(server: EmbeddedPostgres) -> sa.Engine:
    engine = create_engine(Settings.load(database_url=server.url()), application_name=COMMAND_SESSION)
    execute(engine, "CREATE TABLE rag_chunks (chunk_id text PRIMARY KEY)")
    return engine


@contextmanager
def closing_engine(engine: sa.Engine) -> Iterator[sa.Engine]:
    yield engine
    engine.dispose()


def test_a_replica_that_does_not_replay_is_waited_for(own_folder: Path) -> None:
    with serving(own_folder) as primary, ExitStack() as stack:
        engine = with_table(primary)
        stack.callback(engine.dispose)
        folder = own_folder.with_name("replica")
        make_standby(primary, folder)
        replica = stack.enter_context(serving(folder, hot_standby="on", cluster_name="reader"))
        throttle = to_throttle(engine, max_replica_lag_seconds=1)
        assert throttle.reason() is None
        there = sa.create_engine(replica.url())
        stack.callback(there.dispose)
        execute(there, "SELECT pg_wal_replay_pause()")
        execute(engine, "INSERT INTO rag_chunks SELECT n FROM generate_series(1, 1000) n")
        reason = wait_for_reason(throttle, bool)
        assert reason is not None
        assert reason.startswith("replica reader lags ")
        assert reason.endswith(" s (limit 1 s, AMPRENTA_MAX_REPLICA_LAG_SECONDS)")
        execute(there, "SELECT pg_wal_replay_resume()")
        wait_for_reason(throttle, lambda reason: reason is None)


@pytest.mark.parametrize("privileged", [True, False])
def test_wal_that_the_archiver_does_not_take_is_waited_for(own_folder: Path, privileged: bool) -> None:
    settings = {"archive_mode": "on", "archive_command": "test -f archiving"}
    with serving(own_folder, **settings) as server, ExitStack() as stack:
        owner = with_table(server)
        stack.callback(owner.dispose)
        execute(owner, "CREATE ROLE worker LOGIN")
        engine = owner if privileged else sa.create_engine(owner.url.set(username="worker"))
        stack.callback(engine.dispose)
        throttle = to_throttle(engine, max_unarchived_segments=2)

        def fill_a_segment() -> None:
            execute(owner, "SELECT pg_logical_emit_message(true, 'test', 'something written')")
            execute(owner, "SELECT pg_switch_wal()")

        archived = "SELECT count(*) FROM pg_stat_archiver WHERE last_archived_wal IS NOT NULL"
        (server.folder / "archiving").touch()
        fill_a_segment()
        while execute(owner, archived) != [(1,)]:
            time.sleep(0.05)
        assert throttle.reason() is None
        (server.folder / "archiving").unlink()
        for _ in range(4):
            fill_a_segment()
        reason = wait_for_reason(throttle, bool)
        assert reason is not None
        assert reason.startswith("WAL segments that wait for the archiver: ")
        assert reason.endswith(" (limit 2, AMPRENTA_MAX_UNARCHIVED_SEGMENTS)")
        execute(owner, "SELECT pg_stat_reset_shared('archiver')")
        seen = to_throttle(engine, max_unarchived_segments=2).reason() is not None
        assert seen == privileged, "by the files, where the name of the last one archived is not known"
        (server.folder / "archiving").touch()
        fill_a_segment()
        wait_for_reason(throttle, lambda reason: reason is None, seconds=70)


IDS, VECTORS = to_ids(60), to_vectors(60)
RUN = "SELECT throttle_reason, state FROM migration_run"


def test_a_run_that_waits_says_why_and_goes_on_by_itself(
    engine: sa.Engine, upgraded_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amprenta_vectors.backfill.database.load_gate.LOOK_SECONDS", 0.02)
    execute(engine, "CREATE TABLE verdict AS SELECT NULL::text AS said")
    source, recorder = StubSource({key: [vector] for key, vector in zip(IDS, VECTORS, strict=True)}), Recorder()
    throttle = to_throttle(engine, throttle_sql="SELECT said FROM verdict")

    def close(keys: Sequence[str]) -> None:
        source.before_fetch = lambda keys: None
        execute(engine, "UPDATE verdict SET said = 'month end'")

    source.before_fetch = close
    work = Backfill(
        engine,
        to_job(engine, source, batch_size=5, workers=1),
        recorder,
        threading.Event(),
        before_claim=throttle.reason,
    )
    reason = "AMPRENTA_THROTTLE_SQL says: month end"
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work.work, work.start("new"))
        while execute(engine, RUN) != [(reason, "running")]:
            assert not working.done(), working.result()
        while execute(engine, "SELECT 1 FROM migration_progress WHERE status = 'running'"):
            pass
        fetched = len(source.fetched)
        assert fetched < len(IDS)
        status = CliRunner().invoke(main, ["status"], env={"DATABASE_URL": upgraded_url})
        assert reason in status.output
        time.sleep(0.3)
        assert len(source.fetched) == fetched, "nothing is claimed meanwhile"
        execute(engine, "UPDATE verdict SET said = NULL")
        assert working.result().run.state == "finished"
    assert stored(engine) == expected(IDS, VECTORS)
    assert execute(engine, RUN) == [(None, "finished")]
    assert reason in recorder.reasons
    happened = [name for (name,) in execute(engine, "SELECT event FROM migration_event ORDER BY id")]
    assert [name for name in happened if "throttled" in name] == ["throttled", "unthrottled"]


def test_a_faulty_query_ends_the_command_before_anything_is_done(
    engine: sa.Engine, upgraded_url: str, emulator: Callable[..., PineconeEmulator]
) -> None:
    pinecone = emulator()
    pinecone.load("", IDS, VECTORS)
    variables = environment(upgraded_url, pinecone, AMPRENTA_THROTTLE_SQL="SELECT nonsense")
    code, output = run_forked(variables, "--resume")
    assert code == 2, output
    assert "AMPRENTA_THROTTLE_SQL fails" in output
    assert execute(engine, "SELECT count(*) FROM migration_run WHERE source IS NOT NULL") == [(0,)]


def test_a_threshold_is_a_number_or_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load().thresholds.max_replica_lag_seconds == 30
    monkeypatch.setenv("AMPRENTA_MAX_REPLICA_LAG_SECONDS", "off")
    assert Settings.load().thresholds.max_replica_lag_seconds is None
    monkeypatch.setenv("AMPRENTA_MAX_LOCK_WAITERS", "none")
    with pytest.raises(ConfigError, match=r"AMPRENTA_MAX_LOCK_WAITERS: .*a number that is not negative, or off"):
        Settings.load()


def test_every_threshold_is_documented_with_its_default() -> None:
    page = Path(ROOT, "docs/throttling.md").read_text()
    for name, field in Thresholds.model_fields.items():
        default = field.default
        shown = "off" if default is None else f"{default:g}"
        assert f"| `AMPRENTA_{name.upper()}` | {shown} |" in page
