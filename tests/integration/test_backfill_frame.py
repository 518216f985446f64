"""Tables and sources of other shapes than the first system's go through the same engine."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import StubSource, execute, on_the_wire, run_job, to_job, to_vectors

from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.verify.compare import Difference, Verifier
from amprenta_vectors.batch import Vectors
from amprenta_vectors.schema.keymaps import Numbered
from amprenta_vectors.schema.vector_table import VectorTable

VECTORS = to_vectors(40)


def differences(engine: sa.Engine, job: Job) -> list[Difference]:
    found: list[Difference] = []
    retry = Backoff(5.0, threading.Event(), lambda _: None)
    verifier = Verifier(engine, job.slice, job.source, batch_size=7, workers=2, retry=retry)
    verifier.run(found.append)
    return found


def sent(engine: sa.Engine, table: str, columns: str) -> dict[Any, bytes]:
    rows = execute(engine, f"SELECT {columns}, vector_send(embedding) FROM {table} WHERE embedding IS NOT NULL")
    return {tuple(row[:-1]): bytes(row[-1]) for row in rows}


CHUNKS = VectorTable(name="chunks", table="chunks", key=("document", "number"), dimension=8)


@pytest.fixture
def chunks(engine: sa.Engine) -> sa.Engine:
    """A table without scope, text, metadata or model, whose key is a text and an integer."""
    execute(
        engine,
        "CREATE TABLE chunks (document text, number integer, embedding vector(8), PRIMARY KEY (document, number))",
    )
    return engine


def documents() -> tuple[StubSource, dict[Any, bytes]]:
    """Documents of no, one and several chunks."""
    records: dict[str, Sequence[Vectors]] = {}
    expected: dict[Any, bytes] = {}
    rest = iter(VECTORS)
    for number in range(10):
        document = f"document {number}"
        records[document] = [next(rest) for _ in range(number % 4)]
        expected.update({(document, n): on_the_wire(vector) for n, vector in enumerate(records[document])})
    return StubSource(records), expected


def test_one_source_key_becomes_several_rows_of_a_composite_key(chunks: sa.Engine) -> None:
    source, expected = documents()
    job = to_job(chunks, source, table=CHUNKS, key_map=Numbered(), batch_size=3)
    assert job.slice.scope == {}
    summary = run_job(chunks, job)
    assert sent(chunks, "chunks", "document, number") == expected
    # Documents without any chunk are not passed over in silence.
    assert summary.errors == {"missing_at_source": 3}
    assert differences(chunks, job) == []


def test_rows_of_a_composite_key_are_filled_by_the_source_keys_they_come_from(
    chunks: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Chunks of one document stand on several pages of the table's keys.
    monkeypatch.setattr("amprenta_vectors.schema.row_keys.KEYSET_PAGE", 2)
    source, expected = documents()
    for document, number in expected:
        execute(chunks, "INSERT INTO chunks (document, number) VALUES (:document, :n)", document=document, n=number)
    execute(chunks, "INSERT INTO chunks (document, number) VALUES ('document 3', 99)")
    job = to_job(chunks, source, table=CHUNKS, key_map=Numbered(), keys_from="table", batch_size=3)
    run_job(chunks, job)
    assert sent(chunks, "chunks", "document, number") == expected


def test_a_refused_row_of_several_of_one_source_key_stands_alone(chunks: sa.Engine) -> None:
    nan = np.full(8, np.nan, np.float32)
    source = StubSource({"a": [VECTORS[0], nan, VECTORS[2]], "b": [VECTORS[3]]})
    summary = run_job(chunks, to_job(chunks, source, table=CHUNKS, key_map=Numbered()))
    assert sent(chunks, "chunks", "document, number") == {
        ("a", 0): on_the_wire(VECTORS[0]),
        ("a", 2): on_the_wire(VECTORS[2]),
        ("b", 0): on_the_wire(VECTORS[3]),
    }
    assert summary.errors == {"not_finite": 1}


ITEMS = VectorTable(name="items", table="items", schema="Odd Schema", key=("id",), scope=("tenant",), dimension=8)


@pytest.mark.parametrize("keys_from", ["table", "source"])
@pytest.mark.parametrize(
    ("type_", "key"),
    [("uuid", lambda n: str(uuid.uuid5(uuid.NAMESPACE_URL, str(n)))), ("bigint", lambda n: str(n * 10**12))],
    ids=["uuid", "bigint"],
)
def test_keys_and_scopes_have_the_types_that_the_table_gives_them(
    engine: sa.Engine, keys_from: str, type_: str, key: Any
) -> None:
    execute(
        engine,
        f"""
        CREATE SCHEMA "Odd Schema";
        CREATE TABLE "Odd Schema".items (
            tenant integer, id {type_}, embedding vector(8), embedding_b vector(8), PRIMARY KEY (tenant, id)
        )
        """,
    )
    ids = [key(number) for number in range(40)]
    add = f'INSERT INTO "Odd Schema".items (tenant, id) SELECT :tenant, unnest(CAST(:ids AS {type_}[]))'
    for tenant in (7, 8):
        execute(engine, add, tenant=tenant, ids=ids[:30])
    source = StubSource({id_: [vector] for id_, vector in zip(ids, VECTORS, strict=True)})
    job = to_job(engine, source, table=ITEMS, scope={"tenant": "7"}, keys_from=keys_from)
    run_job(engine, job)
    number = 30 if keys_from == "table" else 40
    assert sent(engine, '"Odd Schema".items', "tenant, id::text") == {
        (7, id_): on_the_wire(vector) for id_, vector in zip(ids[:number], VECTORS[:number], strict=True)
    }
    assert [difference.kind for difference in differences(engine, job)] == ["missing"] * (40 - number)


def test_a_key_that_the_columns_type_refuses_is_quarantined(chunks: sa.Engine) -> None:
    execute(chunks, "CREATE TABLE numbered (id integer PRIMARY KEY, embedding vector(8))")
    table = VectorTable(name="numbered", table="numbered", key=("id",), dimension=8)
    source = StubSource({"1": [VECTORS[0]], "two": [VECTORS[1]], "3": [VECTORS[2]]})
    summary = run_job(chunks, to_job(chunks, source, table=table))
    assert summary.errors == {"write_refused": 1}
    assert summary.counts.written == 2


HALVES = VectorTable(name="halves", table="halves", key=("id",), dimension=8, metadata="extra", text="body")


def test_halfvec_storage_holds_each_vector_after_one_cast(engine: sa.Engine) -> None:
    execute(engine, "CREATE TABLE halves (id text PRIMARY KEY, body text, extra jsonb, embedding halfvec(8))")
    execute(engine, "CREATE INDEX ON halves USING hnsw (embedding halfvec_cosine_ops)")
    ids = [str(number) for number in range(40)]
    large, tiny = np.full(8, 70_000, np.float32), np.full(8, 1e-9, np.float32)
    records = {id_: [vector] for id_, vector in zip(ids, VECTORS, strict=True)}
    source = StubSource({**records, "too large": [large], "too small": [tiny]})
    job = to_job(engine, source, table=HALVES)
    assert job.slice.table.storage == "halfvec"
    summary = run_job(engine, job)
    found = dict(execute(engine, "SELECT id, halfvec_send(embedding) FROM halves"))
    assert {id_: bytes(vector)[4:] for id_, vector in found.items()} == {
        id_: vector.astype(">f2").tobytes() for id_, vector in zip(ids, VECTORS, strict=True)
    }
    assert summary.errors == {"not_finite": 1, "zero_under_cosine": 1}
    assert summary.indexes_built == ["halves_embedding_idx"]
    kinds = {difference.key: difference.kind for difference in differences(engine, job)}
    assert kinds == {"too large": "missing", "too small": "missing"}


def test_two_columns_of_one_table_are_two_targets(engine: sa.Engine) -> None:
    execute(engine, "CREATE TABLE pairs (id text PRIMARY KEY, a vector(8), b vector(8))")
    left = VectorTable(name="left", table="pairs", key=("id",), dimension=8, embedding="a")
    right = VectorTable(name="right", table="pairs", key=("id",), dimension=8, embedding="b")
    source, other = StubSource({"x": [VECTORS[0]]}), StubSource({"x": [VECTORS[1]]})
    run_job(engine, to_job(engine, source, table=left, model="m1"))
    run_job(engine, to_job(engine, other, table=right, model="m2"))
    ((first, second),) = execute(engine, "SELECT vector_send(a), vector_send(b) FROM pairs")
    assert (bytes(first), bytes(second)) == (on_the_wire(VECTORS[0]), on_the_wire(VECTORS[1]))
