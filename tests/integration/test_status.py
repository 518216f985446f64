"""What `amprenta-vectors status` shows of a run, at once or as it goes on, and that looking changes nothing."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from backfill_tools import ROOT, StubSource, end_process, execute, run_job, to_ids, to_job, to_vectors
from click.testing import CliRunner, Result

from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.progress import orders
from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.schema.keymaps import Numbered
from amprenta_vectors.schema.vector_table import VectorTable

IDS, VECTORS = to_ids(200), to_vectors(200)
WATCHING = """
    SELECT state FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE '%binning AS (%' AND pid <> pg_backend_pid()
"""


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amprenta_vectors.cli.live.LINE_SECONDS", 0.1)


@pytest.fixture
def engine(upgraded_url: str) -> Iterator[sa.Engine]:
    engine = create_engine(Settings.load(database_url=upgraded_url), pool_size=30)
    yield engine
    engine.dispose()


class Held:
    """A run in this process that stands still after three of its four batches until it is let go on."""

    def __init__(self, engine: sa.Engine) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        source = StubSource({key: [vector] for key, vector in zip(IDS, VECTORS, strict=True)}, page=200)
        source.before_fetch = self._hold
        self.job: Job = to_job(engine, source, workers=1)
        self._calls = 0
        self._pool = ThreadPoolExecutor(1)
        self.running = self._pool.submit(run_job, engine, self.job)
        assert self.reached.wait(20)

    def _hold(self, keys: Sequence[str]) -> None:
        self._calls += 1
        if self._calls == 4:
            self.reached.set()
            assert self.go_on.wait(60)


@pytest.fixture
def held(engine: sa.Engine) -> Iterator[Held]:
    run = Held(engine)
    yield run
    run.go_on.set()
    run.running.result(30)


def status(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["status", *arguments], env={"DATABASE_URL": url})


def shown(url: str, number: int = 1) -> dict[str, Any]:
    result = status(url, str(number), "--json")
    assert result.exit_code == 0, result.output
    [run] = json.loads(result.output)["runs"]
    assert isinstance(run, dict)
    return run


def start_watching(url: str, *arguments: str, terminal: int | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "amprenta_vectors", "status", "--watch", *arguments],
        env={**os.environ, "DATABASE_URL": url, "PYTHONUNBUFFERED": "1", "TERM": "xterm", "COLUMNS": "120"},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if terminal is None else terminal,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_json_of_a_run_that_goes_on_is_what_the_database_has(
    engine: sa.Engine, upgraded_url: str, held: Held
) -> None:
    with engine.begin() as connection:
        orders.note_throttle(connection, 1, "a replica lags by 40 s")
    run = shown(upgraded_url)
    assert (run["run"], run["state"], run["desired_state"]) == (1, "running", "running")
    assert run["keys"] == {"done": 150, "expected": 200, "listed": True}
    assert run["batches"] == {"done": 3, "running": 1, "planned": 4}
    assert run["rows"]["written"] == 150
    assert run["throttle_reason"] == "a replica lags by 40 s"
    [(owner, lease)] = execute(
        engine,
        "SELECT owner, extract(epoch FROM lease_expires_at - clock_timestamp())::float "
        "FROM migration_progress WHERE status = 'running'",
    )
    [process] = run["processes"]
    assert (process["owner"], process["batches"]) == (owner, 1)
    assert process["lease_seconds"] == pytest.approx(lease, abs=held.job.lease_seconds)
    assert run["indexes"] == {"idx_rag_chunks_embedding": False}
    with engine.begin() as connection:
        orders.note_throttle(connection, 1, None)


def test_the_lines_of_a_run_that_goes_on_say_why_it_waits(engine: sa.Engine, upgraded_url: str, held: Held) -> None:
    with engine.begin() as connection:
        orders.note_throttle(connection, 1, "a replica lags by 40 s")
    output = status(upgraded_url).output
    assert "run 1 running, 1 process(es) at work" in output
    assert "150 of 200 keys done in 3 of 4 batches" in output
    assert "throttled: a replica lags by 40 s" in output
    with engine.begin() as connection:
        orders.note_throttle(connection, 1, None)


def test_watching_prints_lines_where_there_is_no_terminal_and_ends_with_the_run(upgraded_url: str, held: Held) -> None:
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(status, upgraded_url, "--watch")
        time.sleep(0.5)
        assert not watching.done()
        held.go_on.set()
        result = watching.result(30)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert "run 1 running, 1 process(es) at work: 150 of 200 keys done" in lines[0]
    assert "run 1 finished: 200 of 200 keys done" in lines[-1]


def test_watching_as_json_is_one_object_a_line(upgraded_url: str, held: Held) -> None:
    held.go_on.set()
    held.running.result(30)
    lines = status(upgraded_url, "--watch", "--json").output.splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["finished"]


def test_a_terminal_gets_a_screen_and_ctrl_c_leaves_the_run_alone(
    engine: sa.Engine, upgraded_url: str, held: Held
) -> None:
    execute(
        engine, "INSERT INTO migration_quarantine (run_id, key, reason, batch, detail) VALUES (1, 'k', '[/]', 1, '')"
    )
    ours, theirs = pty.openpty()
    process = start_watching(upgraded_url, terminal=theirs)
    os.close(theirs)
    try:
        screen = read_until(ours, "lease runs out in")
        process.send_signal(signal.SIGINT)
        screen += read_until(ours, "the run goes on")
        assert process.wait(20) == 0
    finally:
        end_process(process)
        os.close(ours)
    for text in ("150 of 200 keys", "1 process(es) at work", "[/]", "idx_rag_chunks_embedding waits to be built"):
        assert text in screen
    assert shown(upgraded_url)["state"] == "running"
    held.go_on.set()
    assert held.running.result(30).counts.written == 200


def read_until(terminal: int, text: str) -> str:
    seen, deadline = "", time.monotonic() + 20
    while text not in seen:
        assert time.monotonic() < deadline, seen
        try:
            seen += os.read(terminal, 4096).decode(errors="replace")
        except OSError:
            break
    assert text in seen, seen
    return seen


def test_a_role_that_may_only_read_is_enough(engine: sa.Engine, upgraded_url: str, held: Held) -> None:
    execute(engine, "DROP ROLE IF EXISTS looks_only")
    execute(engine, "CREATE ROLE looks_only LOGIN")
    try:
        execute(engine, "ALTER ROLE looks_only SET default_transaction_read_only = on")
        execute(engine, "GRANT SELECT ON ALL TABLES IN SCHEMA public TO looks_only")
        url = upgraded_url.replace("postgres@", "looks_only@")
        assert shown(url)["keys"]["done"] == 150
        held.go_on.set()
        held.running.result(30)
        assert status(url, "--watch").exit_code == 0
    finally:
        execute(engine, "DROP OWNED BY looks_only")
        execute(engine, "DROP ROLE looks_only")


def test_a_look_is_one_round_trip_outside_any_transaction(
    engine: sa.Engine, upgraded_url: str, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    opened: list[sa.Engine] = []

    def open_and_listen(settings: Settings, connections: int) -> sa.Engine:
        opened.append(create_engine(settings, pool_size=connections))
        sa.event.listen(opened[0], "before_cursor_execute", lambda c, cursor, statement, *_: sent.append(statement))
        return opened[0]

    monkeypatch.setattr("amprenta_vectors.cli.status.open_database", open_and_listen)
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(status, upgraded_url, "--watch")
        states = set[str]()
        for _ in range(50):
            states.update(state for (state,) in execute(engine, WATCHING))
            time.sleep(0.02)
        held.go_on.set()
        lines = watching.result(30).output.splitlines()
    looks = [statement for statement in sent if "WITH run AS" in statement]
    assert len(looks) == len(lines) > 2
    after_first = sent[sent.index(looks[0]) :]
    assert after_first == looks
    assert states <= {"idle", "active"}
    assert "idle" in states
    opened[0].dispose()


def test_a_run_that_there_is_not_is_a_usage_error(engine: sa.Engine, upgraded_url: str) -> None:
    result = status(upgraded_url, "7")
    assert result.exit_code == 2
    assert "there is no run 7" in result.output


def test_watching_waits_for_the_index_to_be_built(engine: sa.Engine, upgraded_url: str, held: Held) -> None:
    with engine.connect() as blocker, ThreadPoolExecutor(1) as pool:
        # A writer's lock, which the build has to wait for.
        blocker.execute(sa.text("LOCK TABLE rag_chunks IN ROW EXCLUSIVE MODE"))
        watching = pool.submit(status, upgraded_url, "--watch")
        held.go_on.set()
        deadline = time.monotonic() + 20
        while not execute(engine, "SELECT 1 FROM pg_stat_progress_create_index"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        # Two looks of the watcher at the build: what the first one saw has been shown.
        looks: list[str] = []

        def look(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
            if "pg_stat_progress_create_index" in statement:
                looks.append(statement)

        sa.event.listen(sa.Engine, "after_cursor_execute", look)
        while len(looks) < 2:
            assert time.monotonic() < deadline + 40
            time.sleep(0.02)
        sa.event.remove(sa.Engine, "after_cursor_execute", look)
        assert not watching.done()
        blocker.rollback()
        lines = watching.result(30).output.splitlines()
    assert any("waiting for writers" in line for line in lines)
    assert "run 1 finished" in lines[-1]


def test_keys_are_counted_and_not_rows(engine: sa.Engine, upgraded_url: str) -> None:
    execute(
        engine,
        "CREATE TABLE chunks (document text, number integer, embedding vector(8), PRIMARY KEY (document, number))",
    )
    table = VectorTable(name="chunks", table="chunks", key=("document", "number"), dimension=8)
    source = StubSource({"none": [], "one": [VECTORS[0]], "three": list(VECTORS[1:4])})
    run_job(engine, to_job(engine, source, table=table, key_map=Numbered(), batch_size=2))
    run = shown(upgraded_url, 2)
    assert run["rows"] == {"written": 4, "skipped": 0, "missing": 1, "quarantined": 0}
    assert run["keys"] == {"done": 3, "expected": 3, "listed": True}
