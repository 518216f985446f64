"""Every kind of vector index, on real embeddings: found in the catalogue, searched by what it holds, k hits, recall."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from click.testing import CliRunner
from databases import janitor
from numpy.typing import NDArray

from amprenta_vectors.backfill.database.index_plan import Shape, plan_build
from amprenta_vectors.cli import main
from amprenta_vectors.ddl import CreateVectorIndexOp
from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder
from amprenta_vectors.sandbox.corpus import read_corpus
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.pgvector import opened
from amprenta_vectors.stores.pgvector.options import StoreOptions
from amprenta_vectors.stores.pgvector.store import PgVectorStore

ROWS, OTHERS, QUERIES, TOP_K = 1000, 250, 20, 10
RECALL = 0.97
"""Of few rows, by the defaults; of more, benchmarks/storage.py tells."""
FILTERS: dict[str, int] = {"half": 2, "twentieth": 20, "rare": 200}
BENT = "-c enable_seqscan=off -c enable_bitmapscan=off -c enable_sort=off -c enable_indexonlyscan=off"
"""A planner that uses the vector index wherever it can."""

DRIVER = "postgresql+psycopg2"

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Kind:
    """A column and its index; ``joined`` texts make a vector; ``held`` is what the index turns out to hold."""

    column: str
    method: str
    storage: str | None
    held: str
    joined: int = 1

    def __str__(self) -> str:
        return f"{self.column} {256 * self.joined}, {self.method} of {self.held}"


KINDS = (
    Kind("vector", "hnsw", None, "vector"),
    Kind("halfvec", "hnsw", None, "halfvec"),
    Kind("vector", "hnsw", "halfvec", "halfvec"),
    Kind("vector", "hnsw", "bit", "bit"),
    Kind("halfvec", "hnsw", "bit", "bit"),
    Kind("vector", "ivfflat", None, "vector"),
    Kind("vector", "ivfflat", "halfvec", "halfvec"),
    Kind("vector", "hnsw", None, "halfvec", 10),
    Kind("vector", "hnsw", None, "bit", 20),
)


@pytest.fixture(scope="module")
def texts() -> Vectors:
    """Embeddings of the texts of Python's library, those of the rows and then those of the queries."""
    chunks = read_corpus(ROWS + OTHERS + QUERIES + 20)
    return WordLlamaEmbedder().embed([chunk.text for chunk in chunks])


@dataclass(frozen=True)
class Filled:
    """A table with one kind of index; ``rows`` are those of scope ``a``, keyed by their number, ``queries`` others."""

    engine: sa.Engine
    table: VectorTable
    rows: Vectors
    queries: Vectors
    kind: Kind

    def open_store(self, tenant: str = "a", **options: Any) -> PgVectorStore:
        return PgVectorStore(self.engine, self.table, {"tenant": tenant}, StoreOptions(**options))

    def nearness(self, query: Vectors) -> NDArray[np.float64]:
        """The cosine of every row and the query."""
        units = self.rows / np.linalg.norm(self.rows, axis=1, keepdims=True)
        return (units @ (query / np.linalg.norm(query))).astype(np.float64)


@pytest.fixture(scope="module", params=KINDS, ids=str)
def filled(
    request: pytest.FixtureRequest, postgres_server: EmbeddedPostgres, upgraded_template: str, texts: Vectors
) -> Iterator[Filled]:
    """A table with that kind of index, which is built once and only read."""
    with janitor(postgres_server, "kinds", upgraded_template) as database:
        engine = sa.create_engine(sa.make_url(postgres_server.url(database.dbname)).set(drivername=DRIVER))
        made = fill(engine, texts, request.param)
        engine.dispose()
        yield made
        made.engine.dispose()


def fill(engine: sa.Engine, texts: Vectors, kind: Kind) -> Filled:
    count = (ROWS + OTHERS) // (1 if kind.joined == 1 else 6)
    last = len(texts) - kind.joined + 1
    vectors = np.concatenate([texts[first : last + first] for first in range(kind.joined)], axis=1)
    rows, queries = vectors[:count], vectors[-QUERIES:]
    own = count * ROWS // (ROWS + OTHERS)
    table = VectorTable(
        "kinds", "kinds", ("id",), rows.shape[1], scope=("tenant",), metadata="metadata", storage=kind.column
    )
    make(engine, table, rows, own)
    build(engine, table, kind)
    bent = sa.create_engine(engine.url, connect_args={"options": BENT})
    return Filled(bent, table, rows[:own], queries, kind)


def make(engine: sa.Engine, table: VectorTable, rows: Vectors, own: int) -> None:
    """The first ``own`` rows in scope ``a``, the others in ``b``."""
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"CREATE TABLE kinds (tenant text, id text, metadata jsonb, embedding {table.storage}({table.dimension}), "
            "PRIMARY KEY (tenant, id))"
        )
        values = [
            {
                "tenant": "a" if number < own else "b",
                "id": str(number),
                "vector": str(row.tolist()),
                "metadata": json.dumps({name: number % n == 0 for name, n in FILTERS.items()}),
            }
            for number, row in enumerate(rows)
        ]
        insert = "INSERT INTO kinds VALUES (:tenant, :id, CAST(:metadata AS jsonb), CAST(:vector AS {}))"
        connection.execute(sa.text(insert.format(table.storage)), values)
        connection.exec_driver_sql("ANALYZE kinds")


def build(engine: sa.Engine, table: VectorTable, kind: Kind, name: str = "ann") -> None:
    """By the operation that revisions use."""
    operation = CreateVectorIndexOp(
        name,
        "kinds",
        "embedding",
        method=kind.method,  # type: ignore[arg-type]
        storage=kind.storage,  # type: ignore[arg-type]
        options={"lists": 8} if kind.method == "ivfflat" else {},
    )
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"transactional_ddl": True})
        with context.begin_transaction(_per_migration=False):
            Operations(context).invoke(operation)


def test_the_store_finds_the_index_uses_it_and_finds_enough_of_what_is_nearest(filled: Filled) -> None:
    store = filled.open_store()
    plan = store.explain(filled.queries[0], top_k=TOP_K)
    assert (plan.index, plan.method, plan.storage) == ("ann", filled.kind.method, filled.kind.held)
    assert (plan.ef_search is None, plan.probes is None) == (plan.method == "ivfflat", plan.method == "hnsw")
    assert plan.candidates == TOP_K * (100 if filled.kind.held == "bit" else 4)
    for name in (None, *FILTERS):
        passing = np.arange(len(filled.rows)) % FILTERS.get(name or "", 1) == 0
        found = wanted = 0
        for query in filled.queries:
            nearness = filled.nearness(query)
            hits = store.query(query, top_k=TOP_K, filter={name: True} if name else None)
            expected = min(TOP_K, int(passing.sum()))
            assert len({hit.key for hit in hits}) == len(hits) == expected
            assert all(passing[int(hit.key)] for hit in hits)
            # Candidates are ranked by the distance itself, whatever the index holds.
            assert [hit.score for hit in hits] == pytest.approx([nearness[int(hit.key)] for hit in hits], abs=2e-3)
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
            last = np.sort(nearness[passing])[-expected]
            found += sum(nearness[int(hit.key)] >= last - 1e-6 for hit in hits)
            wanted += expected
        assert found / wanted >= RECALL, name


def test_every_number_of_hits_comes_and_no_row_of_another_scope(filled: Filled) -> None:
    for tenant in "ab":
        store = filled.open_store(tenant, oversampling=1, ef_search=10, probes=1)
        own = {str(number) for number in range(len(filled.rows))}
        present = store.count()
        for top_k in (1, 100, 10_000):
            keys = {hit.key for hit in store.query(filled.queries[0], top_k=top_k)}
            assert len(keys) == min(top_k, present)
            assert keys <= own if tenant == "a" else not keys & own


def test_what_a_build_takes_is_known_for_each_kind(filled: Filled) -> None:
    with filled.engine.connect() as connection:
        definition = connection.scalar(sa.text("SELECT pg_get_indexdef('ann'::regclass)"))
        size = connection.scalar(sa.text("SELECT pg_relation_size('ann'::regclass)"))
        shape = Shape.of(str(definition))
        plan = plan_build(connection, filled.table, "ann", shape)
    assert (shape.storage, plan.method) == (filled.kind.held, filled.kind.method)
    assert plan.disk_bytes == pytest.approx(size, rel=0.3, abs=100_000)


@pytest.fixture
def plain(engine: sa.Engine, texts: Vectors) -> Filled:
    """Rows without an index."""
    table = VectorTable("kinds", "kinds", ("id",), 256, scope=("tenant",), metadata="metadata")
    make(engine, table, texts[:500], 400)
    return Filled(
        sa.create_engine(engine.url, connect_args={"options": BENT}), table, texts[:400], texts[-9:], KINDS[0]
    )


def test_an_open_store_takes_the_index_that_was_built_last_and_what_is_left_when_that_goes(
    engine: sa.Engine, plain: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, query = plain.open_store(), plain.queries[0]
    assert store.explain(query).index is None
    build(engine, plain.table, KINDS[0], "whole")
    # That of the column itself needs no look.
    assert store.explain(query).index == "whole"
    build(engine, plain.table, KINDS[3], "signs")
    assert store.explain(query).index == "whole"
    monkeypatch.setattr(opened, "LOOK_SECONDS", 0.0)
    assert (store.explain(query).index, store.explain(query).storage) == ("signs", "bit")
    with engine.begin() as connection:
        connection.execute(sa.text("DROP INDEX signs"))
    assert (store.explain(query).index, store.explain(query).storage) == ("whole", "vector")
    plain.engine.dispose()


def test_an_invalid_index_of_signs_is_not_used_and_is_rebuilt(engine: sa.Engine, plain: Filled) -> None:
    build(engine, plain.table, KINDS[3])
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ann'::regclass"))
    assert plain.open_store().explain(plain.queries[0]).index is None
    build(engine, plain.table, KINDS[3])
    assert plain.open_store().explain(plain.queries[0]).index == "ann"
    plain.engine.dispose()


def test_zero_vectors_that_an_index_of_signs_holds_are_no_hits(engine: sa.Engine, plain: Filled) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE kinds SET embedding = array_fill(0, ARRAY[256])::vector WHERE id::int % 2 = 0")
        )
    build(engine, plain.table, KINDS[3])
    hits = plain.open_store().query(plain.queries[0], top_k=300)
    assert len(hits) == 200
    assert all(int(hit.key) % 2 for hit in hits)
    plain.engine.dispose()


@pytest.mark.parametrize(
    ("options", "definition"),
    [
        (("--storage", "bit"), "USING hnsw (((binary_quantize(embedding))::bit(8)) bit_hamming_ops)"),
        (("--storage", "halfvec"), "USING hnsw (((embedding)::halfvec(8)) halfvec_cosine_ops)"),
        (
            ("--method", "ivfflat", "--storage", "halfvec"),
            "USING ivfflat (((embedding)::halfvec(8)) halfvec_cosine_ops)",
        ),
    ],
)
def test_index_build_takes_the_storage_and_a_load_that_defers_it_builds_it_again(
    engine: sa.Engine, upgraded_url: str, options: tuple[str, ...], definition: str
) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, ["index", *arguments], env={"DATABASE_URL": upgraded_url})
        assert result.exit_code == 0, result.output
        return result.output

    def definitions() -> list[str]:
        with engine.connect() as connection:
            found = connection.scalars(sa.text("SELECT indexdef FROM pg_indexes WHERE indexdef ~ 'hnsw|ivfflat'"))
            return list(found)

    with engine.begin() as connection:
        connection.execute(sa.text("DROP INDEX idx_rag_chunks_embedding"))
    run("build", *options)
    (built,) = definitions()
    assert definition in built
    run("drop")
    assert definitions() == []
    run("build")
    assert definitions() == [built]
