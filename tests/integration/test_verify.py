"""Verification: every vector of the source against the table, and nothing that differs goes unseen."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import (
    ROOT,
    StubSource,
    environment,
    execute,
    open_pinecone,
    run_forked,
    run_job,
    to_ids,
    to_job,
    to_vectors,
)

from amprenta_vectors.backends.protocol import TokenRefused
from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.verify.compare import Difference, Verification, Verifier, digests
from amprenta_vectors.errors import RowError, SourceError, TransientError
from amprenta_vectors.reasons import Reason
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.sandbox.strange import strange_records, to_columns

StartEmulator = Callable[..., PineconeEmulator]
IDS, VECTORS = to_ids(100), to_vectors(100)


def stub(**records: Any) -> StubSource:
    return StubSource({**{key: [vector] for key, vector in zip(IDS, VECTORS, strict=True)}, **records})


def verify(
    engine: sa.Engine, job: Job, stop: threading.Event | None = None
) -> tuple[Verification, list[tuple[str, str, str]]]:
    found: list[Difference] = []
    retry = Backoff(5.0, stop or threading.Event(), lambda _: None)
    verifier = Verifier(engine, job.slice, job.source, batch_size=30, workers=2, retry=retry)
    result = verifier.run(found.append)
    return result, [(item.kind, item.key, item.detail) for item in found]


def test_equal_sides_are_clean(engine: sa.Engine) -> None:
    job = to_job(engine, stub())
    run_job(engine, job)
    result, found = verify(engine, job)
    assert (found, result.compared, result.clean) == ([], 100, True)


def test_one_flipped_bit_one_missing_and_one_extra_row_are_named(engine: sa.Engine) -> None:
    job = to_job(engine, stub())
    run_job(engine, job)
    flipped = VECTORS[17].copy()
    flipped.view(np.uint32)[3] ^= 1
    update = "UPDATE rag_chunks SET embedding = CAST(:vector AS vector) WHERE chunk_id = :key"
    execute(engine, update, vector=str(flipped.tolist()), key=IDS[17])
    execute(engine, "UPDATE rag_chunks SET embedding = NULL WHERE chunk_id = :key", key=IDS[40])
    execute(engine, "DELETE FROM rag_chunks WHERE chunk_id = :key", key=IDS[41])
    execute(engine, "UPDATE rag_chunks SET chunk_id = 'other' WHERE chunk_id = :key", key=IDS[99])
    result, found = verify(engine, job)
    assert found == [
        ("different", IDS[17], ""),
        ("missing", IDS[40], ""),
        ("missing", IDS[41], ""),
        ("missing", IDS[99], ""),
        ("extra", "other", ""),
    ]
    assert result.counts == {"missing": 3, "extra": 1, "different": 1}
    assert (result.compared, result.clean) == (100, False)


def test_minus_zero_is_not_zero(engine: sa.Engine) -> None:
    vector = np.array([1, 0, 0, 0, 0, 0, 0, 0], np.float32)
    job = to_job(engine, StubSource({"a": [vector]}))
    run_job(engine, job)
    other = to_job(engine, StubSource({"a": [np.where(vector == 0, np.float32(-0.0), vector)]}))
    assert verify(engine, job)[1] == []
    assert verify(engine, other)[1] == [("different", "a", "")]


def test_only_the_scope_is_compared(engine: sa.Engine) -> None:
    job = to_job(engine, stub())
    run_job(engine, job)
    run_job(engine, to_job(engine, StubSource({"elsewhere": [VECTORS[0]]}), namespace="other"))
    assert verify(engine, job)[1] == []


def test_what_was_quarantined_is_listed_with_its_reason_where_the_source_said_so(engine: sa.Engine) -> None:
    short = RowError("short", Reason.DIMENSION, "the vector has 7 values")
    dropped = RowError(IDS[0], Reason.SPARSE_DROPPED, "no column holds its sparse values")
    nan = np.full(8, np.nan, np.float32)
    job = to_job(engine, stub(short=short, nan=[nan], zero=[nan * 0 + 0]))
    run_job(engine, job)
    _, found = verify(engine, job)
    assert found == [
        ("missing", "nan", ""),
        ("missing", "short", "wrong_dimension: the vector has 7 values"),
        ("missing", "zero", ""),
    ]
    fetch = job.source.fetch
    job.source.fetch = lambda keys: replace(fetch(keys), quarantined=(dropped,))  # type: ignore[method-assign]
    job.source.records = {key: [vector] for key, vector in zip(IDS, VECTORS, strict=True)}  # type: ignore[attr-defined]
    assert verify(engine, job)[1] == []


def test_strange_keys_are_compared_as_they_are(engine: sa.Engine, emulator: StartEmulator) -> None:
    pinecone = emulator()
    namespace, ids, vectors, metadata = next(iter(to_columns(strange_records(8))))
    pinecone.load(namespace, ids, vectors, metadata)
    job = to_job(engine, open_pinecone(pinecone, namespace), namespace=namespace)
    run_job(engine, job)
    # A source that a run has used keeps that run's limits, and they have ended with it.
    job = to_job(engine, open_pinecone(pinecone, namespace), namespace=namespace)
    result, found = verify(engine, job)
    assert (found, result.compared) == ([], len(ids))
    execute(engine, "UPDATE rag_chunks SET embedding = NULL")
    assert sorted(key for _, key, _ in verify(engine, job)[1]) == sorted(ids)


def test_a_halfvec_is_what_numpy_makes_of_it_for_any_bits(engine: sa.Engine) -> None:
    bits = np.random.default_rng(3).integers(0, 2**32, (4000, 8), dtype=np.uint32).view(np.float32)
    # Half of them where float16 is interesting: subnormals, ties between two neighbours, and what is almost too large.
    halves = np.random.default_rng(4).integers(0, 2**16, (4000, 8), dtype=np.uint16).view(np.float16).astype(np.float32)
    nudges = np.random.default_rng(5).choice(np.float32([1, 1 + 2**-12, 1 + 2**-11, 1 - 2**-12]), (4000, 8))
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.concatenate([bits, halves, halves * nudges, halves / np.float32(2048)])
        storable = np.isfinite(rows.astype(np.float16)).all(axis=1)
    rows = rows[storable]
    assert len(rows) > 3000
    texts = [str(row.tolist()) for row in rows]
    statement = (
        "SELECT sha256(halfvec_send(CAST(CAST(v AS vector) AS halfvec))) FROM unnest(CAST(:texts AS text[])) "
        "WITH ORDINALITY AS given(v, n) ORDER BY n"
    )
    assert [bytes(found) for (found,) in execute(engine, statement, texts=texts)] == digests(rows, "halfvec")


def test_a_vector_of_any_finite_bits_has_the_digest_that_postgresql_gives_it(engine: sa.Engine) -> None:
    rows = np.random.default_rng(6).integers(0, 2**32, (2000, 8), dtype=np.uint32).view(np.float32)
    rows = rows[np.isfinite(rows).all(axis=1)]
    job = to_job(engine, StubSource({str(n): [row] for n, row in enumerate(rows)}, page=500), batch_size=500)
    run_job(engine, job)
    assert verify(engine, job)[1] == []


def test_a_refused_page_token_costs_a_second_reading_and_never_a_result(engine: sa.Engine) -> None:
    source, refusals = stub(), iter([True])
    job = to_job(engine, source)
    run_job(engine, job)

    def refuse(token: str | None) -> None:
        if token == "70" and next(refusals, False):
            raise TokenRefused("stale")

    source.before_page = refuse
    result, found = verify(engine, job)
    assert (found, result.compared) == ([], 100)

    def always(token: str | None) -> None:
        if token is not None:
            raise TokenRefused("stale")

    source.before_page = always
    with pytest.raises(SourceError, match="refused its own page tokens"):
        verify(engine, job)


def test_what_passes_at_the_source_is_tried_again(engine: sa.Engine) -> None:
    source, failures = stub(), iter([True, True, True])
    job = to_job(engine, source)
    run_job(engine, job)

    def fail(_: object) -> None:
        if next(failures, False):
            raise TransientError("away")

    source.before_fetch = fail
    assert verify(engine, job)[1] == []


def test_a_verification_that_is_told_to_stop_says_so(engine: sa.Engine) -> None:
    source, stop = stub(), threading.Event()
    source.before_fetch = lambda keys: stop.set()
    with pytest.raises(TransientError, match="interrupted"):
        verify(engine, to_job(engine, source), stop)


def test_memory_holds_no_more_than_a_few_batches_of_vectors(engine: sa.Engine) -> None:
    """However slowly they are compared: of the batches that were fetched, at most two a worker wait."""
    source, waiting, most = stub(), 0, 0
    job = to_job(engine, source)
    lock = threading.Lock()

    def fetched(keys: Sequence[str]) -> None:
        nonlocal waiting, most
        with lock:
            waiting += 1
            most = max(most, waiting)

    source.before_fetch = fetched
    found: list[Difference] = []
    retry = Backoff(5.0, threading.Event(), lambda _: None)
    verifier = Verifier(engine, job.slice, source, batch_size=2, workers=2, retry=retry)

    def taken(compared: int) -> None:
        nonlocal waiting
        with lock:
            waiting -= 1

    verifier.run(found.append, taken)
    assert len(found) == 100
    assert most <= 2 * 2 + 1


def test_the_command_exits_with_1_on_any_difference_and_lists_it(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, tmp_path: Path
) -> None:
    pinecone = emulator()
    pinecone.load("", IDS, VECTORS)
    run_job(engine, to_job(engine, open_pinecone(pinecone)))
    execute(engine, "DELETE FROM rag_chunks WHERE chunk_id = :key", key=IDS[5])
    listed = tmp_path / "differences"
    command = [sys.executable, "-c", "from amprenta_vectors.cli import main; main()", "verify", "--workers", "2"]
    done = subprocess.run(
        [*command, "--output", str(listed)],
        env=environment(upgraded_url, pinecone),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert [json.loads(line)["key"] for line in listed.read_text().splitlines()] == [IDS[5]]
    code, output = run_forked(environment(upgraded_url, pinecone), "--keys-from", "source")
    assert (code, "every vector is equal" in output) == (0, True), output
