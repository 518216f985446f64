"""Rows that cannot be carried over: found within the stated number of tries, never lost, and too many stop the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import (
    StubSource,
    add_rows,
    counted,
    errors_of,
    execute,
    expected,
    open_pinecone,
    refuse,
    run_job,
    stored,
    to_ids,
    to_job,
    to_vectors,
)

from amprenta_vectors import bisect
from amprenta_vectors.backends.pinecone import source as pinecone_source
from amprenta_vectors.backends.pinecone import wire as wire
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.bisect import budget, most_tries
from amprenta_vectors.errors import KeysRefused, SourceError, TooManyQuarantined
from amprenta_vectors.reasons import Reason
from amprenta_vectors.sandbox.pinecone import Fault, PineconeEmulator

StartEmulator = Callable[..., PineconeEmulator]
IDS, VECTORS = to_ids(1000), to_vectors(1000)
TRANSPORTS = pytest.mark.parametrize("transport", ["grpc", "rest"])


def stub(ids: Sequence[str] = IDS) -> StubSource:
    return StubSource({key: [vector] for key, vector in zip(ids, to_vectors(len(ids)), strict=True)}, page=1000)


def some(number: int, seed: int) -> list[int]:
    """Positions among a thousand."""
    return sorted(np.random.default_rng(seed).choice(1000, number, replace=False).tolist())


def without(bad: Sequence[str]) -> dict[str, bytes]:
    return {key: vector for key, vector in expected(IDS, VECTORS).items() if key not in set(bad)}


# What PostgreSQL refuses.


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("by", ["trigger", "check"])
def test_of_1000_rows_with_7_bad_ones_993_are_written_within_113_statements(
    engine: sa.Engine, by: str, seed: int
) -> None:
    bad = [IDS[position] for position in some(7, seed)]
    add_rows(engine, IDS)
    execute(engine, "ANALYZE rag_chunks")
    if by == "trigger":
        refuse(engine, bad)
    else:
        listed = ", ".join(f"'{key}'" for key in bad)
        execute(
            engine,
            f"ALTER TABLE rag_chunks ADD CHECK (embedding IS NULL OR chunk_id NOT IN ({listed}))",
        )
    source = stub()
    with counted(engine, "UPDATE rag_chunks") as statements:
        summary = run_job(engine, to_job(engine, source, keys_from="table", batch_size=1000))
    assert (summary.counts.written, summary.counts.quarantined) == (993, 7)
    assert errors_of(engine, summary.run.id) == dict.fromkeys(bad, "write_refused")
    assert stored(engine) == without(bad)
    assert len(statements) <= most_tries(1000, 7) == 113
    assert len(source.fetched) == 1000


def test_rows_that_the_budget_leaves_over_are_quarantined_with_a_reason_of_their_own(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bisect, "budget", lambda rows: 20)
    bad = [IDS[position] for position in some(40, 4)]
    add_rows(engine, IDS)
    refuse(engine, bad)
    with counted(engine, "UPDATE rag_chunks") as statements:
        summary = run_job(engine, to_job(engine, stub(), keys_from="table", batch_size=1000))
    assert len(statements) == 20
    found = errors_of(engine, summary.run.id)
    assert set(bad) <= found.keys()
    assert set(found.values()) == {"not_isolated"}
    assert {**stored(engine), **dict.fromkeys(found, b"")}.keys() == set(IDS)
    assert summary.counts.written + summary.counts.quarantined == 1000
    assert "no " in execute(engine, "SELECT detail FROM migration_quarantine LIMIT 1")[0][0]


def test_a_batch_in_which_every_row_is_bad_costs_no_more_than_its_budget(engine: sa.Engine) -> None:
    add_rows(engine, IDS)
    execute(engine, "ANALYZE rag_chunks")
    execute(engine, "ALTER TABLE rag_chunks ADD CHECK (embedding IS NULL)")
    with counted(engine, "UPDATE rag_chunks") as statements:
        summary = run_job(engine, to_job(engine, stub(), keys_from="table", batch_size=1000))
    assert len(statements) == budget(1000)
    assert (summary.counts.written, summary.counts.quarantined) == (0, 1000)
    assert summary.errors.keys() <= {"not_isolated", "write_refused"}


# What the source refuses.


@pytest.fixture
def long_ids(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids that Pinecone refuses and this package takes for good ones, in the places of seven good ones."""
    monkeypatch.setattr(pinecone_source, "LONGEST_ID", 10_000)
    bad = set(some(7, 6))
    return [f"{key}-{'x' * 600}" if position in bad else key for position, key in enumerate(IDS)]


@TRANSPORTS
def test_of_1000_ids_with_7_that_the_source_refuses_993_are_written_within_113_calls(
    engine: sa.Engine, emulator: StartEmulator, long_ids: list[str], transport: str
) -> None:
    pinecone = emulator()
    pinecone.load("", IDS, VECTORS)
    add_rows(engine, long_ids)
    source = open_pinecone(pinecone, transport=transport)
    pinecone.calls.clear()
    summary = run_job(engine, to_job(engine, source, keys_from="table", batch_size=1000))
    bad = [key for key in long_ids if len(key) > 512]
    assert (summary.counts.written, summary.counts.quarantined, summary.counts.missing) == (993, 7, 0)
    assert errors_of(engine, summary.run.id) == dict.fromkeys(bad, "id_refused")
    assert stored(engine) == {key: vector for key, vector in expected(IDS, VECTORS).items() if key in long_ids}
    assert pinecone.calls["fetch"] <= most_tries(1000, 7) == 113


@TRANSPORTS
def test_ids_that_no_id_of_pinecone_can_be_cost_no_call(
    engine: sa.Engine, emulator: StartEmulator, transport: str
) -> None:
    pinecone = emulator()
    pinecone.load("", IDS, VECTORS)
    odd = ["", "ключ", "x" * 513]
    add_rows(engine, [*IDS[:10], *odd])
    source = open_pinecone(pinecone, transport=transport)
    pinecone.calls.clear()
    summary = run_job(engine, to_job(engine, source, keys_from="table"))
    assert errors_of(engine, summary.run.id) == dict.fromkeys(odd, "id_refused")
    assert summary.counts.written == 10
    assert pinecone.calls["fetch"] == 1


@TRANSPORTS
def test_a_source_that_refuses_every_request_stops_the_run_instead_of_setting_its_keys_aside(
    engine: sa.Engine, emulator: StartEmulator, transport: str
) -> None:
    pinecone = emulator()
    pinecone.load("", IDS, VECTORS)
    add_rows(engine, IDS)
    source = open_pinecone(pinecone, transport=transport)
    pinecone.calls.clear()
    pinecone.faults.set("fetch", Fault(status=400))
    with pytest.raises(KeysRefused):
        run_job(engine, to_job(engine, source, keys_from="table", batch_size=80, workers=1))
    assert execute(engine, "SELECT count(*) FROM migration_quarantine") == [(0,)]
    assert pinecone.calls["fetch"] <= budget(80)


def test_another_final_error_of_the_source_is_not_put_down_to_its_keys(engine: sa.Engine) -> None:
    source = stub()
    calls = 0

    def fail(keys: Sequence[str]) -> None:
        nonlocal calls
        calls += 1
        raise SourceError("not what was expected")

    source.before_fetch = fail
    with pytest.raises(SourceError):
        run_job(engine, to_job(engine, source, batch_size=1000, workers=1))
    assert calls == 1


def test_a_key_that_is_refused_while_others_fail_in_passing_is_found_all_the_same(engine: sa.Engine) -> None:
    from amprenta_vectors.errors import TransientError

    source, turn = stub(IDS[:40]), iter(range(1000))

    def refuse_one(keys: Sequence[str]) -> None:
        if next(turn) % 3 == 1:
            raise TransientError("busy")
        if IDS[17] in keys:
            raise KeysRefused("fetching: no")

    source.before_fetch = refuse_one
    summary = run_job(engine, to_job(engine, source, batch_size=40, workers=1))
    assert errors_of(engine, summary.run.id) == {IDS[17]: "id_refused"}
    assert summary.counts.written == 39


def test_no_transaction_is_open_while_refused_keys_are_looked_for(engine: sa.Engine) -> None:
    source, open_ones = stub(IDS[:40]), []

    def look(keys: Sequence[str]) -> None:
        statement = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'amprenta %:%'"
        open_ones.append(execute(engine, statement)[0][0])
        if IDS[17] in keys:
            raise KeysRefused("fetching: no")

    source.before_fetch = look
    run_job(engine, to_job(engine, source, batch_size=40, workers=1))
    assert len(open_ones) > 5
    assert set(open_ones) == {0}


def test_a_record_that_cannot_be_decoded_stands_alone(
    engine: sa.Engine, emulator: StartEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinecone = emulator()
    pinecone.load("", IDS[:20], VECTORS[:20], [{"n": n} for n in range(20)])
    decode = wire.decode_struct

    def broken(data: bytes) -> dict[str, Any]:
        fields = decode(data)
        return decode(data[:-1] + b"\xff\xff") if fields["n"] == 7 else fields

    monkeypatch.setattr(wire, "decode_struct", broken)
    summary = run_job(engine, to_job(engine, open_pinecone(pinecone)))
    assert errors_of(engine, summary.run.id) == {IDS[7]: "unreadable_record"}
    assert summary.counts.written == 19


# How many may be quarantined.


def failing(share: float, number: int = 6000) -> StubSource:
    """A source in which that share of the records is not finite, evenly."""
    every = round(1 / share)
    ids, vectors = to_ids(number), to_vectors(number)
    vectors[::every] = np.nan
    return StubSource({key: [vector] for key, vector in zip(ids, vectors, strict=True)}, page=1000)


def pausing(engine: sa.Engine, source: StubSource, after: int = 3000) -> StubSource:
    """The same source, which gives no more than so many records before the run was stopped."""

    def pause(keys: Sequence[str]) -> None:
        deadline = time.monotonic() + 60.0
        while len(source.fetched) >= after and not execute(engine, STOPPED):
            assert time.monotonic() < deadline, "the run is not stopped"
            time.sleep(0.02)

    source.before_fetch = pause
    return source


STOPPED = "SELECT 1 FROM migration_event WHERE event = 'stopped'"
WATCHED: dict[str, Any] = {"max_bad_share": 0.05, "figures_seconds": 0.02}


def test_too_large_a_share_of_quarantined_rows_stops_the_run_and_says_of_which_kinds(engine: sa.Engine) -> None:
    with pytest.raises(TooManyQuarantined) as caught:
        run_job(engine, to_job(engine, pausing(engine, failing(0.2)), **WATCHED))
    assert "not_finite" in caught.value.message
    assert "5 %" in caught.value.message
    assert "backfill --resume" in caught.value.hint
    ((state, last_error, done),) = execute(
        engine, "SELECT state, last_error, (SELECT sum(keys_done) FROM migration_progress) FROM migration_run"
    )
    assert state == "running"
    assert "stopped" in last_error
    # Not at the first quarantined row, and long before the end.
    assert 500 <= done < 6000


def test_a_run_that_was_stopped_for_its_quarantined_rows_goes_on_once_the_source_is_mended(engine: sa.Engine) -> None:
    with pytest.raises(TooManyQuarantined):
        run_job(engine, to_job(engine, pausing(engine, failing(0.2)), **WATCHED))
    ids, vectors = to_ids(6000), to_vectors(6000)
    mended = StubSource({key: [vector] for key, vector in zip(ids, vectors, strict=True)}, page=1000)
    summary = run_job(engine, to_job(engine, mended, max_bad_share=0.05), "resume")
    assert summary.run.state == "finished"
    assert summary.counts.written + summary.counts.quarantined == 6000


def test_one_process_that_finds_too_many_quarantined_rows_stops_the_others(engine: sa.Engine) -> None:
    from amprenta_vectors.backfill.limits.quarantined_share import QuarantinedShare
    from amprenta_vectors.backfill.progress.figures import count

    source = failing(0.2)
    job = to_job(engine, source, max_bad_share=0.05)
    with pytest.raises(TooManyQuarantined):
        run_job(engine, job)
    with engine.connect() as connection:
        counts = count(connection, 1)
        from amprenta_vectors.backfill.progress import runs

        run = runs.load_run(connection, 1)
    early, late = (QuarantinedShare(engine, run, 0.05, look_seconds=1.0) for _ in range(2))
    late.begin()
    # One that took note of the stops before there was any ends; one that joined after it counts anew.
    with pytest.raises(TooManyQuarantined, match="another process"):
        early.check(counts)
    late.check(counts)


def test_keys_that_are_missing_at_the_source_stop_no_run(engine: sa.Engine) -> None:
    ids = to_ids(6000)
    add_rows(engine, ids)
    source = failing(0.02)
    source.records = {key: vectors for number, (key, vectors) in enumerate(source.records.items()) if number % 2 == 0}
    summary = run_job(engine, to_job(engine, source, keys_from="table", batch_size=500, max_bad_share=0.05))
    assert summary.errors == {"missing_at_source": 3000, "not_finite": 120}


def test_a_small_run_is_not_stopped_by_a_few_quarantined_rows(engine: sa.Engine) -> None:
    summary = run_job(engine, to_job(engine, failing(0.25, 200), max_bad_share=0.05, batch_size=10))
    assert summary.errors == {"not_finite": 50}


def test_a_share_of_0_stops_at_any_quarantined_row(engine: sa.Engine) -> None:
    with pytest.raises(TooManyQuarantined):
        run_job(engine, to_job(engine, failing(0.05, 1000), max_bad_share=0.0, batch_size=10))


def test_the_figures_are_asked_for_only_where_there_is_reason_to(engine: sa.Engine) -> None:
    with counted(engine, "\n            WITH stop") as statements:
        run_job(engine, to_job(engine, failing(0.02, 2000), max_bad_share=0.05))
    # Once, to know of earlier stops.
    assert len(statements) == 1


def test_every_reason_is_documented_and_none_that_is_not_there() -> None:
    from backfill_tools import ROOT

    table = (ROOT / "docs" / "backfill.md").read_text().partition("| reason |")[2].partition("\n\n")[0]
    documented = [name.strip(" `") for line in table.splitlines()[2:] for name in line.split("|")[1].split(",")]
    assert sorted(documented) == sorted(Reason)


def test_a_batch_of_several_answers_has_the_columns_of_each() -> None:
    from amprenta_vectors.backfill.engine.fetching import _joined

    vectors = to_vectors(3)
    parts = [
        VectorBatch(["a"], vectors[:1], texts=["x"], metadata=[{"n": 1}]),
        VectorBatch(["b", "c"], vectors[1:], texts=[None, "z"], metadata=[None, {}]),
    ]
    joined = _joined(parts, [], 8)
    assert (joined.source_keys, joined.texts) == (["a", "b", "c"], ["x", None, "z"])
    assert joined.metadata == [{"n": 1}, None, {}]
    assert (joined.vectors == vectors).all()
    assert _joined([], [], 8).vectors.shape == (0, 8)
