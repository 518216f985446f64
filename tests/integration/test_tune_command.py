"""`tune`: the cheapest setting that reaches the recall, and stores that use what it stored."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import counted, execute
from click.testing import CliRunner, Result

from amprenta_vectors.cli import main
from amprenta_vectors.compare.queries import Query
from amprenta_vectors.compare.tuning import tune
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.schema.registry import RAG_CHUNKS
from amprenta_vectors.stores.factory import open_pgvector_store
from amprenta_vectors.stores.pgvector.options import StoreOptions
from amprenta_vectors.stores.pgvector.search_settings import DEFAULT_EF_SEARCH
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Hit

ROWS, DIMENSION = 3000, 8
VECTORS = np.random.default_rng(3).standard_normal((ROWS, DIMENSION), dtype=np.float32)
POOR_HNSW = "USING hnsw (embedding vector_cosine_ops) WITH (m = 3, ef_construction = 6)"
SIGNS = "USING hnsw ((binary_quantize(embedding)::bit(8)) bit_hamming_ops)"
IVFFLAT = "USING ivfflat (embedding vector_cosine_ops) WITH (lists = 50)"
Build = Callable[[str], None]


@pytest.fixture
def build(engine: sa.Engine) -> Build:
    """A function that fills the table and gives it the one index; PostgreSQL uses it wherever it can."""

    def built(index: str) -> None:
        execute(engine, "DROP INDEX idx_rag_chunks_embedding")
        execute(
            engine,
            "INSERT INTO rag_chunks (namespace, chunk_id, embedding) SELECT '', 'k' || i, v "
            "FROM unnest(CAST(:vectors AS vector[])) WITH ORDINALITY AS given(v, i)",
            vectors=[str(row.tolist()) for row in VECTORS],
        )
        execute(engine, f"CREATE INDEX poor ON rag_chunks {index}")
        execute(engine, "ANALYZE rag_chunks")
        for name in ("enable_seqscan", "enable_bitmapscan", "enable_sort"):
            execute(engine, f"ALTER ROLE postgres IN DATABASE {engine.url.database} SET {name} = off")
        engine.dispose()

    return built


@pytest.fixture
def ask(upgraded_url: str) -> Callable[..., Result]:
    def asked(*options: str, **variables: str) -> Result:
        environment = {"DATABASE_URL": upgraded_url, **variables}
        return CliRunner().invoke(main, ["tune", "--queries", "50", *options], env=environment)

    return asked


def tuned(result: Result, code: int = 0) -> dict[str, Any]:
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def recall(settings: Settings) -> float:
    """Of the same 50 queries, by distance, against what numpy says is nearest."""
    with closing(open_pgvector_store(settings)) as store:
        queries = store.sample(50)
        unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
        found = 0
        for query in queries:
            last = np.sort(unit @ (query / np.linalg.norm(query)))[-10]
            found += sum(hit.score >= last - 1e-6 for hit in store.query(query, top_k=10))
    return found / 500


@pytest.fixture
def settings(upgraded_url: str) -> Settings:
    return Settings.load(database_url=upgraded_url)


@pytest.mark.parametrize(("index", "setting"), [(POOR_HNSW, "ef_search"), (IVFFLAT, "probes"), (SIGNS, "oversampling")])
def test_the_cheapest_that_reaches_the_recall_is_stored_and_used(
    engine: sa.Engine, build: Build, ask: Callable[..., Result], settings: Settings, index: str, setting: str
) -> None:
    build(index)
    found = tuned(ask("--recall", "0.92", "--apply", "--json"))
    chosen = found["chosen"]
    assert (found["setting"], found["applied"], chosen["recall"] >= 0.92) == (setting, True, True)
    below = [trial for trial in found["trials"] if trial["value"] < chosen["value"]]
    assert below
    assert all(trial["recall"] < 0.92 for trial in below)
    assert [tuple(row) for row in execute(engine, "SELECT target, name, value FROM vector_setting")] == [
        ("rag_chunks.embedding", setting, chosen["value"])
    ]
    # With stored vectors as they are, so not the same queries.
    poor = settings.model_copy(update={setting: below[0]["value"]})
    assert recall(poor) < recall(settings)


def test_what_is_given_comes_before_what_is_stored(
    engine: sa.Engine, build: Build, ask: Callable[..., Result], settings: Settings
) -> None:
    build(POOR_HNSW)
    execute(
        engine, "INSERT INTO vector_setting (target, name, value) VALUES ('rag_chunks.embedding', 'ef_search', 321)"
    )
    given = settings.model_copy(update={"ef_search": 123})
    for chosen, expected in ((settings, 321), (given, 123)):
        with closing(open_pgvector_store(chosen)) as store:
            assert store.explain(VECTORS[0]).ef_search == expected
    store = PgVectorStore(engine, RAG_CHUNKS, {"namespace": ""}, StoreOptions(ef_search=77))
    assert store.explain(VECTORS[0]).ef_search == 77
    result = ask("--recall", "0.5", "--apply", AMPRENTA_EF_SEARCH="100")
    assert "warning: AMPRENTA_EF_SEARCH is 100, which comes before what is stored" in result.output


def test_another_vector_table_keeps_its_own(engine: sa.Engine, build: Build, settings: Settings) -> None:
    build(POOR_HNSW)
    execute(engine, "INSERT INTO vector_setting (target, name, value) VALUES ('other.embedding', 'ef_search', 321)")
    with closing(open_pgvector_store(settings)) as store:
        assert store.explain(VECTORS[0]).ef_search == DEFAULT_EF_SEARCH


@pytest.mark.parametrize("away", ["DROP TABLE vector_setting", "REVOKE ALL ON vector_setting FROM reader"])
def test_a_role_that_cannot_read_the_settings_queries_all_the_same(
    engine: sa.Engine, settings: Settings, away: str
) -> None:
    with closing(open_pgvector_store(settings)) as store:
        store.upsert([])
    execute(engine, "DROP ROLE IF EXISTS reader")
    execute(engine, "CREATE ROLE reader LOGIN")
    execute(engine, "GRANT SELECT ON rag_chunks TO reader")
    try:
        execute(engine, away)
        reading = sa.create_engine(engine.url.set(username="reader"))
        assert PgVectorStore(reading, RAG_CHUNKS, {"namespace": ""}).query(VECTORS[0]) == []
        reading.dispose()
    finally:
        execute(engine, "DROP OWNED BY reader")
        execute(engine, "DROP ROLE reader")


def test_the_settings_are_read_once(engine: sa.Engine) -> None:
    store = PgVectorStore(engine, RAG_CHUNKS, {"namespace": ""})
    with counted(engine, "SELECT name, value FROM vector_setting") as seen:
        for vector in VECTORS[:5]:
            store.query(vector)
    assert len(seen) == 1


def test_without_apply_nothing_is_stored(engine: sa.Engine, build: Build, ask: Callable[..., Result]) -> None:
    build(POOR_HNSW)
    result = ask("--recall", "0.9")
    assert result.exit_code == 0, result.output
    assert "is the cheapest tried that reaches 0.9" in result.output
    assert "note: stored vectors are easier to find" in result.stderr
    assert execute(engine, "SELECT FROM vector_setting") == []


def test_a_recall_that_nothing_reaches_is_no_success_and_is_not_stored(
    engine: sa.Engine, build: Build, ask: Callable[..., Result]
) -> None:
    build("USING hnsw (embedding vector_cosine_ops) WITH (m = 2, ef_construction = 4)")
    # Rows that the index does not hold are found by no setting.
    execute(engine, "UPDATE pg_index SET indisready = false WHERE indexrelid = 'poor'::regclass")
    engine.dispose()
    execute(
        engine,
        "INSERT INTO rag_chunks SELECT namespace, 'x' || chunk_id, content, metadata, now(), now(), embedding "
        "FROM rag_chunks WHERE chunk_id LIKE 'k1%'",
    )
    execute(engine, "UPDATE pg_index SET indisready = true WHERE indexrelid = 'poor'::regclass")
    result = ask("--recall", "1", "--apply")
    assert result.exit_code == 1, result.output
    assert "no ef_search reaches 1" in result.output
    assert execute(engine, "SELECT FROM vector_setting") == []


def test_where_there_is_no_index_or_no_row_it_says_what_to_do(engine: sa.Engine, ask: Callable[..., Result]) -> None:
    result = ask()
    assert result.exit_code == 2
    assert "run the backfill" in result.output
    execute(engine, "DROP INDEX idx_rag_chunks_embedding")
    result = ask()
    assert result.exit_code == 2
    assert "amprenta-vectors index build" in result.output


class Graded:
    """A store whose recall of 10 hits grows with its setting: 10 at 60 and more."""

    distance = "cosine"

    def __init__(self, value: int) -> None:
        self.value = value

    def query(self, *_: Any, exact: bool = False, **__: Any) -> list[Hit]:
        found = 10 if exact else min(10, self.value // 6)
        return [Hit(f"k{number}", 1.0 if number < found else 0.0) for number in range(10)]

    def close(self) -> None:
        pass


def test_each_trial_rules_out_half_of_what_is_left() -> None:
    opened: list[int] = []

    def open_store(value: int) -> Any:
        opened.append(value)
        return Graded(value)

    values = list(range(1, 129))
    found = tune(
        open_store, "ef_search", values, [Query(VECTORS[0])], top_k=10, target=0.95, clock=iter(range(99)).__next__
    )
    assert found.chosen is not None
    assert (found.chosen.value, found.chosen.recall, found.chosen.p50_ms) == (60, 1.0, 1000)
    assert len(found.trials) <= 8
    assert [trial.value for trial in found.trials] == sorted(set(opened[1:]))


def test_queries_that_find_nothing_measure_nothing() -> None:
    class Empty(Graded):
        def query(self, *_: Any, **__: Any) -> list[Hit]:
            return []

    with pytest.raises(ConfigError, match="find nothing"):
        tune(lambda value: Empty(value), "ef_search", [10], [Query(VECTORS[0])], top_k=10, target=0.9)  # type: ignore[arg-type,return-value]
