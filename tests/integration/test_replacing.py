"""A run that is told to replace what is there: each planned row once, whoever dies, and nothing that is newer."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import (
    Recorder,
    StubSource,
    count_writes,
    execute,
    expected,
    open_planner,
    open_worker,
    run_job,
    stored,
    to_ids,
    to_job,
    to_vectors,
    write_fetched,
    writes_per_key,
)

from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.engine.run import Backfill
from amprenta_vectors.batch import Vectors
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.errors import CredentialsRefused, LeaseLost, RunConflict
from amprenta_vectors.schema.registry import RAG_CHUNKS
from amprenta_vectors.stores.outbox import Outbox
from amprenta_vectors.stores.protocol import Record

IDS = to_ids(60)
OLD, NEW = to_vectors(60), to_vectors(120)[60:]


@pytest.fixture
def engine(upgraded_url: str) -> Iterator[sa.Engine]:
    """The first vectors are in the table."""
    engine = create_engine(Settings.load(database_url=upgraded_url), pool_size=20)
    run_job(engine, to_job(engine, source_of(OLD)))
    yield engine
    engine.dispose()


def source_of(vectors: Vectors) -> StubSource:
    return StubSource({key: [vector] for key, vector in zip(IDS, vectors, strict=True)})


def replacing(engine: sa.Engine, vectors: Vectors = NEW, **changes: Any) -> Job:
    return to_job(engine, source_of(vectors), **{"replaces": True, "batch_size": 20} | changes)


def test_what_is_there_is_replaced_and_what_would_stay_the_same_is_not_written(engine: sa.Engine) -> None:
    count_writes(engine)
    mixed = np.where(np.arange(60)[:, None] < 20, OLD, NEW)
    counts = run_job(engine, replacing(engine, mixed)).counts
    assert stored(engine) == expected(IDS, mixed)
    assert writes_per_key(engine) == dict.fromkeys(IDS[20:], 1)
    assert (counts.written, counts.replaced, counts.skipped) == (40, 40, 20)


def test_a_row_whose_embedding_stays_gets_what_stands_beside_it_and_nothing_that_watches_the_embedding_hears_of_it(
    engine: sa.Engine,
) -> None:
    execute(engine, "CREATE TABLE heard (key text)")
    execute(
        engine,
        "CREATE FUNCTION hear() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO heard VALUES (NEW.chunk_id); RETURN NEW; END $$",
    )
    execute(engine, "CREATE TRIGGER hear BEFORE UPDATE OF embedding ON rag_chunks FOR EACH ROW EXECUTE FUNCTION hear()")
    before = execute(engine, "SELECT chunk_id, embedding_hash FROM rag_chunks ORDER BY 1")
    execute(engine, "UPDATE rag_chunks SET embedding_hash = NULL WHERE chunk_id = ANY(:ids)", ids=IDS[:5])
    execute(engine, "UPDATE rag_chunks SET embedding_text_hash = 3 WHERE chunk_id = ANY(:ids)", ids=IDS[:9])
    mixed = np.where(np.arange(60)[:, None] < 50, OLD, NEW)
    counts = run_job(engine, replacing(engine, mixed, model="m")).counts
    assert (counts.written, counts.replaced, counts.skipped) == (60, 60, 0)
    assert sorted(key for (key,) in execute(engine, "SELECT key FROM heard")) == sorted(IDS[50:])
    assert stored(engine) == expected(IDS, mixed)
    kept = execute(engine, "SELECT chunk_id, embedding_hash FROM rag_chunks ORDER BY 1")
    assert [row for row in kept if row[0] in IDS[:50]] == [row for row in before if row[0] in IDS[:50]]
    assert execute(engine, "SELECT DISTINCT embedding_model FROM rag_chunks") == [("m",)]
    assert execute(engine, "SELECT count(*) FROM rag_chunks WHERE embedding_text_hash = 3") == [(9,)]
    again = run_job(engine, replacing(engine, mixed, model="m")).counts
    assert (again.written, again.skipped) == (0, 60)


def test_without_being_told_to_a_run_replaces_nothing(engine: sa.Engine) -> None:
    run_job(engine, replacing(engine, replaces=False))
    assert stored(engine) == expected(IDS, OLD)


def test_a_worker_that_comes_back_after_its_lease_replaces_nothing(engine: sa.Engine) -> None:
    job = replacing(engine)
    work = Backfill(engine, job, Recorder(), threading.Event())
    run = work.start("new")
    late = open_worker(work, run, owner="late", lease_seconds=0.0)
    current = open_worker(work, run, owner="current")
    open_planner(engine, job, run).run()
    batch = late._claim()
    assert batch is not None
    fetched = job.source.fetch(batch.keys)
    taken = current._claim()
    assert taken is not None
    with pytest.raises(LeaseLost):
        write_fetched(late, batch, fetched)
    assert stored(engine) == expected(IDS, OLD)
    assert write_fetched(current, taken, fetched).replaced == 20
    with pytest.raises(LeaseLost):
        write_fetched(late, batch, fetched)


def stop_early(engine: sa.Engine, job: Job) -> None:
    """Leave a run of one worker unfinished, with one batch done."""
    source = job.source
    assert isinstance(source, StubSource)

    def refuse(keys: Sequence[str]) -> None:
        if source.fetched:
            raise CredentialsRefused("no longer")

    source.before_fetch = refuse
    with pytest.raises(CredentialsRefused):
        run_job(engine, replace(job, workers=1))
    source.before_fetch = lambda keys: None


def test_a_run_that_replaces_goes_on_so_and_not_otherwise(engine: sa.Engine) -> None:
    count_writes(engine)
    job = replacing(engine)
    stop_early(engine, job)
    with pytest.raises(RunConflict, match="--force"):
        run_job(engine, replacing(engine, replaces=False), "resume")
    run_job(engine, job, "resume")
    assert stored(engine) == expected(IDS, NEW)
    assert writes_per_key(engine) == dict.fromkeys(IDS, 1)


def test_given_keys_are_kept_by_the_run_that_began_with_them(engine: sa.Engine) -> None:
    job = replacing(engine, keys_from="given", given=IDS[:30])
    stop_early(engine, job)
    run_job(engine, replacing(engine, keys_from="given"), "resume")
    assert stored(engine) == expected(IDS, np.where(np.arange(60)[:, None] < 30, NEW, OLD))


def test_what_the_application_wrote_to_both_stores_meanwhile_is_newer_and_stays(engine: sa.Engine) -> None:
    own = np.full(8, 0.5, np.float32)
    job = replacing(engine)
    source = job.source
    assert isinstance(source, StubSource)

    def write(keys: Sequence[str]) -> None:
        if IDS[3] not in keys:
            return
        outbox = Outbox(engine, RAG_CHUNKS.target, job.slice.scope)
        with engine.begin() as connection:
            connection.execute(
                sa.text("UPDATE rag_chunks SET embedding = CAST(:own AS vector) WHERE chunk_id = :key"),
                {"own": str(own.tolist()), "key": IDS[3]},
            )
            outbox.intend(connection, [Record(IDS[3], own, None, {})])

    source.before_fetch = write
    run_job(engine, job)
    kept = [own if key == IDS[3] else vector for key, vector in zip(IDS, NEW, strict=True)]
    assert stored(engine) == expected(IDS, np.array(kept))


def test_rows_that_such_a_run_quarantined_are_replaced_when_they_are_taken_again(engine: sa.Engine) -> None:
    bad = NEW.copy()
    bad[5] = np.nan
    run_job(engine, replacing(engine, bad))
    again = replacing(engine, keys_from="source_errors")
    assert run_job(engine, again).counts.replaced == 1
    assert stored(engine) == expected(IDS, NEW)
    assert execute(engine, "SELECT count(*) FROM migration_quarantine WHERE resolved_at IS NULL") == [(0,)]
