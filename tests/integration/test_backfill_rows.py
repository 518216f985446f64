"""Rows that cannot be carried over: each is quarantined with its reason, the others arrive, a later run mends it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import (
    StubSource,
    add_rows,
    counted,
    environment,
    errors_of,
    execute,
    expected,
    open_pinecone,
    refuse,
    run_forked,
    run_job,
    stored,
    to_ids,
    to_job,
    to_vectors,
)

from amprenta_vectors.backfill.progress import quarantine
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.errors import AmprentaError, RowError, SourceError
from amprenta_vectors.reasons import Reason
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.sandbox.strange import strange_unstorable, to_columns

StartEmulator = Callable[..., PineconeEmulator]
IDS, VECTORS = to_ids(60), to_vectors(60)


def stub(**records: Any) -> StubSource:
    """The sixty good records and those given."""
    return StubSource({**{key: [vector] for key, vector in zip(IDS, VECTORS, strict=True)}, **records})


def test_every_kind_of_row_that_cannot_be_carried_over_is_quarantined_with_its_reason(engine: sa.Engine) -> None:
    ones = np.ones(8, np.float32)
    source = stub(
        nan=[ones * math.nan],
        infinite=[ones * -math.inf],
        zero=[ones * 0],
        minus_zero=[ones * -0.0],
        short=RowError("short", Reason.DIMENSION, "the vector has 7 values; expected 8"),
        gone=[],
    )
    summary = run_job(engine, to_job(engine, source))
    assert stored(engine) == expected(IDS, VECTORS)
    assert errors_of(engine, summary.run.id) == {
        "nan": "not_finite",
        "infinite": "not_finite",
        "zero": "zero_under_cosine",
        "minus_zero": "zero_under_cosine",
        "short": "wrong_dimension",
        "gone": "missing_at_source",
    }
    counts = summary.counts
    assert (counts.written, counts.missing, counts.quarantined, counts.skipped) == (60, 1, 5, 0)
    assert counts.in_quarantine == 6
    assert counts.keys_done == summary.run.planned_keys == 66
    assert summary.errors == {"missing_at_source": 1, "not_finite": 2, "wrong_dimension": 1, "zero_under_cosine": 2}


def test_a_zero_vector_is_kept_under_another_distance(engine: sa.Engine) -> None:
    job = to_job(engine, stub(zero=[np.zeros(8, np.float32)]))
    summary = run_job(engine, replace(job, slice=replace(job.slice, table=replace(job.slice.table, distance="l2"))))
    assert summary.errors == {}
    assert len(stored(engine)) == 61


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_what_pinecone_holds_and_the_table_cannot_is_quarantined_alike_over_both_transports(
    engine: sa.Engine, emulator: StartEmulator, transport: str
) -> None:
    pinecone = emulator(metric="dotproduct")
    pinecone.load("", IDS, VECTORS)
    pinecone.load("", ["short"], to_vectors(1, 5))
    pinecone.load("", ["sparse only"], np.empty((1, 0)), sparse=[{"indices": [1, 2**32 - 1], "values": [0.5, 1.5]}])
    pinecone.load("", ["sparse too"], VECTORS[:1], sparse=[{"indices": [7], "values": [0.5]}])
    for _, ids, vectors, metadata in to_columns(strange_unstorable(8)):
        pinecone.load("", ids, vectors, metadata)
    summary = run_job(engine, to_job(engine, open_pinecone(pinecone, transport=transport)))
    assert stored(engine) == expected([*IDS, "sparse too"], np.concatenate([VECTORS, VECTORS[:1]]))
    assert errors_of(engine, summary.run.id) == {
        "short": "wrong_dimension",
        "sparse only": "sparse_without_dense",
        # Its dense vector is written all the same.
        "sparse too": "sparse_without_column",
        **dict.fromkeys(["nul-0", "nul-1", "nul-2", "nul-3"], "nul_character"),
    }
    assert (summary.counts.written, summary.counts.quarantined, summary.counts.in_quarantine) == (61, 6, 7)


def test_metadata_that_json_has_no_number_for_is_refused_row_by_row(engine: sa.Engine) -> None:
    source = stub(odd=[VECTORS[0]])
    source.metadata = {"odd": {"ratio": math.nan}}
    summary = run_job(engine, to_job(engine, source))
    assert errors_of(engine, summary.run.id) == {"odd": "nan_in_metadata"}
    assert summary.counts.written == 60


@pytest.mark.parametrize("keys_from", ["table", "source"])
def test_rows_that_postgresql_refuses_stand_alone_and_the_others_are_written(engine: sa.Engine, keys_from: str) -> None:
    bad = [IDS[0], IDS[13], IDS[14], IDS[59]]
    add_rows(engine, IDS)
    refuse(engine, bad)
    summary = run_job(engine, to_job(engine, stub(), keys_from=keys_from))
    good = {key: vector for key, vector in expected(IDS, VECTORS).items() if key not in bad}
    assert stored(engine) == good
    assert errors_of(engine, summary.run.id) == dict.fromkeys(bad, "write_refused")
    details = execute(engine, "SELECT detail FROM migration_quarantine WHERE key = :key", key=IDS[13])
    assert details == [(f"no {IDS[13]} here",)]
    assert (summary.counts.written, summary.counts.quarantined, summary.counts.skipped) == (56, 4, 0)


def test_seven_quarantined_rows_of_a_thousand_cost_a_bounded_number_of_statements(engine: sa.Engine) -> None:
    ids, vectors = to_ids(1000), to_vectors(1000)
    bad = [ids[position] for position in np.random.default_rng(5).choice(1000, 7, replace=False)]
    add_rows(engine, ids)
    refuse(engine, bad)
    source = StubSource({key: [vector] for key, vector in zip(ids, vectors, strict=True)}, page=1000)
    with counted(engine, "UPDATE rag_chunks") as statements:
        summary = run_job(engine, to_job(engine, source, keys_from="table", batch_size=1000))
    assert (summary.counts.written, summary.counts.quarantined) == (993, 7)
    assert len(statements) <= 7 * (2 * math.ceil(math.log2(1000)) + 1)
    # The source is not asked again.
    assert len(source.fetched) == 1000


def test_a_constraint_that_is_deferred_to_the_commit_refuses_its_row_alone(engine: sa.Engine) -> None:
    execute(
        engine,
        f"""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'too late' USING ERRCODE = 'check_violation';
        END $$;
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON rag_chunks DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
            WHEN (NEW.chunk_id = '{IDS[5]}') EXECUTE FUNCTION refuse()
        """,
    )
    summary = run_job(engine, to_job(engine, stub()))
    assert errors_of(engine, summary.run.id) == {IDS[5]: "write_refused"}
    assert summary.counts.written == 59


def test_what_is_kept_of_a_refusal_does_not_quote_the_row(engine: sa.Engine) -> None:
    execute(engine, "ALTER TABLE rag_chunks ADD CONSTRAINT short CHECK (metadata->>'secret' IS NULL)")
    source = stub(odd=[VECTORS[0]])
    source.metadata = {"odd": {"secret": "hush-hush"}}
    run_job(engine, to_job(engine, source))
    ((detail,),) = execute(engine, "SELECT detail FROM migration_quarantine")
    assert detail == 'new row for relation "rag_chunks" violates check constraint "short"'


def test_a_row_is_resolved_by_the_run_that_writes_it_and_its_attempts_are_counted_on(engine: sa.Engine) -> None:
    add_rows(engine, IDS)
    refuse(engine, [IDS[1], IDS[2]])
    job = to_job(engine, stub(), keys_from="table")
    runs = [run_job(engine, job).run.id for _ in range(2)]
    attempts = "SELECT run_id, key, attempts, resolved_at IS NULL FROM migration_quarantine ORDER BY run_id, key"
    assert execute(engine, attempts) == [
        (runs[0], IDS[1], 1, True),
        (runs[0], IDS[2], 1, True),
        (runs[1], IDS[1], 2, True),
        (runs[1], IDS[2], 2, True),
    ]
    execute(engine, "DROP FUNCTION refuse CASCADE")
    refuse(engine, [IDS[2]])
    summary = run_job(engine, job)
    assert summary.errors == {"write_refused": 1}
    unresolved = execute(engine, "SELECT run_id, key, attempts FROM migration_quarantine WHERE resolved_at IS NULL")
    assert unresolved == [(runs[0], IDS[2], 1), (runs[1], IDS[2], 2), (summary.run.id, IDS[2], 3)]
    with engine.connect() as connection:
        assert quarantine.quarantined_keys(connection, job.slice.target, job.slice.scope) == {IDS[2]: "write_refused"}
    execute(engine, "DROP FUNCTION refuse CASCADE")
    assert run_job(engine, job).errors == {}
    assert execute(engine, "SELECT count(*) FROM migration_quarantine WHERE resolved_at IS NULL") == [(0,)]


def test_errors_of_another_scope_are_left_alone(engine: sa.Engine) -> None:
    missing = stub(gone=[])
    other = run_job(engine, to_job(engine, missing, namespace="other"))
    present = stub(gone=[VECTORS[0]])
    run_job(engine, to_job(engine, present, namespace="mine"))
    assert errors_of(engine, other.run.id) == {"gone": "missing_at_source"}


def test_the_script_exits_with_3_and_a_later_run_mends_what_was_quarantined(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator
) -> None:
    pinecone = emulator()
    pinecone.load("", IDS[:-1], VECTORS[:-1])
    add_rows(engine, IDS)
    refuse(engine, [IDS[0]])
    variables = environment(upgraded_url, pinecone)
    code, output = run_forked(variables)
    assert code == 3, output
    assert "quarantined: 1 missing_at_source" in output
    assert "quarantined: 1 write_refused" in output
    pinecone.load("", IDS[-1:], VECTORS[-1:])
    execute(engine, "DROP FUNCTION refuse CASCADE")
    code, output = run_forked(variables)
    assert code == 0, output
    assert stored(engine) == expected(IDS, VECTORS)
    assert execute(engine, "SELECT count(*) FROM migration_quarantine WHERE resolved_at IS NULL") == [(0,)]


def test_a_source_that_answers_with_other_records_stops_the_run(engine: sa.Engine) -> None:
    source = stub()
    fetch = source.fetch

    def rename_one(keys: Sequence[str]) -> VectorBatch:
        batch = fetch(keys)
        return replace(batch, source_keys=["unasked", *batch.source_keys[1:]])

    source.fetch = rename_one  # type: ignore[method-assign]
    with pytest.raises(SourceError, match="not asked for: 'unasked'"):
        run_job(engine, to_job(engine, source))
    assert stored(engine) == {}


def test_vectors_that_are_all_of_another_dimension_stop_the_run(engine: sa.Engine) -> None:
    source = StubSource({"a": [to_vectors(1, 5)[0]]}, dimension=5)
    with pytest.raises(AmprentaError, match="expected 8 dimensions, not 5"):
        run_job(engine, to_job(engine, source))
    assert execute(engine, "SELECT last_error FROM migration_run")[0][0].startswith("writing batch 1: expected 8")
