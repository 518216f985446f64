"""Verified is a state that only a whole comparison sets: whoever was killed when, `--resume` does what is missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from backfill_tools import environment, execute, fork_process, pinecone_index, run_forked, to_ids, to_vectors

from amprenta_vectors import ExitCode, Move, Settings
from amprenta_vectors.backfill.database import index as index_module
from amprenta_vectors.backfill.engine.observer import MoveEvent
from amprenta_vectors.backfill.verify.compare import Verifier
from amprenta_vectors.ddl.gate import check_finished
from amprenta_vectors.errors import RunConflict
from amprenta_vectors.moves.events import Verified
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.sandbox.pinecone.faults import Fault

IDS, VECTORS, OTHER = to_ids(60), to_vectors(60), to_vectors(60, seed=1)


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


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


def complete(settings: Settings, **options: Any) -> tuple[ExitCode, list[Verified]]:
    """How a move ended, and the comparisons that it made."""
    told: list[MoveEvent] = []
    with Move(settings, **{"keys_from": "source"} | options) as move:
        code = move.complete(told.append)
    return code, [event for event in told if isinstance(event, Verified)]


def verified_runs(engine: sa.Engine) -> list[Any]:
    return list(execute(engine, "SELECT id FROM migration_run WHERE verified_at IS NOT NULL"))


def passes(engine: sa.Engine) -> bool:
    """Whether the gate lets a contract pass; what it says else is that nobody verified."""
    with engine.connect() as connection:
        if verified_runs(engine):
            return check_finished(connection, "rag_chunks", "embedding") > 0
        with pytest.raises(RunConflict, match="is not verified") as caught:
            check_finished(connection, "rag_chunks", "embedding")
        assert "backfill --resume" in caught.value.hint
        return False


def test_killed_before_its_comparison_a_run_is_compared_by_whoever_resumes(
    settings: Settings, engine: sa.Engine, tmp_path: Path
) -> None:
    with Move(settings, keys_from="source") as move:
        move.run()
    assert not passes(engine)
    code, [compared] = complete(settings)
    assert (code, compared.compared) == (ExitCode.CLEAN, len(IDS))
    assert passes(engine)
    assert (tmp_path / "run-1.html").exists()
    # What is proven is not read once more.
    assert complete(settings) == (ExitCode.CLEAN, [])


@pytest.mark.parametrize(
    ("target", "name"), [(Verifier, "_differences"), (index_module, "_build")], ids=["comparison", "build of the index"]
)
def test_killed_before_the_proof_a_run_gets_its_index_and_its_proof_by_resume(
    settings: Settings, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, target: Any, name: str
) -> None:
    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(target, name, die)
        with pytest.raises(Killed):
            complete(settings)
    assert not passes(engine)
    code, [compared] = complete(settings)
    assert (code, compared.unexpected, passes(engine)) == (ExitCode.CLEAN, 0, True)
    indexes = execute(engine, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'idx_rag_chunks_embedding'::regclass")
    assert indexes == [(True,)]


def test_a_comparison_that_failed_is_not_forgotten_by_the_next_resume(settings: Settings, engine: sa.Engine) -> None:
    with Move(settings, keys_from="source") as move:
        move.run()
    execute(engine, "UPDATE rag_chunks SET embedding = embedding + embedding WHERE chunk_id = :key", key=IDS[3])
    for _ in range(2):
        code, [compared] = complete(settings)
        assert (code, compared.unexpected, passes(engine)) == (ExitCode.FAILED, 1, False)
    execute(engine, "UPDATE rag_chunks SET embedding = NULL WHERE chunk_id = :key", key=IDS[3])
    code, [compared] = complete(settings, keys_from="table")
    assert (code, compared.unexpected, passes(engine)) == (ExitCode.CLEAN, 0, True)


def test_a_comparison_that_fails_takes_an_earlier_proof_away(settings: Settings, engine: sa.Engine) -> None:
    complete(settings)
    execute(engine, "UPDATE rag_chunks SET embedding = embedding + embedding WHERE chunk_id = :key", key=IDS[3])
    # Of what the application writes the proof says nothing.
    assert passes(engine)
    with Move(settings) as move:
        assert move.verify().unexpected == 1
    assert not passes(engine)


@pytest.mark.parametrize("later", ["reconcile", "replace", "delete"])
def test_what_a_later_run_writes_takes_the_proof_away(
    settings: Settings, engine: sa.Engine, pinecone: PineconeEmulator, later: str
) -> None:
    complete(settings)
    assert passes(engine)
    if later == "delete":
        with pinecone_index(pinecone) as index:
            index.delete(ids=IDS[:2])
        options: dict[str, Any] = {"keys_from": "reconcile", "delete": True}
    else:
        pinecone.load("", IDS[:1], OTHER[:1], [{"text": "new"}])
        options = {"keys_from": "reconcile"} if later == "reconcile" else {"replace": True, "mode": "new"}
    with Move(settings, **options) as move:
        summary = move.run()
    assert summary is not None
    assert not passes(engine)
    code, [compared] = complete(settings)
    assert (code, compared.unexpected, passes(engine)) == (ExitCode.CLEAN, 0, True)


def test_a_later_run_that_writes_nothing_leaves_the_proof(settings: Settings, engine: sa.Engine) -> None:
    complete(settings)
    with Move(settings, keys_from="reconcile") as move:
        move.run()
    assert passes(engine)


def test_a_comparison_beside_which_a_run_writes_proves_nothing(
    settings: Settings, engine: sa.Engine, pinecone: PineconeEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(settings)
    compare = Verifier._differences

    def write_after(self: Verifier, *arguments: Any) -> Any:
        yield from compare(self, *arguments)
        monkeypatch.setattr(Verifier, "_differences", compare)
        pinecone.load("", IDS[:1], OTHER[:1], [{"text": "new"}])
        with Move(settings, keys_from="reconcile") as move:
            move.run()

    monkeypatch.setattr(Verifier, "_differences", write_after)
    with Move(settings) as move:
        assert move.verify().unexpected == 0
    assert not passes(engine)


def test_a_process_that_is_killed_while_it_compares_leaves_that_to_the_next(
    settings: Settings, upgraded_url: str, engine: sa.Engine, pinecone: PineconeEmulator, tmp_path: Path
) -> None:
    with Move(settings, keys_from="source") as move:
        move.run()
    variables = environment(upgraded_url, pinecone, AMPRENTA_REPORT=str(tmp_path))
    pinecone.faults.set("fetch", Fault(latency=60.0))
    before = pinecone.calls["fetch"]
    process = fork_process(variables, "--resume")
    deadline = time.monotonic() + 60.0
    while pinecone.calls["fetch"] == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    pinecone.faults.clear()
    assert not passes(engine)
    code, output = run_forked(variables, "--resume")
    assert (code, passes(engine)) == (0, True), output
