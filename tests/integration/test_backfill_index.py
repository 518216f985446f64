"""The ANN index around a load: deferred where it helps nobody yet, built once when the last run is over."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg2.errors
import pytest
import sqlalchemy as sa
from backfill_tools import (
    Recorder,
    StubSource,
    environment,
    execute,
    expected,
    run_forked,
    run_job,
    stored,
    to_ids,
    to_job,
    to_vectors,
)
from click.testing import CliRunner
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backfill.database import index as index_module
from amprenta_vectors.backfill.database.index import build_deferred, defer_indexes, rebuild_indexes
from amprenta_vectors.backfill.database.index_plan import BuildSettings, Shape, with_lists
from amprenta_vectors.backfill.engine.observer import IndexBuilding, MoveEvent
from amprenta_vectors.backfill.engine.run import Backfill
from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.errors import CredentialsRefused
from amprenta_vectors.moves.events import IndexProgress
from amprenta_vectors.moves.indexing import watching_builds
from amprenta_vectors.pg.ivfflat import fitting_lists
from amprenta_vectors.sandbox.pinecone import PineconeEmulator

IDS, VECTORS = to_ids(100), to_vectors(100)
NAME = "idx_rag_chunks_embedding"
NEVER = threading.Event()


@pytest.fixture
def engine(upgraded_url: str) -> Iterator[sa.Engine]:
    engine = create_engine(Settings.load(database_url=upgraded_url), pool_size=30)
    yield engine
    engine.dispose()


def stub() -> StubSource:
    return StubSource({key: [vector] for key, vector in zip(IDS, VECTORS, strict=True)})


def index(engine: sa.Engine, name: str = NAME) -> Any:
    """``(oid, definition, comment, valid)``, or None."""
    found = execute(
        engine,
        "SELECT indexrelid, pg_get_indexdef(indexrelid), obj_description(indexrelid, 'pg_class'), indisvalid "
        "FROM pg_index WHERE indexrelid = to_regclass(:name)",
        name=f'"{name}"',
    )
    return tuple(found[0]) if found else None


def waiting(engine: sa.Engine) -> list[str]:
    rows = execute(engine, "SELECT index_name FROM migration_index WHERE built_at IS NULL ORDER BY index_name")
    return [name for (name,) in rows]


def test_the_index_of_an_empty_column_is_away_during_the_load_and_the_same_afterwards(engine: sa.Engine) -> None:
    before, during = index(engine), []
    source, observer = stub(), Recorder()
    source.before_fetch = lambda keys: during.append((index(engine), waiting(engine)))
    summary = run_job(engine, to_job(engine, source), observer=observer)
    after = index(engine)
    assert during == [(None, [NAME])] * len(during)
    assert after[1:] == before[1:]
    assert after[0] != before[0]
    assert after[2] is not None, "the mark by which a downgrade knows that we made it"
    assert (observer.deferred, observer.built) == ([NAME], ["rag_chunks.embedding"])
    assert summary.indexes_built == [NAME]
    assert waiting(engine) == []


def test_the_column_has_statistics_once_its_index_was_built(engine: sa.Engine) -> None:
    run_job(engine, to_job(engine, stub()))
    statistics = "SELECT null_frac FROM pg_stats WHERE tablename = 'rag_chunks' AND attname = 'embedding'"
    assert execute(engine, statistics) == [(0.0,)]


def test_an_index_that_queries_use_is_never_dropped(engine: sa.Engine) -> None:
    execute(engine, "INSERT INTO rag_chunks (namespace, chunk_id, embedding) VALUES ('x', 'y', '[1,2,3,4,5,6,7,8]')")
    before, during = index(engine), []
    source = stub()
    source.before_fetch = lambda keys: during.append(index(engine))
    summary = run_job(engine, to_job(engine, source))
    assert [*during, index(engine)] == [before] * (len(during) + 1)
    assert summary.indexes_built == []


def test_an_index_in_use_is_deferred_when_a_person_asks_for_it(engine: sa.Engine) -> None:
    run_job(engine, to_job(engine, stub()))
    before = index(engine)
    summary = run_job(engine, replace(to_job(engine, stub(), namespace="other"), defer_index=True))
    assert summary.indexes_built == [NAME]
    assert index(engine)[0] != before[0]


def test_an_interrupted_run_leaves_the_index_recorded_and_the_one_that_ends_it_builds_it(engine: sa.Engine) -> None:
    stop, source = threading.Event(), stub()
    source.before_fetch = lambda keys: stop.set()
    job = to_job(engine, source, batch_size=10)
    assert run_job(engine, job, stop=stop).interrupted
    assert (index(engine), waiting(engine)) == (None, [NAME])
    assert run_job(engine, to_job(engine, stub()), "resume").indexes_built == [NAME]


def test_a_cancelled_run_says_how_the_index_that_waits_is_built(engine: sa.Engine, upgraded_url: str) -> None:
    stop, source = threading.Event(), stub()
    source.before_fetch = lambda keys: stop.set()
    run_job(engine, to_job(engine, source, batch_size=10), stop=stop)
    result = CliRunner().invoke(main, ["cancel"], env={"DATABASE_URL": upgraded_url})
    assert "idx_rag_chunks_embedding waits to be built: amprenta-vectors index build" in result.output


def test_of_several_runs_only_the_last_builds_the_index(engine: sa.Engine) -> None:
    held, go_on = stub(), threading.Event()
    held.before_fetch = lambda keys: go_on.wait(30)
    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(run_job, engine, to_job(engine, held, namespace="last"))
        while not execute(engine, "SELECT 1 FROM migration_progress WHERE status = 'running'"):
            pass
        assert run_job(engine, to_job(engine, stub(), namespace="first")).indexes_built == []
        assert index(engine) is None
        go_on.set()
        assert last.result().indexes_built == [NAME]
    assert index(engine)[3]


def test_of_many_processes_and_runs_that_end_together_exactly_one_builds(engine: sa.Engine) -> None:
    jobs = [to_job(engine, stub(), namespace=str(number % 3)) for number in range(9)]
    with ThreadPoolExecutor(9) as pool:
        summaries = list(pool.map(lambda job: run_job(engine, job, "resume"), jobs))
    # One that begins when all the others are over comes to a column with an index.
    assert [name for summary in summaries for name in summary.indexes_built] == [NAME]
    assert sum(summary.ended_it for summary in summaries) == len({summary.run.id for summary in summaries})
    assert index(engine)[3]


def test_several_indexes_of_a_column_are_built_whatever_their_names_are(engine: sa.Engine) -> None:
    odd = '100% "odd" idx'
    execute(engine, "ALTER TABLE rag_chunks ADD kind text")
    quoted = odd.replace('"', '""')
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f'CREATE INDEX "{quoted}" ON rag_chunks USING ivfflat (embedding vector_l2_ops) WITH (lists=1) '
            "WHERE kind LIKE 'a%'".replace("%", "%%")
        )
        connection.exec_driver_sql('COMMENT ON INDEX "' + quoted.replace("%", "%%") + '" IS \'50%% "mine"\'')
    before = execute(engine, "SELECT indexdef FROM pg_indexes WHERE tablename = 'rag_chunks' ORDER BY 1")
    run_job(engine, to_job(engine, stub()))
    assert execute(engine, "SELECT indexdef FROM pg_indexes WHERE tablename = 'rag_chunks' ORDER BY 1") == before
    comment = "SELECT obj_description(oid, 'pg_class') FROM pg_class WHERE relname = :name"
    assert execute(engine, comment, name=odd) == [('50% "mine"',)]


def test_an_invalid_leftover_of_a_killed_build_is_repaired_at_the_next_start(engine: sa.Engine) -> None:
    run_job(engine, to_job(engine, stub()))
    broken = index(engine)
    execute(engine, f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{NAME}'::regclass")
    execute(engine, "UPDATE migration_index SET built_at = NULL")
    summary = run_job(engine, to_job(engine, stub()), "resume")
    assert summary.indexes_built == [NAME]
    assert index(engine)[0] != broken[0]
    assert index(engine)[1:] == broken[1:]
    assert waiting(engine) == []


def test_an_index_that_another_session_is_building_is_waited_for(engine: sa.Engine) -> None:
    definition = index(engine)[1]
    table = to_job(engine, stub()).slice.table
    run_job(engine, to_job(engine, stub(), limit=50))
    concurrently = definition.replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY")
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")

    def build_elsewhere() -> None:
        with autocommit.connect() as connection:
            connection.exec_driver_sql(concurrently)

    # Its entry, not only its progress: of two builds that begin together PostgreSQL ends one, to be tried again.
    being_built = "SELECT 1 FROM pg_class WHERE relname = :name"
    with ThreadPoolExecutor(2) as pool:
        with engine.begin() as holder:
            # A transaction that has written holds a concurrent build up.
            holder.execute(sa.text("UPDATE rag_chunks SET content = 'x' WHERE chunk_id = :key"), {"key": IDS[0]})
            building = pool.submit(build_elsewhere)
            while not execute(engine, being_built, name=NAME):
                assert not building.done()
            ours = pool.submit(build_deferred, engine, table, NEVER)
            while not execute(engine, "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%indisvalid AS valid%'"):
                pass
        building.result()
        assert ours.result() == [NAME]
    assert index(engine)[3]


def test_a_build_that_is_told_to_stop_is_left_to_the_next_start(engine: sa.Engine) -> None:
    stop, job = threading.Event(), to_job(engine, stub())

    def stop_at_build(event: MoveEvent) -> None:
        if isinstance(event, IndexBuilding):
            threading.Timer(0.2, stop.set).start()

    with engine.begin() as holder, ThreadPoolExecutor(1) as pool:
        # Another transaction that holds the build up, as a report of the application may for an hour.
        holder.execute(sa.text("UPDATE migration_quarantine SET attempts = 1"))
        holder.execute(sa.text("LOCK TABLE rag_chunks IN ROW EXCLUSIVE MODE"))
        defer_indexes_without_lock(engine, job)
        summary = pool.submit(run_job, engine, job, observer=stop_at_build, stop=stop).result()
    assert summary.interrupted
    assert waiting(engine) == [NAME]
    assert not (index(engine) or (None, None, None, False))[3]
    assert stored(engine) == expected(IDS, VECTORS)
    assert run_job(engine, to_job(engine, stub()), "resume").indexes_built == [NAME]
    assert index(engine)[3]


def defer_indexes_without_lock(engine: sa.Engine, job: Any) -> None:
    """Record the index as deferred; the holder's lock keeps it from being dropped, so its entry is renamed."""
    definition, comment = index(engine)[1:3]
    execute(
        engine,
        "INSERT INTO migration_index (target, index_name, definition, comment) VALUES (:target, :name, :definition, "
        ":comment)",
        target=job.slice.target,
        name=NAME,
        definition=definition,
        comment=comment,
    )
    execute(engine, f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{NAME}'::regclass")


def test_time_outs_of_the_role_do_not_end_a_build(upgraded_url: str, engine: sa.Engine) -> None:
    execute(engine, "CREATE FUNCTION slow(vector) RETURNS vector IMMUTABLE LANGUAGE sql AS 'SELECT $1'")
    run_job(engine, to_job(engine, stub()))
    execute(engine, f"DROP INDEX {NAME}")
    execute(engine, "UPDATE migration_index SET built_at = NULL")
    hasty = sa.create_engine(engine.url, connect_args={"options": "-c statement_timeout=300 -c lock_timeout=300"})
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as holder:
            holder.execute(sa.text("UPDATE rag_chunks SET content = 'x' WHERE chunk_id = :key"), {"key": IDS[0]})
            building = pool.submit(build_deferred, hasty, to_job(engine, stub()).slice.table, NEVER)
            holder.execute(sa.text("SELECT pg_sleep(0.8)"))
        assert building.result() == [NAME]
    with hasty.connect() as connection:
        assert connection.execute(sa.text("SHOW statement_timeout")).scalar_one() == "300ms"
    hasty.dispose()


@pytest.fixture
def writer(engine: sa.Engine) -> Iterator[sa.Engine]:
    """A role that may write to the tables and owns none of them."""
    execute(
        engine,
        """
        DO $$ BEGIN CREATE ROLE amprenta_writer LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
        GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO amprenta_writer;
        GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO amprenta_writer
        """,
    )
    writer = sa.create_engine(engine.url.set(username="amprenta_writer"), pool_size=10)
    yield writer
    writer.dispose()
    execute(engine, "DROP OWNED BY amprenta_writer")


def test_a_role_that_does_not_own_the_table_works_with_the_index_in_place(
    engine: sa.Engine, writer: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    before = index(engine)
    observer = Recorder()
    summary = run_job(writer, to_job(writer, stub()), observer=observer)
    assert stored(engine) == expected(IDS, VECTORS)
    assert (index(engine), waiting(engine), observer.deferred) == (before, [], [])
    assert summary.run.state == "finished"
    assert f"index {NAME} stays in place" in caplog.text


def test_a_role_that_may_not_build_the_index_leaves_it_to_one_that_may(
    engine: sa.Engine, writer: sa.Engine, caplog: pytest.LogCaptureFixture
) -> None:
    source = stub()

    def refuse(keys: Sequence[str]) -> None:
        raise CredentialsRefused("no longer")

    source.before_fetch = refuse
    with pytest.raises(CredentialsRefused):
        run_job(engine, to_job(engine, source))
    assert run_job(writer, to_job(writer, stub()), "resume").indexes_built == []
    assert waiting(engine) == [NAME]
    assert "is left to a role that may build it" in caplog.text
    assert run_job(engine, to_job(engine, stub()), "resume").indexes_built == [NAME]


def test_an_index_whose_lock_is_not_had_stays_in_place(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = index(engine)
    monkeypatch.setattr(index_module, "LOCK_SECONDS", 0.1)
    with engine.begin() as reader:
        reader.execute(sa.text("SELECT count(*) FROM rag_chunks"))
        assert defer_indexes(engine, to_job(engine, stub()).slice.table) == []
    assert (index(engine), waiting(engine)) == (before, [])


def test_two_processes_that_begin_together_put_the_index_off_once(engine: sa.Engine) -> None:
    table = to_job(engine, stub()).slice.table
    with ThreadPoolExecutor(6) as pool:
        deferred = list(pool.map(lambda _: defer_indexes(engine, table), range(6)))
    assert sorted(deferred) == [[], [], [], [], [], [NAME]]
    assert waiting(engine) == [NAME]


def test_a_build_has_the_memory_and_workers_it_is_given_and_no_other_session_has(engine: sa.Engine) -> None:
    ours = sa.create_engine(engine.url, pool_size=1, max_overflow=0)
    table, said = to_job(engine, stub()).slice.table, []
    defer_indexes(engine, table)
    assert build_deferred(ours, table, NEVER, BuildSettings("97MB", 1), said.append) == [NAME]
    (plan,) = said
    assert (plan.index, plan.rows, plan.memory_bytes) == (NAME, 0, 97 * 1024 * 1024)
    with ours.connect() as connection:
        assert connection.execute(sa.text("SHOW maintenance_work_mem")).scalar_one() == "64MB"
        assert connection.execute(sa.text("SHOW max_parallel_maintenance_workers")).scalar_one() == "2"
    ours.dispose()


def test_what_a_build_takes_is_said_at_the_end_of_a_run(
    engine: sa.Engine, upgraded_url: str, emulator: Callable[..., PineconeEmulator]
) -> None:
    pinecone = emulator()
    pinecone.load("", IDS, VECTORS)
    variables = environment(upgraded_url, pinecone, AMPRENTA_INDEX_WORKERS="0")
    code, output = run_forked(variables, "--keys-from", "source", "--no-verify", "--json")
    assert code == 0, output
    events = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    (plan,) = [event for event in events if event["event"] == "index"]
    assert (plan["index"], plan["rows"], plan["dimension"], plan["workers"], plan["fits"]) == (NAME, 100, 8, 0, True)
    order = [event["event"] for event in events]
    assert order.index("building") < order.index("index") < order.index("finished")


def test_how_far_a_build_is_is_shown_while_it_goes_on(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[MoveEvent] = []
    monkeypatch.setattr("amprenta_vectors.moves.indexing.LOOK_SECONDS", 0.05)
    run_job(engine, to_job(engine, stub()))
    table = to_job(engine, stub()).slice.table
    defer_indexes(engine, table, force=True)
    with ThreadPoolExecutor(1) as pool, watching_builds(engine, table, told.append):
        with engine.begin() as holder:
            # A transaction that has written holds a concurrent build up.
            holder.execute(sa.text("UPDATE rag_chunks SET content = 'x' WHERE chunk_id = :key"), {"key": IDS[0]})
            building = pool.submit(build_deferred, engine, table, NEVER)
            while not any(isinstance(event, IndexProgress) and "waiting for" in event.phase for event in told):
                assert not building.done()
                time.sleep(0.02)
        assert building.result() == [NAME]


class NoRoom(psycopg2.errors.DiskFull):
    """As PostgreSQL says it where a container's /dev/shm is full."""

    pgcode = "53100"


def without_room(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on a build with parallel workers finds no room; returns the statements that were tried."""
    execute_really, tried = index_module._execute, list[str]()

    def try_it(connection: Any, statement: str, stop: threading.Event) -> None:
        tried.append(statement.partition(" IF ")[0])
        workers = connection.exec_driver_sql("SHOW max_parallel_maintenance_workers").scalar_one()
        if "INDEX CONCURRENTLY" in statement and not statement.startswith("DROP") and workers != "0":
            said = NoRoom('could not resize shared memory segment "/PostgreSQL.1" to 67145056 bytes')
            raise DBAPIError(statement, None, said)
        execute_really(connection, statement, stop)

    monkeypatch.setattr(index_module, "_execute", try_it)
    return tried


def test_a_build_whose_parallel_workers_have_no_room_goes_on_without_them_and_says_how_to_give_more(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried = without_room(monkeypatch)
    assert run_job(engine, to_job(engine, stub())).indexes_built == [NAME]
    assert tried[:2] == ["CREATE INDEX CONCURRENTLY"] * 2
    assert index(engine)[3]
    assert "docker run --shm-size" in caplog.text


def test_a_rebuild_too(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run_job(engine, to_job(engine, stub()))
    without_room(monkeypatch)
    table = to_job(engine, stub()).slice.table
    assert rebuild_indexes(engine, table, threading.Event()) == [NAME]


def test_a_disk_that_is_full_without_workers_too_is_an_error(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_job(engine, to_job(engine, stub(), keep_deferred=True))
    tried: list[str] = []

    def find_no_room(connection: Any, statement: str, stop: threading.Event) -> None:
        tried.append(statement)
        raise DBAPIError(statement, None, NoRoom("No space left on device"))

    monkeypatch.setattr(index_module, "_execute", find_no_room)
    with pytest.raises(DBAPIError):
        build_deferred(engine, to_job(engine, stub()).slice.table, threading.Event())
    assert len(tried) == 2


@pytest.mark.parametrize("rebuilt", [False, True])
def test_the_lists_of_an_ivfflat_index_follow_the_rows_at_each_build(engine: sa.Engine, rebuilt: bool) -> None:
    execute(engine, f"DROP INDEX {NAME}")
    execute(engine, f"CREATE INDEX {NAME} ON rag_chunks USING ivfflat (embedding vector_cosine_ops) WITH (lists = 1)")
    if not rebuilt:
        defer_indexes(engine, to_job(engine, stub()).slice.table)
    execute(
        engine,
        "INSERT INTO rag_chunks (chunk_id, embedding) SELECT n, ARRAY[n, 1, 2, 3, 4, 5, 6, 7]::vector "
        "FROM generate_series(1, 6000) n",
    )
    table = to_job(engine, stub()).slice.table
    (rebuild_indexes if rebuilt else build_deferred)(engine, table, threading.Event())
    assert "lists='6'" in index(engine)[1]


def test_lists_that_a_person_chose_are_kept_while_they_suit_about() -> None:
    assert [fitting_lists(lists, 6000) for lists in (1, 2, 6, 24, 25, 100)] == [6, 2, 6, 24, 6, 6]
    plain = "CREATE INDEX i ON t USING ivfflat ((embedding::halfvec(3)) halfvec_cosine_ops){} WHERE (a > 0)"
    for stated in ("", " WITH (lists='1')", " WITH (lists=1)"):
        assert with_lists(plain.format(stated), 9) == plain.format(" WITH (lists='9')")


@pytest.mark.parametrize("name", ["i", '"USING hnsw (lists=7)"', '"a "" WITH (lists=7)"'])
@pytest.mark.parametrize("where", ["", " WHERE (lists = 5)", " WHERE (note = ' WITH (lists=''5'')'::text)"])
def test_lists_are_those_of_the_option_and_not_of_what_is_called_so(name: str, where: str) -> None:
    bare = f"CREATE INDEX {name} ON public.t USING ivfflat (embedding vector_cosine_ops){{}}{where}"
    assert (Shape.of(bare.format("")).method, Shape.of(bare.format("")).lists) == ("ivfflat", 100)
    for stated, lists in (("", 100), (" WITH (lists='3')", 3)):
        assert Shape.of(bare.format(stated)).lists == lists
        assert with_lists(bare.format(stated), 9) == bare.format(" WITH (lists='9')")


def test_the_rate_of_a_run_does_not_count_the_building_of_the_index(engine: sa.Engine) -> None:
    ahead = 0.0

    def build(*_: Any) -> list[str]:
        nonlocal ahead
        ahead += 5000.0
        return ["an_index"]

    work = Backfill(
        engine,
        to_job(engine, stub()),
        Recorder(),
        threading.Event(),
        build_index=build,
        clock=lambda: time.monotonic() + ahead,
    )
    summary = work.work(work.start("new"))
    assert summary.indexes_built == ["an_index"]
    assert summary.seconds < 1000
