"""A backfill from end to end: keys from the table or the source, over both transports, in process and as a script."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from backfill_tools import (
    add_rows,
    count_writes,
    environment,
    execute,
    expected,
    on_the_wire,
    open_pinecone,
    run_job,
    run_process,
    stored,
    to_ids,
    to_job,
    to_vectors,
    writes_per_key,
)

from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.sandbox.strange import strange_records, to_columns
from amprenta_vectors.schema.registry import RAG_CHUNKS

StartEmulator = Callable[..., PineconeEmulator]

TRANSPORTS = pytest.mark.parametrize("transport", ["grpc", "rest"])


@TRANSPORTS
def test_rows_of_the_table_get_their_vectors_and_keep_their_own_text(
    engine: sa.Engine, emulator: StartEmulator, transport: str
) -> None:
    pinecone, ids, vectors = emulator(), to_ids(120), to_vectors(120)
    pinecone.load("", ids, vectors, [{"text": "Pinecone's", "n": 1}] * 120)
    add_rows(engine, ids[:100])
    count_writes(engine)
    source = open_pinecone(pinecone, transport=transport, with_metadata=False)
    summary = run_job(engine, to_job(engine, source, keys_from="table"))
    assert stored(engine) == expected(ids[:100], vectors[:100])
    assert set(writes_per_key(engine).values()) == {1}
    assert execute(engine, "SELECT DISTINCT content, metadata FROM rag_chunks") == [("own text", {})]
    assert (summary.run.state, summary.counts.written, summary.errors) == ("finished", 100, {})
    assert pinecone.calls["list"] == 0


@TRANSPORTS
def test_records_of_the_source_become_rows_with_text_and_metadata(
    engine: sa.Engine, emulator: StartEmulator, transport: str
) -> None:
    pinecone, ids, vectors = emulator(), to_ids(250), to_vectors(250)
    metadata = [
        {"text": f"text {n}", "n": n, "ratio": n / 3, "flag": n % 2 == 0, "tags": ["a", "b"]} for n in range(250)
    ]
    pinecone.load("", ids, vectors, metadata)
    count_writes(engine)
    summary = run_job(engine, to_job(engine, open_pinecone(pinecone, transport=transport), model="m1"))
    assert stored(engine) == expected(ids, vectors)
    assert writes_per_key(engine) == dict.fromkeys(ids, 1)
    rows = execute(engine, "SELECT content, metadata, embedding_model FROM rag_chunks ORDER BY chunk_id")
    assert [(content, fields) for content, fields, _ in rows] == [
        (fields["text"], {name: value for name, value in fields.items() if name != "text"}) for fields in metadata
    ]
    assert {model for *_, model in rows} == {"m1"}
    assert (summary.counts.written, summary.counts.keys_done, summary.run.planned_keys) == (250, 250, 250)


def float64(document: str) -> Any:
    """A JSON document whose numbers are all float64, as they are in Pinecone."""
    return json.loads(document, parse_int=float)


def strange_index(emulator: StartEmulator) -> tuple[PineconeEmulator, dict[tuple[str, str], Any]]:
    pinecone = emulator()
    records = strange_records(8)
    for namespace, ids, vectors, metadata in to_columns(records):
        pinecone.load(namespace, ids, vectors, metadata)
    return pinecone, {(record.namespace, record.id): record for record in records}


@TRANSPORTS
def test_strange_ids_namespaces_and_metadata_arrive_unchanged(
    engine: sa.Engine, emulator: StartEmulator, transport: str
) -> None:
    pinecone, records = strange_index(emulator)
    for namespace in sorted({namespace for namespace, _ in records}):
        source = open_pinecone(pinecone, namespace, transport=transport)
        assert run_job(engine, to_job(engine, source, namespace=namespace)).errors == {}
    statement = "SELECT namespace, chunk_id, vector_send(embedding), content, metadata::text FROM rag_chunks"
    found = {(row[0], row[1]): row[2:] for row in execute(engine, statement)}
    assert found.keys() == records.keys()
    for key, (vector, content, metadata) in found.items():
        record = records[key]
        assert bytes(vector) == on_the_wire(record.vector), key
        assert content == record.metadata.get("text"), key
        fields = {name: value for name, value in record.metadata.items() if name != "text"}
        assert float64(metadata) == float64(json.dumps(fields)), key


@TRANSPORTS
def test_strange_ids_of_the_table_find_their_vectors(
    engine: sa.Engine, emulator: StartEmulator, transport: str
) -> None:
    pinecone, records = strange_index(emulator)
    namespace = "'; DROP SCHEMA public CASCADE; --"
    ids = [key for space, key in records if space == namespace]
    add_rows(engine, ids, namespace)
    add_rows(engine, ids, "another one")
    source = open_pinecone(pinecone, namespace, transport=transport, with_metadata=False)
    run_job(engine, to_job(engine, source, namespace=namespace, keys_from="table", batch_size=7))
    assert stored(engine) == {key: on_the_wire(records[namespace, key].vector) for key in ids}
    assert stored(engine, "another one") == {}


@pytest.mark.parametrize("keys_from", ["table", "source"])
def test_an_adopted_table_without_a_namespace_column_is_one_namespace(
    engine: sa.Engine, emulator: StartEmulator, keys_from: str
) -> None:
    pinecone, ids, vectors = emulator(), to_ids(60), to_vectors(60)
    pinecone.load("ns", ids, vectors)
    execute(engine, "ALTER TABLE rag_chunks DROP COLUMN namespace CASCADE, ADD PRIMARY KEY (chunk_id)")
    execute(engine, "INSERT INTO rag_chunks (chunk_id) SELECT unnest(CAST(:ids AS text[]))", ids=ids[:40])
    job = to_job(engine, open_pinecone(pinecone, "ns"), keys_from=keys_from)
    assert job.slice.scope == {}
    run_job(engine, job)
    number = 40 if keys_from == "table" else 60
    assert stored(engine) == expected(ids[:number], vectors[:number])


def test_a_key_column_of_limited_length_never_finds_a_row_by_part_of_a_key(
    engine: sa.Engine, emulator: StartEmulator
) -> None:
    pinecone, ids, vectors = emulator(), ["12345678", "12345678-and-more"], to_vectors(2)
    pinecone.load("", ids, vectors)
    execute(engine, "ALTER TABLE rag_chunks ALTER COLUMN chunk_id TYPE varchar(8), ALTER namespace TYPE char(3)")
    summary = run_job(engine, to_job(engine, open_pinecone(pinecone)))
    assert stored(engine) == expected(ids[:1], vectors[:1])
    assert summary.errors == {"write_refused": 1}


def test_the_script_fills_every_namespace_and_verifies_it(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator
) -> None:
    pinecone, ids, vectors = emulator(), to_ids(150), to_vectors(300)
    pinecone.load("", ids, vectors[:150], [{"text": "a"}] * 150)
    pinecone.load("other", ids, vectors[150:], [{"text": "b"}] * 150)
    variables = environment(upgraded_url, pinecone, AMPRENTA_BATCH_SIZE="40")
    code, output = run_process(variables, "--keys-from", "source", "--all-namespaces", "--json")
    assert code == 0, output
    events = [json.loads(line) for line in output.splitlines()]
    assert [event["event"] for event in events].count("verified") == 2
    assert stored(engine, "") == expected(ids, vectors[:150])
    assert stored(engine, "other") == expected(ids, vectors[150:])


def test_the_script_of_older_run_books_fills_rows_over_rest(
    upgraded_url: str, engine: sa.Engine, emulator: StartEmulator
) -> None:
    pinecone, ids, vectors = emulator(), to_ids(90), to_vectors(90)
    pinecone.load("", ids, vectors)
    add_rows(engine, ids)
    variables = environment(upgraded_url, pinecone, PINECONE_TRANSPORT="rest")
    arguments = ["--batch-size", "40", "--workers", "2", "--resume"]
    code, output = run_process(variables, *arguments, script="migrate_pinecone_to_pgvector.py")
    assert code == 0, output
    assert "every vector is equal, bit for bit" in output
    assert stored(engine) == expected(ids, vectors)


def test_the_runs_table_is_described_once(engine: sa.Engine, emulator: StartEmulator) -> None:
    pinecone = emulator()
    pinecone.load("", ["a"], to_vectors(1))
    run_job(engine, to_job(engine, open_pinecone(pinecone)))
    runs = execute(engine, "SELECT target, scope, state, keys_from FROM migration_run")
    assert runs == [(f"{RAG_CHUNKS.table}.embedding", {"namespace": ""}, "finished", "source")]
