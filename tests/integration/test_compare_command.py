"""`compare run`: every hit that Pinecone has and PostgreSQL has not is told apart, each class made on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import execute
from click.testing import CliRunner, Result

from amprenta_vectors.cli import main
from amprenta_vectors.cli.compare import MEANINGS
from amprenta_vectors.cli.queries import for_measuring
from amprenta_vectors.compare.why import Why
from amprenta_vectors.config import Settings
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.stores.factory import BACKENDS, open_pgvector_store, open_pinecone_store
from amprenta_vectors.stores.protocol import Record, VectorStore

DIMENSION = 8
VECTORS = np.random.default_rng(11).standard_normal((40, DIMENSION), dtype=np.float32)
RECORDS = [Record(f"k{i:02d}", vector, f"text {i}", {"even": i % 2 == 0}) for i, vector in enumerate(VECTORS)]
QUERY = VECTORS[7]
StartEmulator = Callable[..., PineconeEmulator]


@pytest.fixture
def variables(emulator: StartEmulator, upgraded_url: str) -> dict[str, str]:
    return {
        "DATABASE_URL": upgraded_url,
        "PINECONE_API_KEY": "test-key",
        "PINECONE_INDEX_NAME": "test-index",
        "PINECONE_CONTROLLER_HOST": emulator().host,
    }


@pytest.fixture
def settings(variables: dict[str, str]) -> Settings:
    return Settings.load(**{name.lower(): value for name, value in variables.items()})


@pytest.fixture
def pinecone(settings: Settings) -> Iterator[VectorStore]:
    store = open_pinecone_store(settings)
    store.upsert(RECORDS)
    yield store
    store.close()


@pytest.fixture
def pgvector(settings: Settings) -> Iterator[VectorStore]:
    store = open_pgvector_store(settings)
    store.upsert(RECORDS)
    yield store
    store.close()


@pytest.fixture
def ask(variables: dict[str, str], tmp_path: Path) -> Callable[..., Result]:
    """A function that asks one query of a file, with a filter or without."""

    def asked(*options: str, filter: Any = None) -> Result:
        path = tmp_path / "queries.jsonl"
        path.write_text(json.dumps({"vector": QUERY.tolist(), "filter": filter}) + "\n")
        return CliRunner().invoke(
            main, ["compare", "run", "--from", str(path), "--top-k", "10", *options], env=variables
        )

    return asked


def nearest(store: VectorStore, **filter: Any) -> list[str]:
    return [hit.key for hit in store.query(QUERY, top_k=10, filter=filter or None)]


def missing(result: Result, code: int) -> dict[str, Any]:
    """What is missing by class, where something is."""
    assert result.exit_code == code, result.output
    report = json.loads(result.output)
    found = {why: entry for why, entry in report["missing"].items() if entry["hits"]}
    assert report["hits"] == report["found"] + sum(entry["hits"] for entry in found.values())
    return found


def of(why: Why, *keys: str) -> dict[str, Any]:
    return {why.value: {"hits": len(keys), "keys": list(keys)}}


@pytest.mark.usefixtures("pinecone", "pgvector")
def test_nothing_is_missing_where_both_have_the_same(ask: Callable[..., Result]) -> None:
    assert missing(ask("--json"), 0) == {}
    assert "no hit is missing" in ask().output


def test_a_row_that_is_nowhere_is_lost(
    pinecone: VectorStore, pgvector: VectorStore, ask: Callable[..., Result]
) -> None:
    key = nearest(pinecone)[3]
    pgvector.delete([key])
    assert missing(ask("--json"), 1) == of(Why.LOST, key)
    text = ask().output
    assert key in text
    assert MEANINGS[Why.LOST] in text
    assert "backfill --keys-from source" in text


def test_a_row_of_another_namespace_is_told_from_a_lost_one_and_nothing_of_it_is_shown(
    engine: sa.Engine, pinecone: VectorStore, pgvector: VectorStore, ask: Callable[..., Result]
) -> None:
    key = nearest(pinecone)[3]
    execute(
        engine, "UPDATE rag_chunks SET namespace = 'secret-tenant', content = 'secret' WHERE chunk_id = :key", key=key
    )
    result = ask("--json")
    assert missing(result, 1) == of(Why.OTHER_SCOPE, key)
    assert "secret" not in result.output + ask().output


def test_a_row_without_a_vector_is_told_from_one_that_is_not_there(
    engine: sa.Engine, pinecone: VectorStore, pgvector: VectorStore, ask: Callable[..., Result]
) -> None:
    empty, zero = nearest(pinecone)[2:4]
    execute(engine, "UPDATE rag_chunks SET embedding = NULL WHERE chunk_id = :key", key=empty)
    execute(engine, "UPDATE rag_chunks SET embedding = '[0,0,0,0,0,0,0,0]' WHERE chunk_id = :key", key=zero)
    assert missing(ask("--json"), 1) == of(Why.NO_VECTOR, empty, zero)


def test_a_row_with_another_vector_is_told_from_one_that_is_only_farther(
    pinecone: VectorStore, pgvector: VectorStore, ask: Callable[..., Result]
) -> None:
    changed = nearest(pinecone)[2]
    pgvector.upsert([Record(changed, -QUERY)])
    assert missing(ask("--json"), 1) == of(Why.OTHER_VECTOR, changed)


def test_hits_that_nearer_rows_here_push_out_are_not_missed(
    pinecone: VectorStore, pgvector: VectorStore, ask: Callable[..., Result]
) -> None:
    first, *_, beaten = nearest(pinecone)
    pinecone.delete([first])
    eleventh = next(key for key in nearest(pinecone) if key != beaten and key not in nearest(pgvector))
    assert missing(ask("--json"), 0) == of(Why.FARTHER, eleventh)


def test_a_row_whose_metadata_do_not_match_here_is_filtered_differently(
    engine: sa.Engine, pinecone: VectorStore, pgvector: VectorStore, ask: Callable[..., Result]
) -> None:
    near, *_, far = nearest(pinecone, even=True)
    statement = """UPDATE rag_chunks SET metadata = '{"even": false}' WHERE chunk_id IN (:near, :far)"""
    execute(engine, statement, near=near, far=far)
    assert missing(ask("--json", filter={"even": True}), 0) == of(Why.FILTERED, near, far)
    assert missing(ask("--json"), 0) == {}


def test_a_row_as_near_as_the_last_is_a_tie(
    pinecone: VectorStore, pgvector: VectorStore, ask: Callable[..., Result]
) -> None:
    last = nearest(pinecone)[-1]
    vector = next(record.vector for record in RECORDS if record.key == last)
    # Of rows that are equally near PostgreSQL gives those that it meets first.
    pgvector.delete([last])
    pgvector.upsert([Record(f"twin {i}", vector) for i in range(3)])
    pgvector.upsert([Record(last, vector)])
    assert missing(ask("--json"), 0) == of(Why.TIE, last)


@pytest.mark.usefixtures("pinecone")
def test_a_row_that_the_index_does_not_find_is_a_matter_of_recall(
    engine: sa.Engine, pgvector: VectorStore, settings: Settings, variables: dict[str, str], ask: Callable[..., Result]
) -> None:
    key = nearest(pgvector)[3]
    pgvector.delete([key])
    # A row written while the index is not kept up is one that it does not find.
    ready = "UPDATE pg_index SET indisready = {} WHERE indexrelid = 'idx_rag_chunks_embedding'::regclass"
    execute(engine, ready.format("false"))
    engine.dispose()
    writer = open_pgvector_store(settings)
    writer.upsert([record for record in RECORDS if record.key == key])
    writer.close()
    execute(engine, ready.format("true"))
    for name in ("enable_seqscan", "enable_bitmapscan", "enable_sort"):
        execute(engine, f"ALTER ROLE postgres IN DATABASE {engine.url.database} SET {name} = off")
    assert missing(ask("--json"), 0) == of(Why.RECALL, key)
    assert "tune --recall" in ask().output


@pytest.mark.usefixtures("pgvector")
def test_the_shorter_spelling_samples_stored_vectors(pinecone: VectorStore, variables: dict[str, str]) -> None:
    result = CliRunner().invoke(main, ["compare", "--queries", "5", "--json"], env=variables)
    assert result.exit_code == 0, result.output
    assert (json.loads(result.output)["queries"], json.loads(result.output)["hits"]) == (5, 50)


@pytest.mark.usefixtures("pinecone")
def test_recorded_shadow_queries_are_asked_again_with_their_filters(
    engine: sa.Engine, pgvector: VectorStore, variables: dict[str, str]
) -> None:
    insert = """
        INSERT INTO shadow_query (primary_store, secondary_store, query, filter, top_k, hits, primary_ms)
        VALUES ('pinecone', 'pgvector', CAST(:query AS real[]), CAST(:filter AS jsonb), 10, 10, 1)
    """
    execute(engine, insert, query=[0.5] * 3, filter=None)
    execute(engine, insert, query=QUERY.tolist(), filter='{"even": true}')
    odd = [hit.key for hit in pgvector.query(QUERY, top_k=40) if int(hit.key[1:]) % 2]
    pgvector.delete(odd)
    result = CliRunner().invoke(main, ["compare", "--from", "shadow", "--json"], env=variables)
    assert result.exit_code == 0, result.output
    assert (json.loads(result.output)["queries"], json.loads(result.output)["hits"]) == (1, 10)


@pytest.mark.usefixtures("pinecone", "pgvector")
def test_a_file_of_arrays_is_asked_up_to_the_number_wanted(variables: dict[str, str], tmp_path: Path) -> None:
    np.save(tmp_path / "queries.npy", VECTORS.astype(np.float64))
    arguments = ["compare", "--from", str(tmp_path / "queries.npy"), "--json"]
    for options, number in (([], 40), (["--queries", "3"], 3)):
        result = CliRunner().invoke(main, [*arguments, *options], env=variables)
        assert result.exit_code == 0, result.output
        assert json.loads(result.output)["queries"] == number


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json", "line 2 is no JSON"),
        ('{"vector": [1, 2]}', "line 2: the query vector has shape (2,); expected (8,)"),
        ('{"vector": [0, 0, 0, 0, 0, 0, 0, 0]}', "no direction under cosine"),
        ('{"vector": [1, 0, 0, 0, 0, 0, 0, 0], "filter": {"a": {"$like": 1}}}', "$like"),
        ('{"vector": [1, 0, 0, 0, 0, 0, 0, 0], "filter": 3}', "line 2: the filter is no object"),
        ('{"embedding": [1, 0, 0, 0, 0, 0, 0, 0]}', "line 2 is no query"),
    ],
)
def test_a_line_that_is_no_query_is_named(variables: dict[str, str], tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text(json.dumps({"vector": QUERY.tolist()}) + f"\n{line}\n")
    result = CliRunner().invoke(main, ["compare", "--from", str(path)], env=variables)
    assert result.exit_code == 2
    assert said in result.output
    assert "hint: one JSON object a line" in result.output


@pytest.mark.parametrize(
    ("origin", "hint"), [("stored", "run the backfill"), ("shadow", "VECTOR_MODE=shadow"), ("absent.npy", ".npy")]
)
def test_where_there_is_no_query_it_says_what_to_do(variables: dict[str, str], origin: str, hint: str) -> None:
    result = CliRunner().invoke(main, ["compare", "--from", origin], env=variables)
    assert result.exit_code == 2
    assert hint in result.output


def test_no_store_that_is_measured_leaves_out_hits_by_a_threshold() -> None:
    thresholds = {name: 0.9 for name in Settings.model_fields if name.endswith("_similarity_threshold")}
    measured = for_measuring(Settings.load(**thresholds, query_timeout_seconds=1))
    assert {getattr(measured, name) for name in (*thresholds, "query_timeout_seconds")} == {None}
    assert {name.split("_")[0] for name in thresholds} == set(BACKENDS)
