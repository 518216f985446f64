"""Reconcile: what changed at the source comes to the table, again and again; what changed here stays."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import (
    ROOT,
    StubSource,
    add_rows,
    environment,
    errors_of,
    execute,
    expected,
    on_the_wire,
    open_pinecone,
    pinecone_index,
    run_job,
    stored,
    to_ids,
    to_job,
    to_vectors,
)
from click.testing import CliRunner
from forked import ForkedProcess

from amprenta_vectors.backends.protocol import Source
from amprenta_vectors.backends.rows.source import RowsSource
from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.engine.run import Summary
from amprenta_vectors.backfill.progress import quarantine
from amprenta_vectors.backfill.reconcile.dry_run import DryRun, Prospect
from amprenta_vectors.batch import Vectors
from amprenta_vectors.cli import main
from amprenta_vectors.ddl.gate import check_finished
from amprenta_vectors.embedders.protocol import Model
from amprenta_vectors.errors import RunConflict, SchemaMismatch
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.schema.check import check_table
from amprenta_vectors.schema.keymaps import LookUp, OwnKeys
from amprenta_vectors.schema.registry import RAG_CHUNKS
from amprenta_vectors.schema.vector_table import KeyRule, VectorTable
from amprenta_vectors.stores.outbox import Outbox
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Record

StartEmulator = Callable[..., PineconeEmulator]
IDS, VECTORS = to_ids(40), to_vectors(40)
OTHER = to_vectors(40, seed=1)


def stub(vectors: Vectors = VECTORS, **changes: Any) -> StubSource:
    return StubSource({key: [vector] for key, vector in zip(IDS, vectors, strict=True)}, **changes)


def filled(engine: sa.Engine, source: Source | None = None, **changes: Any) -> None:
    """The backfill that came before."""
    run_job(engine, to_job(engine, source or stub(), **changes))


def reconcile(engine: sa.Engine, source: Source, **changes: Any) -> Summary:
    return run_job(engine, to_job(engine, source, keys_from="reconcile", **changes), "resume")


def look(engine: sa.Engine, source: Source, **changes: Any) -> Prospect:
    job: Job = to_job(engine, source, keys_from="reconcile", **changes)
    return DryRun(engine, job, retry=Backoff(5.0, threading.Event(), lambda _: None)).run()


def figures(summary: Summary) -> tuple[int, int, int, dict[str, int]]:
    counts = summary.counts
    return counts.skipped, counts.written, counts.replaced, summary.errors


def write_here(engine: sa.Engine, key: str, vector: Vectors) -> None:
    """As an application does that knows nothing of the hash."""
    statement = "UPDATE rag_chunks SET embedding = CAST(:vector AS vector) WHERE chunk_id = :key"
    execute(engine, statement, vector=str(vector.tolist()), key=key)


def test_new_and_changed_rows_come_and_equal_ones_are_not_written(engine: sa.Engine) -> None:
    filled(engine)
    before = execute(engine, "SELECT chunk_id, xmin::text FROM rag_chunks")
    source = stub()
    source.records = {**source.records, IDS[3]: [OTHER[3]], "new": [OTHER[0]]}
    prospect = look(engine, source)
    assert (prospect.equal, prospect.written, prospect.replaced, prospect.quarantined) == (39, 2, 1, {})
    assert figures(reconcile(engine, source)) == (39, 2, 1, {})
    assert stored(engine) == {**expected(IDS, VECTORS), IDS[3]: on_the_wire(OTHER[3]), "new": on_the_wire(OTHER[0])}
    same = set(before) & set(execute(engine, "SELECT chunk_id, xmin::text FROM rag_chunks"))
    assert len(same) == 39
    # What it wrote is known again by the next pass.
    source.records = {**source.records, IDS[3]: [OTHER[4]], "new": [OTHER[5]]}
    assert figures(reconcile(engine, source)) == (39, 2, 2, {})


def test_a_row_changed_on_both_sides_is_listed_and_untouched(engine: sa.Engine) -> None:
    filled(engine)
    write_here(engine, IDS[1], OTHER[1])
    write_here(engine, IDS[2], OTHER[2])
    source = stub()
    source.records = {**source.records, IDS[1]: [OTHER[7]]}
    assert look(engine, source).quarantined == {"changed_here": 2}
    summary = reconcile(engine, source)
    assert figures(summary) == (38, 0, 0, {"changed_here": 2})
    details = dict(execute(engine, "SELECT key, detail FROM migration_quarantine WHERE resolved_at IS NULL"))
    assert details[IDS[1]] == "changed here, and at the source"
    assert details[IDS[2]] == "changed here; the source still has what was written"
    assert {key: stored(engine)[key] for key in IDS[1:3]} == expected(IDS[1:3], OTHER[1:3])
    execute(engine, "UPDATE migration_run SET verified_at = now()")
    with engine.connect() as connection:
        # They have a value, so that the gate does not wait for them, and no retry takes them.
        assert check_finished(connection, "rag_chunks", "embedding") == 40
        target = summary.run.target
        assert quarantine.kinds_to_retry(connection, target, {"namespace": ""}, "stub", None) == set()
    # Settled by whoever makes the sides equal.
    source.records = {**source.records, IDS[1]: [OTHER[1]], IDS[2]: [OTHER[2]]}
    assert figures(reconcile(engine, source)) == (40, 0, 0, {})
    assert errors_of(engine, summary.run.id) == {}


def test_a_row_that_the_application_filled_is_never_replaced(engine: sa.Engine) -> None:
    add_rows(engine, IDS[:1])
    write_here(engine, IDS[0], OTHER[0])
    filled(engine)
    assert figures(reconcile(engine, stub())) == (39, 0, 0, {"changed_here": 1})
    assert stored(engine)[IDS[0]] == on_the_wire(OTHER[0])


def test_what_the_application_writes_through_the_store_is_its_own(engine: sa.Engine) -> None:
    filled(engine)
    # The same vector as the engine wrote, with a text of the application's.
    PgVectorStore(engine, RAG_CHUNKS, {"namespace": ""}).upsert([Record(IDS[0], VECTORS[0], "mine", {})])
    source = stub(OTHER)
    source.records = {key: value for key, value in source.records.items() if key != IDS[0]}
    summary = reconcile(engine, source, delete=True)
    assert (summary.counts.replaced, summary.errors) == (39, {"gone_at_source": 1})
    assert figures(reconcile(engine, stub(OTHER)))[3] == {"changed_here": 1}
    assert stored(engine)[IDS[0]] == on_the_wire(VECTORS[0])


def test_a_row_that_is_written_between_the_comparison_and_the_lock_stays(
    engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(engine)
    from amprenta_vectors.backfill.writing.sink import Sink

    load = Sink.load

    def load_later(self: Sink, *arguments: Any) -> int:
        write_here(engine, IDS[0], OTHER[9])
        return load(self, *arguments)

    monkeypatch.setattr(Sink, "load", load_later)
    assert figures(reconcile(engine, stub(OTHER)))[3] == {"changed_here": 1}
    assert stored(engine) == {**expected(IDS, OTHER), IDS[0]: on_the_wire(OTHER[9])}


def test_rows_that_are_gone_are_listed_and_deleted_only_when_asked_to(engine: sa.Engine) -> None:
    filled(engine)
    filled(engine, StubSource({"elsewhere": [VECTORS[0]]}), namespace="other")
    add_rows(engine, ["own"])
    write_here(engine, "own", OTHER[0])
    write_here(engine, IDS[1], OTHER[1])
    add_rows(engine, ["without embedding"])
    source = stub()
    source.records = dict(list(source.records.items())[3:])
    prospect = look(engine, source)
    assert prospect.quarantined == {"gone_at_source": 4}
    summary = reconcile(engine, source)
    assert summary.errors == {"gone_at_source": 4}
    assert len(stored(engine)) == 42
    would = look(engine, source, delete=True)
    assert would.gone is not None
    assert (would.gone.gone, would.gone.deleted, would.quarantined) == (4, 2, {"gone_at_source": 2})
    assert len(stored(engine)) == 42
    summary = reconcile(engine, source, delete=True)
    assert summary.gone is not None
    assert (summary.gone.gone, summary.gone.deleted) == (4, 2)
    assert errors_of(engine, summary.run.id) == {"own": "gone_at_source", IDS[1]: "gone_at_source"}
    assert set(stored(engine)) == {*IDS[3:], IDS[1], "own", "elsewhere"}
    assert execute(engine, "SELECT count(*) FROM rag_chunks WHERE chunk_id = 'without embedding'") == [(1,)]
    # A row that the source has again is no longer listed.
    source.records = {**source.records, "own": [OTHER[0]], IDS[1]: [OTHER[1]]}
    assert reconcile(engine, source).errors == {}
    assert execute(engine, "SELECT count(*) FROM migration_quarantine WHERE resolved_at IS NULL") == [(0,)]


def test_a_row_of_the_applications_own_loses_its_embedding_and_stays(engine: sa.Engine) -> None:
    add_rows(engine, IDS[:1])
    filled(engine)
    source = stub()
    source.records = dict(list(source.records.items())[2:])
    summary = reconcile(engine, source, delete=True)
    assert summary.gone is not None
    assert (summary.gone.deleted, summary.gone.emptied, summary.errors) == (1, 1, {})
    rows = execute(engine, "SELECT chunk_id, content, embedding, embedding_hash FROM rag_chunks WHERE chunk_id < 'd'")
    assert [row for row in rows if row[0] in IDS[:2]] == [(IDS[0], "own text", None, None)]


@pytest.mark.parametrize("left", [0, 15])
def test_a_source_that_lost_more_than_half_is_taken_to_be_the_wrong_one(engine: sa.Engine, left: int) -> None:
    filled(engine)
    source = stub()
    source.records = dict(list(source.records.items())[:left])
    summary = reconcile(engine, source, delete=True)
    assert summary.gone is not None
    assert summary.gone.refused is not None
    assert ("listed nothing" in summary.gone.refused) == (left == 0)
    assert stored(engine) == expected(IDS, VECTORS)


def test_what_a_listing_left_out_and_the_source_still_has_is_not_deleted(engine: sa.Engine) -> None:
    filled(engine)
    source = stub()
    listed = source.iter_keys

    def leave_out(token: str | None = None) -> Any:
        for keys, following in listed(token):
            yield [key for key in keys if key not in IDS[5:8]], following

    source.iter_keys = leave_out  # type: ignore[method-assign]
    summary = reconcile(engine, source, delete=True)
    assert summary.gone is not None
    assert (summary.gone.gone, summary.gone.deleted, summary.errors) == (3, 0, {})
    assert stored(engine) == expected(IDS, VECTORS)


def test_records_that_cannot_be_written_are_not_gone(engine: sa.Engine) -> None:
    filled(engine)
    source = stub()
    source.records = {**source.records, IDS[0]: [VECTORS[0] * 0]}
    summary = reconcile(engine, source, delete=True, max_bad_share=1.0)
    assert summary.errors == {"zero_under_cosine": 1}
    assert stored(engine) == expected(IDS, VECTORS)


def test_what_a_pass_quarantined_is_for_the_next_pass_and_no_retry(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinecone = emulator()
    pinecone.load("", IDS, VECTORS)
    filled(engine, open_pinecone(pinecone))
    pinecone.load("", IDS[:1], VECTORS[:1] * 0)
    assert figures(reconcile(engine, open_pinecone(pinecone))) == (39, 0, 0, {"zero_under_cosine": 1})
    pinecone.load("", IDS[:1], OTHER[:1])
    # It would find the row filled, and call it settled.
    retried = CliRunner().invoke(main, ["retry-failed"], env=environment(upgraded_url, pinecone))
    assert "amprenta-vectors reconcile, whose next pass takes it again" in retried.output
    listed = CliRunner().invoke(main, ["errors"], env=environment(upgraded_url, pinecone))
    assert listed.output.splitlines()[-1] == "take them again with: amprenta-vectors reconcile"
    refreshed: list[str] = []

    def refresh(_: sa.Engine, table: VectorTable) -> str:
        refreshed.append(table.name)
        return "not the owner"

    monkeypatch.setattr("amprenta_vectors.moves.move.refresh_stats", refresh)
    passed = CliRunner().invoke(main, ["reconcile"], env=environment(upgraded_url, pinecone))
    assert (passed.exit_code, refreshed) == (0, ["rag_chunks"]), passed.output
    assert "39 rows equal, 1 written, of them 1 replaced" in passed.output
    assert "notice: not the owner" in passed.output
    assert stored(engine)[IDS[0]] == on_the_wire(OTHER[0])


def test_halfvec_rows_are_known_again(engine: sa.Engine) -> None:
    execute(engine, "DROP INDEX idx_rag_chunks_embedding")
    execute(engine, "ALTER TABLE rag_chunks ALTER COLUMN embedding TYPE halfvec(8)")
    filled(engine)
    assert figures(reconcile(engine, stub())) == (40, 0, 0, {})
    write_here(engine, IDS[0], VECTORS[9])
    assert figures(reconcile(engine, stub(OTHER))) == (0, 39, 39, {"changed_here": 1})
    assert figures(reconcile(engine, stub(OTHER))) == (39, 0, 0, {"changed_here": 1})


CONTENTS = {key: {"text": f"text {key}", "number": 1.5, "list": ["ü", "b"]} for key in IDS}


def test_text_and_metadata_follow_where_they_are_what_the_engine_inserted(
    engine: sa.Engine, emulator: StartEmulator
) -> None:
    pinecone = emulator()
    pinecone.load("", IDS, VECTORS, [CONTENTS[key] for key in IDS])
    add_rows(engine, IDS[3:4])
    filled(engine, open_pinecone(pinecone))
    assert figures(reconcile(engine, open_pinecone(pinecone))) == (40, 0, 0, {})
    execute(engine, "UPDATE rag_chunks SET content = 'mine' WHERE chunk_id = ANY(:keys)", keys=IDS[4:6])
    changed = [{"text": f"new {key}", "number": 2.0} for key in IDS]
    # One record has only other metadata, one another vector too; the text of a third was changed here as well.
    pinecone.load("", IDS[:1], VECTORS[:1], changed[:1])
    pinecone.load("", IDS[1:5], OTHER[1:5], changed[1:5])
    pinecone.load("", IDS[5:6], OTHER[5:6], [CONTENTS[IDS[5]]])
    assert figures(reconcile(engine, open_pinecone(pinecone))) == (34, 5, 5, {"changed_here": 1})
    rows = execute(engine, "SELECT chunk_id, content, metadata FROM rag_chunks WHERE chunk_id <= :key", key=IDS[5])
    found = {key: (content, metadata) for key, content, metadata in rows}
    assert found[IDS[0]] == (f"new {IDS[0]}", {"number": 2.0})
    assert found[IDS[1]] == (f"new {IDS[1]}", {"number": 2.0})
    assert found[IDS[3]] == ("own text", {})
    assert found[IDS[4]] == ("mine", {"number": 1.5, "list": ["ü", "b"]})
    assert found[IDS[5]][0] == "mine"
    vectors = stored(engine)
    assert [vectors[key] for key in IDS[:6]] == [
        on_the_wire(vector) for vector in (VECTORS[0], OTHER[1], OTHER[2], OTHER[3], VECTORS[4], OTHER[5])
    ]
    assert figures(reconcile(engine, open_pinecone(pinecone))) == (39, 0, 0, {"changed_here": 1})


OWN = VectorTable(name="docs", table="docs", key=("id",), dimension=8, declared=True)


def own_table(engine: sa.Engine, *columns: str) -> None:
    listed = "".join(f", {column}" for column in columns)
    execute(engine, f"CREATE TABLE docs (id text PRIMARY KEY, embedding vector(8){listed})")


FILLED = "SELECT id, vector_send(embedding) FROM docs WHERE embedding IS NOT NULL"


def docs(engine: sa.Engine) -> dict[str, bytes]:
    return {key: bytes(raw) for key, raw in execute(engine, FILLED)}


def test_in_a_table_without_a_hash_whatever_differs_is_listed(engine: sa.Engine) -> None:
    own_table(engine)
    filled(engine, table=OWN)
    source = stub()
    source.records = {**source.records, IDS[0]: [OTHER[0]], "new": [OTHER[1]]}
    summary = reconcile(engine, source, table=OWN)
    assert figures(summary) == (39, 1, 0, {"changed_here": 1})
    assert docs(engine) == {**expected(IDS, VECTORS), "new": on_the_wire(OTHER[1])}


@pytest.mark.parametrize("rows", ["application", "ours"])
def test_a_table_of_ones_own_with_a_hash_is_brought_up_to_date(engine: sa.Engine, rows: str) -> None:
    own_table(engine, "kept bigint")
    table = OWN.with_columns(hash="kept", rows=rows)
    filled(engine, table=table)
    assert figures(reconcile(engine, stub(OTHER), table=table)) == (0, 40, 40, {})
    source = stub(OTHER)
    source.records = dict(list(source.records.items())[1:])
    summary = reconcile(engine, source, table=table, delete=True)
    assert summary.gone is not None
    # Without a hash of its content nobody can tell who inserted a row; of a table that is ours, everybody can.
    assert (summary.gone.deleted, summary.gone.emptied) == ((1, 0) if rows == "ours" else (0, 1))
    assert docs(engine) == expected(IDS[1:], OTHER[1:])
    assert execute(engine, "SELECT count(*) FROM docs") == [(39 if rows == "ours" else 40,)]


def test_a_hash_column_of_another_type_is_refused_and_the_check_says_how_to_mend_it(engine: sa.Engine) -> None:
    own_table(engine, "kept integer")
    table = OWN.with_columns(hash="kept")
    with pytest.raises(SchemaMismatch, match="kept is of type integer; expected bigint"):
        to_job(engine, stub(), table=table)
    with engine.connect() as connection:
        found = [finding for finding in check_table(connection, table) if "kept" in finding.expected]
    assert [(finding.expected, finding.found) for finding in found] == [("column kept bigint", "integer")]
    assert found[0].sql.endswith("ADD COLUMN kept bigint")


def test_rows_that_are_looked_up_are_never_deleted(engine: sa.Engine) -> None:
    own_table(engine, "kept bigint", "ref text")
    execute(engine, "INSERT INTO docs (id, ref) SELECT 'row-' || r, r FROM unnest(CAST(:ids AS text[])) r", ids=IDS)
    table = OWN.with_columns(hash="kept", key_rule=KeyRule("lookup", lookup="ref"))
    job = to_job(engine, stub(), table=table)
    key_map = LookUp(engine, job.slice.table, {})
    run_job(engine, to_job(engine, stub(), table=table, key_map=key_map))
    source = stub(OTHER)
    source.records = dict(list(source.records.items())[2:])
    summary = reconcile(engine, source, table=table, key_map=key_map, delete=True)
    assert summary.gone is not None
    assert (summary.counts.replaced, summary.gone.deleted, summary.gone.emptied) == (38, 0, 2)
    assert execute(engine, "SELECT count(*), count(embedding) FROM docs") == [(40, 38)]


def test_what_the_application_deleted_on_both_sides_does_not_come_back(engine: sa.Engine) -> None:
    filled(engine)
    outbox = Outbox(engine, RAG_CHUNKS.target, {"namespace": ""})
    source = stub()

    def delete(keys: Sequence[str]) -> None:
        source.before_fetch = lambda _: None
        with outbox.transaction() as connection:
            connection.execute(sa.text("DELETE FROM rag_chunks WHERE chunk_id = :key"), {"key": IDS[0]})
            outbox.intend_deletion(connection, [IDS[0]])

    source.before_fetch = delete
    assert reconcile(engine, source).errors == {}
    assert IDS[0] not in stored(engine)


def test_a_write_to_both_stores_is_not_overwritten_by_an_older_fetch(engine: sa.Engine) -> None:
    filled(engine)
    outbox = Outbox(engine, RAG_CHUNKS.target, {"namespace": ""})
    store = PgVectorStore(engine, RAG_CHUNKS, {"namespace": ""})
    source = stub(OTHER)
    records = [Record(IDS[0], VECTORS[20], "by the application", {})]

    def upsert(keys: Sequence[str]) -> None:
        source.before_fetch = lambda _: None
        with outbox.transaction() as connection:
            store.upsert(records, connection=connection)
            outbox.intend(connection, records)

    fetch = source.fetch

    def fetch_then_write(keys: Sequence[str]) -> Any:
        batch = fetch(keys)
        if IDS[0] in keys:
            upsert(keys)
        return batch

    source.fetch = fetch_then_write  # type: ignore[method-assign]
    summary = reconcile(engine, source, delete=True)
    assert (summary.counts.replaced, summary.errors) == (39, {})
    assert stored(engine)[IDS[0]] == on_the_wire(VECTORS[20])
    # The source has it too by then.
    [intent] = outbox.claim(10)
    outbox.clear([intent])
    source.fetch = fetch  # type: ignore[method-assign]
    source.records = {**source.records, IDS[0]: [VECTORS[20]]}
    assert figures(reconcile(engine, source)) == (40, 0, 0, {})


def test_a_backfill_that_is_unfinished_or_queued_comes_first(engine: sa.Engine) -> None:
    source = stub()
    with pytest.raises(RunConflict, match=r"a backfill of .* is queued"):
        reconcile(engine, source)
    source.before_fetch = lambda keys: (_ for _ in ()).throw(KeyError("stopped"))
    with pytest.raises(KeyError):
        filled(engine, source)
    with pytest.raises(RunConflict, match="--keys-from was 'source', is 'reconcile'"):
        reconcile(engine, stub())


def start_command(url: str, pinecone: PineconeEmulator, *arguments: str, **more: str) -> ForkedProcess:
    module = ROOT / "amprenta_vectors" / "__main__.py"
    return ForkedProcess(module, ("reconcile", *arguments), environment(url, pinecone, **more))


def run_command(url: str, pinecone: PineconeEmulator, *arguments: str) -> tuple[int | None, str]:
    process = start_command(url, pinecone, *arguments)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def type_command(url: str, pinecone: PineconeEmulator, *arguments: str) -> tuple[int, str]:
    """As a person does it: an interpreter of its own."""
    command = [sys.executable, "-m", "amprenta_vectors", "reconcile", *arguments]
    done = subprocess.run(
        command,
        env=environment(url, pinecone),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(("number", "ending"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)])
def test_a_pass_that_is_killed_or_interrupted_goes_on_by_the_same_command(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, number: int, ending: int
) -> None:
    pinecone = emulator()
    ids, vectors = to_ids(600), to_vectors(600)
    pinecone.load("", ids, vectors)
    filled(engine, open_pinecone(pinecone))
    changed = to_vectors(500, seed=5)
    pinecone.load("", ids[:500], changed)
    with pinecone_index(pinecone) as index:
        index.delete(ids=ids[500:])
    slow = {"AMPRENTA_FETCH_PER_SECOND": "4", "AMPRENTA_BATCH_SIZE": "100", "AMPRENTA_WORKERS": "1"}
    process = start_command(upgraded_url, pinecone, "--delete", AMPRENTA_LEASE_SECONDS="0.5", **slow)
    written = "SELECT coalesce(sum(rows_replaced), 0)::int FROM migration_progress"
    try:
        while process.poll() is None and not execute(engine, written)[0][0]:
            time.sleep(0.02)
    finally:
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == ending, output
    assert 0 < execute(engine, written)[0][0] < 500
    code, output = run_command(upgraded_url, pinecone, "--delete", "--json")
    assert code == 0, output
    last = json.loads([line for line in output.splitlines() if '"reconciled"' in line][-1])
    assert (last["replaced"], last["deleted"]) == (500, 100)
    assert stored(engine) == expected(ids[:500], changed)


def test_the_command_says_what_it_did_and_what_it_would_do(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator, tmp_path: Path
) -> None:
    pinecone = emulator()
    pinecone.load("", IDS, VECTORS)
    filled(engine, open_pinecone(pinecone))
    write_here(engine, IDS[1], OTHER[1])
    pinecone.load("", [IDS[0], IDS[1], "new"], OTHER[[0, 5, 2]])
    with pinecone_index(pinecone) as index:
        index.delete(ids=[IDS[9]])
    runs = execute(engine, "SELECT count(*) FROM migration_run")
    counts = "37 rows equal, 2 written, of them 1 replaced"
    code, output = type_command(upgraded_url, pinecone, "--dry-run", "--delete")
    assert code == 3, output
    assert f"dry run, nothing was changed: {counts}" in output
    assert "gone at the source: 1 rows, 1 deleted" in output
    assert execute(engine, "SELECT count(*) FROM migration_run") == runs
    assert len(stored(engine)) == 40
    code, output = run_command(upgraded_url, pinecone, "--delete")
    assert code == 3, output
    assert counts in output
    assert "gone at the source: 1 rows, 1 deleted" in output
    assert "listed: 1 changed_here" in output
    assert run_command(upgraded_url, pinecone, "--namespace", "")[0] == 3
    with pinecone_index(pinecone) as index:
        index.delete(ids=[*IDS[2:9], *IDS[10:30]])
    code, output = run_command(upgraded_url, pinecone, "--delete")
    assert (code, "more than half; none was deleted" in output) == (1, True), output
    assert len(stored(engine)) == 40


def test_passes_converge_on_a_source_that_keeps_changing(engine: sa.Engine, emulator: StartEmulator) -> None:
    """A thread upserts and deletes while passes go on; once it ends, one more pass makes both sides identical."""
    pinecone = emulator()
    ids, vectors = to_ids(300), to_vectors(300)
    pinecone.load("", ids, vectors)
    filled(engine, open_pinecone(pinecone))
    have: dict[str, Vectors] = dict(zip(ids, vectors, strict=True))
    ended, chance = threading.Event(), np.random.default_rng(11)

    def change() -> None:
        with pinecone_index(pinecone) as index:
            for turn in range(40):
                key = f"chunk-{chance.integers(0, 400):06d}"
                if chance.random() < 0.3:
                    index.delete(ids=[key])
                    have.pop(key, None)
                else:
                    vector = to_vectors(1, seed=1000 + turn)[0]
                    index.upsert(vectors=[(key, vector.tolist())])
                    have[key] = vector
        ended.set()

    thread = threading.Thread(target=change)
    thread.start()
    passes = 0
    while not ended.is_set() or passes < 2:
        summary = reconcile(engine, open_pinecone(pinecone), delete=True)
        assert set(summary.errors) <= {"gone_at_source"}
        passes += 1
    thread.join()
    summary = reconcile(engine, open_pinecone(pinecone), delete=True)
    assert summary.errors == {}
    assert stored(engine) == expected(list(have), np.stack(list(have.values())))
    assert look(engine, open_pinecone(pinecone)).written == 0


class CountingEmbedder:
    """Vectors by a text's hash; counts what it is asked for."""

    model = Model("counting", 8, "test")

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str]) -> Vectors:
        self.texts += texts
        seeds = [int.from_bytes(text.encode()[-4:], "big") for text in texts]
        return np.concatenate([to_vectors(1, seed=seed) for seed in seeds])


def test_texts_that_are_new_or_have_changed_are_embedded_and_no_others(engine: sa.Engine) -> None:
    own_table(engine, "body text", "kept bigint", "text_kept bigint")
    execute(engine, "INSERT INTO docs (id, body) VALUES ('a', 'one'), ('b', 'two'), ('c', 'three'), ('d', 'four')")
    table = OWN.with_columns(text="body", hash="kept", text_hash="text_kept")
    embedder = CountingEmbedder()
    resolved = to_job(engine, stub(), table=table).slice.table
    source = RowsSource(engine, resolved, {}, embedder, 4)
    key_map = OwnKeys(["text"])
    filled(engine, source, table=table, key_map=key_map, keys_from="table")
    assert sorted(embedder.texts) == ["four", "one", "three", "two"]
    embedder.texts.clear()
    assert figures(reconcile(engine, source, table=table, key_map=key_map)) == (0, 0, 0, {})
    execute(engine, "INSERT INTO docs (id, body) VALUES ('e', 'five')")
    execute(engine, "UPDATE docs SET body = 'deux' WHERE id = 'b'")
    execute(engine, "UPDATE docs SET body = 'trois', embedding = '[1,1,1,1,1,1,1,1]' WHERE id = 'c'")
    # Where the embedding came without a text, nobody knows whether that changed.
    execute(engine, "UPDATE docs SET body = 'quatre', text_kept = NULL WHERE id = 'd'")
    prospect = look(engine, source, table=table, key_map=key_map)
    assert (prospect.written, prospect.replaced, prospect.quarantined) == (2, 1, {"changed_here": 1})
    embedder.texts.clear()
    summary = reconcile(engine, source, table=table, key_map=key_map, delete=True)
    assert figures(summary) == (0, 2, 1, {"changed_here": 1})
    assert sorted(embedder.texts) == ["deux", "five", "trois"]
    found = docs(engine)
    assert found["b"] == on_the_wire(embedder.embed(["deux"])[0])
    assert found["c"] == on_the_wire(np.ones(8, np.float32))
    assert found["d"] == on_the_wire(embedder.embed(["four"])[0])
    assert [row[0] for row in execute(engine, "SELECT body FROM docs ORDER BY id")] == [
        "one", "deux", "trois", "quatre", "five",
    ]  # fmt: skip


def test_seen_keys_are_kept_no_longer_than_the_run(engine: sa.Engine) -> None:
    filled(engine)
    reconcile(engine, stub())
    assert execute(engine, "SELECT sum(cardinality(keys)) FROM migration_progress") == [(0,)]
