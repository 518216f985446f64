"""A move from Python: docs/python.md runs as it stands, in any thread, and says what happens to an observer alone."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from backfill_tools import environment, execute, expected, on_the_wire, stored, to_ids, to_vectors

from amprenta_vectors import ExitCode, Move, Settings
from amprenta_vectors.backfill.engine import observer
from amprenta_vectors.backfill.engine.observer import BatchDone, MoveEvent, RunAdvanced
from amprenta_vectors.errors import RunConflict
from amprenta_vectors.moves import events
from amprenta_vectors.moves.ends import Ends, open_ends
from amprenta_vectors.moves.events import Differed, Noticed, Reported, RunEnded, Verified
from amprenta_vectors.moves.move import complete
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.sandbox.pinecone.faults import Fault

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
IDS, VECTORS = to_ids(120), to_vectors(120)


@pytest.fixture
def pinecone(emulator: Callable[..., PineconeEmulator]) -> PineconeEmulator:
    started = emulator()
    started.load("", IDS, VECTORS, [{"text": f"text of {key}"} for key in IDS])
    return started


@pytest.fixture
def settings(
    upgraded_url: str, pinecone: PineconeEmulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Settings]:
    for name, value in environment(upgraded_url, pinecone, AMPRENTA_REPORT=str(tmp_path)).items():
        monkeypatch.setenv(name, value)
    return Settings.load(batch_size=10, workers=2)


@contextmanager
def closing_ends(settings: Settings) -> Iterator[Ends]:
    ends = open_ends(settings)
    yield ends
    ends.origin.close()
    ends.engine.dispose()


def elsewhere(work: Callable[[], Any]) -> Any:
    """What ``work`` returns in a thread that is not the main one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def run_block(number: int) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    elsewhere(lambda: exec(blocks()[number], names))
    return names


def test_the_first_example_moves_in_ten_lines_and_prints_nothing(
    settings: Settings, engine: sa.Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    assert len(blocks()[0].splitlines()) <= 10
    names = run_block(0)
    assert names["code"] is ExitCode.CLEAN
    assert names["plan"].figures.rows == len(IDS)
    assert stored(engine) == expected(IDS, VECTORS)
    assert capfd.readouterr() == ("", "")


def test_the_example_of_all_namespaces_moves_each(
    settings: Settings, pinecone: PineconeEmulator, engine: sa.Engine
) -> None:
    pinecone.load("other", IDS[:5], VECTORS[:5])
    assert run_block(1)["code"] is ExitCode.CLEAN
    assert len(stored(engine, "other")) == 5


def test_the_examples_of_airflow_and_django_move(
    settings: Settings, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def task(work: Any = None, **_: Any) -> Any:
        return work or (lambda function: function)

    airflow = SimpleNamespace(task=task)
    django = SimpleNamespace(BaseCommand=SimpleNamespace, CommandError=RuntimeError)
    for name, module in {"airflow.sdk": airflow, "django.core.management.base": django}.items():
        for length in range(1, len(name.split("."))):
            monkeypatch.setitem(sys.modules, ".".join(name.split(".")[:length]), ModuleType("package"))
        monkeypatch.setitem(sys.modules, name, module)
    tasks = run_block(2)
    assert elsewhere(tasks["backfill"]) == {"run": 1, "written": len(IDS)}
    elsewhere(tasks["prove"])
    command: dict[str, Any] = {"__name__": "example"}
    exec(blocks()[3], command)
    said: list[str] = []
    command["Command"](stdout=SimpleNamespace(write=said.append)).handle()
    assert "'event': 'finished'" in said[-1]


def test_a_plan_counts_both_ends_and_changes_nothing(settings: Settings, engine: sa.Engine) -> None:
    with Move(settings, keys_from="source") as move:
        plan = move.plan()
    assert (plan.source.count, plan.figures.rows, plan.keys_from, plan.metered) == (len(IDS), len(IDS), "source", True)
    assert execute(engine, "SELECT count(*) FROM migration_run WHERE started_at IS NOT NULL") == [(0,)]
    assert stored(engine) == {}


def test_nothing_is_connected_before_it_is_needed() -> None:
    Move(Settings.load(database_url="postgresql://nobody@127.0.0.1:9/nothing"))


def test_what_an_observer_is_told_can_be_sent_elsewhere(settings: Settings, engine: sa.Engine) -> None:
    told: list[MoveEvent] = []
    with Move(settings, keys_from="source") as move:
        code = elsewhere(lambda: move.complete(told.append))
        execute(engine, "UPDATE rag_chunks SET embedding = embedding + embedding WHERE chunk_id = :key", key=IDS[3])
        found = elsewhere(lambda: move.verify(told.append))
    assert code is ExitCode.CLEAN
    lines = [json.loads(json.dumps(event.to_json())) for event in told]
    names = [line["event"] for line in lines]
    wanted = ["started", "finished", "comparing", "verified", "reported", "comparing", "difference", "verified"]
    assert [name for name in names if name in wanted] == wanted
    batches = [line for line in lines if line["event"] == "batch"]
    assert {line["run"] for line in batches} == {1}
    assert len({line["batch"] for line in batches}) == len(batches) > 1
    assert sum(line["outcome"]["written"] for line in batches) == len(IDS)
    assert [event.key for event in told if isinstance(event, Differed)] == [IDS[3]]
    assert (found.unexpected, found.counts["different"]) == (1, 1)
    [report] = [event for event in told if isinstance(event, Reported)]
    assert [Path(file).name for file in report.files] == ["run-1.json", "run-1.html"]
    assert all(Path(file).is_file() for file in report.files)
    assert any(isinstance(event, RunAdvanced) for event in told)
    assert any(isinstance(event, Noticed) and "model" in event.text for event in told)


def test_every_event_is_listed_in_the_page_by_its_name() -> None:
    rows = re.findall(r"^\| `(.*?)` \| `(\w+)` \|", PAGE, re.MULTILINE)
    listed = {kind: names.split("`, `")[0] for names, kind in rows}
    kinds = [
        kind
        for module in (observer, events)
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, MoveEvent) and kind is not MoveEvent
    ]
    assert listed == {kind.__name__: kind.name for kind in kinds}


def test_a_stop_in_the_middle_commits_what_is_in_hand_and_the_next_move_resumes(
    settings: Settings, pinecone: PineconeEmulator, engine: sa.Engine
) -> None:
    stop = threading.Event()
    pinecone.faults.set("fetch", Fault(latency=0.1))

    def stop_at_the_first_batch(event: MoveEvent) -> None:
        if isinstance(event, BatchDone):
            stop.set()

    with Move(settings, keys_from="source", stop=stop) as move:
        summary = elsewhere(lambda: move.run(stop_at_the_first_batch))
        assert summary.interrupted
        assert move.conclude() is ExitCode.INTERRUPTED
    before = len(stored(engine))
    assert 0 < before < len(IDS)
    pinecone.faults.set("fetch", Fault())
    told: list[MoveEvent] = []
    with Move(settings) as move:
        assert elsewhere(lambda: move.complete(told.append)) is ExitCode.CLEAN
    [ended] = [event for event in told if isinstance(event, RunEnded)]
    assert (ended.summary.run.id, ended.summary.written_here) == (summary.run.id, len(IDS) - before)
    assert stored(engine) == expected(IDS, VECTORS)


def test_what_an_observer_raises_stops_the_run_which_stays_resumable(settings: Settings, engine: sa.Engine) -> None:
    def fail_at_the_first_batch(event: MoveEvent) -> None:
        if isinstance(event, BatchDone):
            raise OSError("the log is full")

    with Move(settings, keys_from="source") as move:
        with pytest.raises(OSError, match="the log is full"):
            move.run(fail_at_the_first_batch)
        assert move.complete() is ExitCode.CLEAN
    assert stored(engine) == expected(IDS, VECTORS)


def test_a_move_that_was_stopped_before_it_ran_begins_nothing(settings: Settings, engine: sa.Engine) -> None:
    stop = threading.Event()
    stop.set()
    with Move(settings, stop=stop) as move:
        assert move.run() is None
        assert move.conclude() is ExitCode.INTERRUPTED
    assert execute(engine, "SELECT count(*) FROM migration_run WHERE started_at IS NOT NULL") == [(0,)]


def test_a_run_is_concluded_by_another_process_than_the_one_that_ended_it(
    settings: Settings, engine: sa.Engine, tmp_path: Path
) -> None:
    with Move(settings, keys_from="source") as move, pytest.raises(RunConflict, match="nothing to conclude"):
        move.conclude()
    with Move(settings, keys_from="source") as move:
        move.run()
    assert not list(tmp_path.iterdir())
    execute(engine, "UPDATE rag_chunks SET embedding = embedding + embedding WHERE chunk_id = :key", key=IDS[3])
    told: list[MoveEvent] = []
    with Move(settings, keys_from="source") as move:
        assert move.conclude(told.append) is ExitCode.FAILED
    [found] = [event for event in told if isinstance(event, Verified)]
    assert (found.compared, found.unexpected) == (len(IDS), 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-1.html", "run-1.json"]
    report = json.loads((tmp_path / "run-1.json").read_text())
    assert report["verification"]["different"] == 1


def test_rows_that_were_quarantined_are_in_the_code_and_the_summary(
    settings: Settings, pinecone: PineconeEmulator, engine: sa.Engine
) -> None:
    pinecone.load("", ["zero"], VECTORS[:1] * 0)
    with Move(settings.model_copy(update={"max_bad_share": 1.0}), keys_from="source") as move:
        assert move.complete() is ExitCode.QUARANTINED
    assert move.summary is not None
    assert move.summary.errors == {"zero_under_cosine": 1}
    assert stored(engine)[IDS[0]] == on_the_wire(VECTORS[0])


def index_there(engine: sa.Engine) -> bool:
    return bool(execute(engine, "SELECT to_regclass('idx_rag_chunks_embedding') IS NOT NULL")[0][0])


def test_of_several_namespaces_the_index_is_built_once_after_the_last(
    settings: Settings, pinecone: PineconeEmulator, engine: sa.Engine
) -> None:
    for name in ("a", "b"):
        pinecone.load(name, IDS[:20], VECTORS[:20])
    there: list[tuple[str, bool]] = []

    def look(event: MoveEvent) -> None:
        if isinstance(event, RunEnded):
            there.append((event.summary.run.scope["namespace"], index_there(engine)))

    with closing_ends(settings) as ends:
        moves = [Move(settings, namespace=name, mode="new", keys_from="source", ends=ends) for name in ("", "a", "b")]
        assert complete(moves, look) is ExitCode.CLEAN
    assert there == [("", False), ("a", False), ("b", True)]
    assert execute(engine, "SELECT count(*) FROM migration_event WHERE event = 'index_built'") == [(1,)]


def test_a_process_that_dies_between_two_namespaces_leaves_the_other_queued_and_the_index_deferred(
    settings: Settings, pinecone: PineconeEmulator, engine: sa.Engine
) -> None:
    pinecone.load("a", IDS[:20], VECTORS[:20])

    def die(event: MoveEvent) -> None:
        if event.name == RunEnded.name:
            raise RuntimeError("killed")

    with closing_ends(settings) as ends:
        moves = [Move(settings, namespace=name, mode="new", keys_from="source", ends=ends) for name in ("", "a")]
        with pytest.raises(RuntimeError, match="killed"):
            complete(moves, die)
        assert execute(engine, "SELECT state FROM migration_run ORDER BY id") == [("finished",), ("planned",)]
        assert not index_there(engine)
        moves = [Move(settings, namespace=name, ends=ends) for name in ("", "a")]
        assert complete(moves) is ExitCode.CLEAN
    assert len(stored(engine, "a")) == 20
    assert index_there(engine)
    assert execute(engine, "SELECT count(*) FROM migration_run WHERE verified_at IS NOT NULL") == [(2,)]


@pytest.mark.parametrize("options", [{"limit": 30}, {"keep_deferred": True}])
def test_rows_to_try_it_out_and_rows_before_others_leave_the_index_to_the_load_that_follows(
    settings: Settings, engine: sa.Engine, options: dict[str, Any]
) -> None:
    told: list[MoveEvent] = []
    with Move(settings, mode="new", keys_from="source", **options) as move:
        move.run(told.append)
    assert not index_there(engine)
    [notice] = [event.text for event in told if isinstance(event, Noticed) and "deferred" in event.text]
    assert "idx_rag_chunks_embedding stays deferred" in notice
    assert "amprenta-vectors index build" in notice
    with Move(settings, mode="new", keys_from="source") as move:
        summary = move.run()
    assert summary is not None
    assert summary.indexes_built == ["idx_rag_chunks_embedding"]
    assert len(stored(engine)) == len(IDS)
