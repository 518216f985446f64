"""The pgvector store on a real table: one scope, k hits, whole rows, the caller's transaction."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import pytest
import sqlalchemy as sa
from databases import janitor
from store_pairs import Pair
from waiting import until

from amprenta_vectors.errors import (
    AmprentaError,
    ConfigError,
    DimensionMismatch,
    FilterError,
    FilterUnsupported,
    NotUpgraded,
    RowError,
    TimedOut,
)
from amprenta_vectors.reasons import Reason
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres
from amprenta_vectors.schema.registry import RAG_CHUNKS
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.pgvector.options import StoreOptions
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.pgvector.writing import Writing
from amprenta_vectors.stores.protocol import Hit, Record

DIMENSION = 8
ODD_TEXTS = [
    "it's",
    '"quoted"',
    "100% %s %(x)s :name ?",
    "back\\slash\\",
    "{braces},[brackets]",
    "NULL",
    "new\nline\ttab",
    "naïve ключ 🔑",
    " leading and trailing ",
    "x" * 512,
    "; DROP TABLE rag_chunks; --",
]

Random = np.random.Generator
Numbers = np.ndarray[Any, np.dtype[np.float32]]


@pytest.fixture
def random() -> Random:
    return np.random.default_rng(7)


class OpenStore(Protocol):
    def __call__(
        self, engine: sa.Engine, namespace: str = "a", table: VectorTable = RAG_CHUNKS, **options: Any
    ) -> PgVectorStore: ...


@pytest.fixture
def open_store(pair: Pair) -> OpenStore:
    """A function that opens the store on each pair of driver and mode, as if it did not await."""

    def opened(
        engine: sa.Engine, namespace: str = "a", table: VectorTable = RAG_CHUNKS, **options: Any
    ) -> PgVectorStore:
        scope = {"namespace": namespace} if table.scope else {}
        store: PgVectorStore = pair.store(engine, table, scope, StoreOptions(**options))
        return store

    return opened


def unit(random: Random, rows: int, dimension: int = DIMENSION) -> Numbers:
    vectors = random.normal(size=(rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def fill(engine: sa.Engine, vectors: Numbers, namespace: str = "a", every: int = 100) -> None:
    """Rows by SQL, with ``rare`` true in one of ``every``; the store's own insert is tested elsewhere."""
    with engine.begin() as connection:
        # Many times faster than with the index in place.
        index = connection.execute(
            sa.text("SELECT indexname, indexdef FROM pg_indexes WHERE indexdef LIKE '%hnsw%'")
        ).one()
        connection.execute(sa.text("DROP INDEX " + index.indexname))
        connection.execute(
            sa.text(
                "INSERT INTO rag_chunks (namespace, chunk_id, content, metadata, embedding) SELECT :namespace, "
                "'k' || lpad(i::text, 6, '0'), 'text ' || i, jsonb_build_object('n', i, 'rare', i % :every = 0), v "
                "FROM unnest(CAST(:vectors AS vector[])) WITH ORDINALITY AS given(v, i)"
            ),
            {"namespace": namespace, "vectors": [str(row.tolist()) for row in vectors], "every": every},
        )
        connection.execute(sa.text(index.indexdef))
        connection.execute(sa.text("ANALYZE rag_chunks"))


@pytest.fixture(scope="module")
def many(postgres_server: EmbeddedPostgres, upgraded_template: str) -> Iterator[sa.Engine]:
    """5,000 rows in scope ``a``, more than a scan of the index may go through, and 30 in ``small``; only to be read."""
    with janitor(postgres_server, "many", upgraded_template) as database:
        url = sa.make_url(postgres_server.url(database.dbname)).set(drivername="postgresql+psycopg2")
        # As 25,000 rows are more than pgvector's own 20,000.
        engine = sa.create_engine(url.update_query_dict({"options": "-c hnsw.max_scan_tuples=4000"}))
        random = np.random.default_rng(11)
        fill(engine, unit(random, 30), namespace="small")
        fill(engine, unit(random, 5000))
        yield engine
        engine.dispose()


def without_index(engine: sa.Engine) -> None:
    """For many writes that no search follows: the index takes most of their time."""
    with engine.begin() as connection:
        connection.execute(sa.text("DROP INDEX idx_rag_chunks_embedding"))


def bent_on_the_index(engine: sa.Engine, more: str = "") -> sa.Engine:
    """An engine whose planner uses the vector index wherever it can, as one may that knows no better."""
    options = f"-c enable_seqscan=off -c enable_bitmapscan=off -c enable_sort=off {more}"
    return sa.create_engine(engine.url.update_query_dict({"options": options}))


def test_a_record_comes_back_as_it_went_in(engine: sa.Engine, random: Random, open_store: OpenStore) -> None:
    store = open_store(engine)
    vectors = random.normal(size=(3, DIMENSION)).astype(np.float32) * np.float32(1e-20)
    metadata = {"genre": ["a", "b"], "year": 1990, "ratio": 0.1, "flag": True}
    records = [Record("x", vectors[0], "text", metadata), Record("y", vectors[1]), Record("z", vectors[2], "", {})]
    assert store.upsert(records) == 3
    found = store.fetch(["x", "y", "z", "absent"])
    assert sorted(found) == ["x", "y", "z"]
    for record in records:
        assert found[record.key].vector.tobytes() == record.vector.tobytes()
        assert (found[record.key].text, found[record.key].metadata) == (record.text, record.metadata)
    assert store.count() == 3
    store.delete(["x", "absent"])
    assert sorted(store.fetch(["x", "y", "z"])) == ["y", "z"]


def test_upsert_replaces_the_whole_row_and_the_last_of_a_key_counts(
    engine: sa.Engine, random: Random, open_store: OpenStore
) -> None:
    store = open_store(engine, model="m1")
    first, second, third = unit(random, 3)
    store.upsert([Record("k", first, "old", {"old": 1})])
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE rag_chunks SET updated_at = '2020-01-01'"))
    assert store.upsert([Record("k", second, "gone"), Record("k", third, None, {"new": 2})]) == 1
    assert store.count() == 1
    record = store.fetch(["k"])["k"]
    assert (record.text, record.metadata) == (None, {"new": 2})
    assert np.array_equal(record.vector, third)
    with engine.connect() as connection:
        row = connection.execute(sa.text("SELECT embedding_model, updated_at > '2021-01-01' FROM rag_chunks")).one()
    assert tuple(row) == ("m1", True)


def test_more_rows_than_one_statement_takes(engine: sa.Engine, random: Random, open_store: OpenStore) -> None:
    without_index(engine)
    store = open_store(engine)
    vectors = unit(random, 2500)
    assert store.upsert([Record(f"k{i}", row) for i, row in enumerate(vectors)]) == 2500
    assert store.count() == 2500
    assert store.upsert([]) == 0
    assert store.fetch([]) == {}
    store.delete([])


@pytest.mark.parametrize("odd", ODD_TEXTS)
def test_keys_texts_metadata_and_namespaces_may_hold_anything(
    engine: sa.Engine, random: Random, odd: str, open_store: OpenStore
) -> None:
    store = open_store(engine, namespace=odd)
    (vector,) = unit(random, 1)
    store.upsert([Record(odd, vector, odd, {odd: odd, "list": [odd]})])
    assert store.fetch([odd])[odd].metadata == {odd: odd, "list": [odd]}
    for asked in ({odd: odd}, {"list": odd}, {odd: {"$in": [odd, "other"]}}, {"text": odd}):
        assert [(hit.key, hit.text) for hit in store.query(vector, filter=asked)] == [(odd, odd)]
    assert store.scores(vector, [odd])[odd] == pytest.approx(1)
    store.delete([odd])
    assert store.count() == 0


@pytest.mark.parametrize("odd", ["nul\0", "\ud800"])
def test_what_postgresql_cannot_hold_is_absent_when_asked_for_and_refused_when_written(
    engine: sa.Engine, random: Random, odd: str, open_store: OpenStore
) -> None:
    store = open_store(engine)
    (vector,) = unit(random, 1)
    assert store.fetch([odd]) == {}
    store.delete([odd])
    assert store.query(vector, filter={odd: odd}) == []
    for record in (Record(odd, vector), Record("k", vector, odd), Record("k", vector, None, {"f": odd})):
        with pytest.raises(RowError):
            store.upsert([record])
    with pytest.raises(RowError, match="no JSON"):
        store.upsert([Record("k", vector, None, {"f": math.nan})])


def test_no_public_method_reads_or_writes_another_scope(
    engine: sa.Engine, random: Random, open_store: OpenStore, pair: Pair
) -> None:
    mine, theirs = open_store(engine, "mine"), open_store(engine, "theirs")
    vector, other = unit(random, 2)
    theirs.upsert([Record("shared", vector, "theirs", {"secret": 1}), Record("only", vector, "theirs", {"secret": 1})])
    before = rows_of(engine, "theirs")

    assert mine.query(vector, top_k=10) == []
    assert mine.query(vector, top_k=10, exact=True) == []
    for asked in ({"secret": 1}, {"$or": [{"secret": 1}, {"x": {"$ne": 0}}]}, {"x": {"$nin": []}}, {"text": "theirs"}):
        assert mine.query(vector, filter=asked) == []
    assert mine.fetch(["shared", "only"]) == {}
    assert mine.scores(vector, ["shared", "only"]) == {}
    assert mine.sample(10).shape == (0, DIMENSION)
    assert mine.count() == 0
    mine.delete(["shared", "only"])
    mine.upsert([Record("shared", other, "mine")])
    with pair.begun(engine) as ours:
        mine.upsert([Record("shared", other, "mine")], connection=ours.connection)
        mine.delete(["only"], connection=ours.connection)
    assert rows_of(engine, "theirs") == before

    assert [hit.text for hit in mine.query(vector)] == ["mine"]
    assert sorted(theirs.fetch(["shared", "only"])) == ["only", "shared"]
    mine.delete(["shared"])
    assert theirs.count() == 2


def rows_of(engine: sa.Engine, namespace: str) -> list[Any]:
    statement = sa.text("SELECT rag_chunks::text FROM rag_chunks WHERE namespace = :n ORDER BY chunk_id")
    with engine.connect() as connection:
        return list(connection.scalars(statement, {"n": namespace}))


@pytest.mark.parametrize("scope", [{}, {"namespace": "a", "tenant": "b"}, {"tenant": "b"}])
def test_a_missing_or_extra_scope_value_is_refused(engine: sa.Engine, scope: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="scope columns: namespace; got values for"):
        PgVectorStore(engine, RAG_CHUNKS, scope)


@pytest.mark.parametrize("planner", ["free", "bent on the index"])
def test_as_many_hits_as_exist_come_back_whatever_the_filter_leaves(
    many: sa.Engine, random: Random, planner: str, open_store: OpenStore
) -> None:
    querying = many if planner == "free" else bent_on_the_index(many, "-c hnsw.max_scan_tuples=4000")
    query = unit(random, 1)[0]
    store = open_store(querying, ef_search=10)
    for top_k in (1, 10, 50, 250, 1500):
        assert len(store.query(query, top_k=top_k)) == top_k
        rare = [hit.score for hit in store.query(query, top_k=top_k, filter={"rare": True})]
        assert len(rare) == min(top_k, 50)
        assert rare == sorted(rare, reverse=True)
        assert len(store.query(query, top_k=top_k, filter={"n": {"$lte": 3}})) == min(top_k, 3)
        assert len(store.query(query, top_k=top_k, filter={"absent": 1})) == 0
        assert len(open_store(querying, "small").query(query, top_k=top_k)) == min(top_k, 30)
    querying.dispose()


@pytest.mark.parametrize("pair", ["psycopg2"], indirect=True)
def test_the_index_is_used_and_its_hits_are_near_exact(many: sa.Engine, random: Random, open_store: OpenStore) -> None:
    # One connection, which tells the server of its scans before it asks how many there were.
    single = sa.create_engine(many.url, pool_size=1, max_overflow=0)

    def scans() -> int:
        with single.connect() as connection:
            connection.execute(sa.text("SELECT pg_stat_force_next_flush()"))
        with single.connect() as connection:
            statement = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'idx_rag_chunks_embedding'"
            return int(connection.scalar(sa.text(statement)) or 0)

    store = open_store(single)
    queries = unit(random, 20)
    before = scans()
    found = [{hit.key for hit in store.query(query)} for query in queries]
    assert scans() - before == len(queries)
    exact = [{hit.key for hit in store.query(query, exact=True)} for query in queries]
    assert sum(len(a & b) for a, b in zip(found, exact, strict=True)) >= 0.99 * 10 * len(queries)
    single.dispose()


def test_hits_are_sorted_and_scored_by_the_exact_distance(
    engine: sa.Engine, random: Random, open_store: OpenStore
) -> None:
    vectors = unit(random, 3000)
    fill(engine, vectors)
    query = random.normal(size=DIMENSION)
    hits = open_store(engine).query(query, top_k=100, filter={"n": {"$gt": 1000}})
    expected = np.sort(vectors[1000:] @ (query / np.linalg.norm(query)))[::-1][:100]
    assert [hit.score for hit in hits] == pytest.approx(expected.tolist(), abs=1e-5)
    best = hits[0]
    number = int(best.key[1:])
    assert best == Hit(best.key, best.score, f"text {number}", {"n": number, "rare": number % 100 == 0})


def test_hits_come_sorted_from_an_index_that_finds_them_in_another_order(
    engine: sa.Engine, random: Random, open_store: OpenStore
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE t (id text PRIMARY KEY, metadata jsonb, embedding vector(64))"))
        connection.execute(
            sa.text(
                "INSERT INTO t SELECT i::text, jsonb_build_object('n', i % 10), v "
                "FROM unnest(CAST(:vectors AS vector[])) WITH ORDINALITY AS given(v, i)"
            ),
            {"vectors": [str(row.tolist()) for row in unit(random, 4000, 64)]},
        )
        # As few edges as pgvector allows.
        connection.execute(
            sa.text("CREATE INDEX ON t USING hnsw (embedding vector_cosine_ops) WITH (m = 2, ef_construction = 4)")
        )
    table = VectorTable(name="t", table="t", key=("id",), dimension=64, metadata="metadata")
    bent = bent_on_the_index(engine)
    store = open_store(bent, table=table, ef_search=1)
    for query in unit(random, 50, 64):
        scores = [hit.score for hit in store.query(query, filter={"n": 3})]
        assert len(scores) == 10
        assert scores == sorted(scores, reverse=True)
    bent.dispose()


@pytest.mark.parametrize("storage", ["vector", "halfvec"])
@pytest.mark.parametrize(
    ("distance", "expected"),
    [("cosine", [0.6, 1.0]), ("ip", [6.0, 20.0]), ("l2", [73.0, 50.0])],
)
def test_scores_are_pinecones_for_every_metric_and_storage(
    engine: sa.Engine, storage: Any, distance: Any, expected: list[float], open_store: OpenStore
) -> None:
    table = VectorTable(
        name="t", table="t", key=("id",), dimension=2, embedding="v", storage=storage, distance=distance
    )
    with engine.begin() as connection:
        kind = "halfvec(2)" if storage == "halfvec" else "vector(2)"
        connection.execute(sa.text("CREATE TABLE t (id uuid PRIMARY KEY, v " + kind + ")"))
    store = open_store(engine, table=table)
    keys = ["00000000-0000-0000-0000-00000000000a", "00000000-0000-0000-0000-00000000000b"]
    query = [3.0, 4.0]
    stored = {"cosine": [[2, 0], [6, 8]], "ip": [[2, 0], [4, 2]], "l2": [[6, -4], [-2, -1]]}[distance]
    if distance == "l2":
        expected = [float((3 - 6) ** 2 + (4 + 4) ** 2), float((3 + 2) ** 2 + (4 + 1) ** 2)]
    store.upsert([Record(key, np.array(row, np.float32)) for key, row in zip(keys, stored, strict=True)])
    hits = {hit.key: hit.score for hit in store.query(query)}
    assert [hits[key] for key in keys] == pytest.approx(expected)
    assert [hit.key for hit in store.query(query)] == [keys[1], keys[0]]
    # A key of another spelling is the same row, under the name that it was asked for by.
    assert store.scores(query, [keys[0].upper()]) == {keys[0].upper(): pytest.approx(expected[0])}


def test_rows_without_a_vector_and_zero_vectors_under_cosine_are_no_hits(
    engine: sa.Engine, random: Random, open_store: OpenStore
) -> None:
    store = open_store(engine)
    (vector,) = unit(random, 1)
    store.upsert([Record("good", vector)])
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO rag_chunks (namespace, chunk_id, embedding) VALUES ('a', 'null', NULL), ('a', 'z', :z)"
            ),
            {"z": str([0] * DIMENSION)},
        )
    assert [hit.key for hit in store.query(vector, top_k=5)] == ["good"]
    assert [hit.key for hit in store.query(vector, top_k=5, exact=True)] == ["good"]
    assert sorted(store.fetch(["good", "null", "z"])) == ["good", "z"]
    assert store.count() == 2


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        ([1.0] * 7, Reason.DIMENSION),
        ([[1.0] * 8], Reason.DIMENSION),
        ("text", Reason.DIMENSION),
        ([math.nan] + [1.0] * 7, Reason.NOT_FINITE),
        ([math.inf] + [1.0] * 7, Reason.NOT_FINITE),
        ([1e300] + [1.0] * 7, Reason.NOT_FINITE),
        ([0.0] * 8, Reason.ZERO),
    ],
)
def test_a_vector_that_cannot_be_stored_is_refused_by_name_and_nothing_is_written(
    engine: sa.Engine, random: Random, vector: Any, reason: Reason, open_store: OpenStore
) -> None:
    store = open_store(engine)
    with pytest.raises(RowError) as caught:
        store.upsert([Record("good", unit(random, 1)[0]), Record("bad", vector)])
    assert (caught.value.key, caught.value.reason) == ("bad", reason)
    assert store.count() == 0


@pytest.mark.parametrize(
    ("vector", "error"),
    [
        ([1.0] * 7, DimensionMismatch),
        ([math.nan] * 8, ConfigError),
        ([-math.inf] * 8, ConfigError),
        ([0.0] * 8, ConfigError),
        ("text", ConfigError),
    ],
)
def test_a_query_vector_without_distances_is_refused(
    engine: sa.Engine, vector: Any, error: type[Exception], open_store: OpenStore
) -> None:
    with pytest.raises(error, match="query vector"):
        open_store(engine).query(vector)


@pytest.mark.parametrize("top_k", [0, -1, 10_001])
def test_a_top_k_out_of_range_is_refused(engine: sa.Engine, top_k: int, open_store: OpenStore) -> None:
    with pytest.raises(ConfigError, match="top_k"):
        open_store(engine).query([1.0] * DIMENSION, top_k=top_k)


def test_an_unknown_operator_is_refused_before_anything_is_asked(engine: sa.Engine, open_store: OpenStore) -> None:
    with pytest.raises(FilterError, match=r"\$regex"):
        open_store(engine).query([1.0] * DIMENSION, filter={"genre": {"$regex": "x"}})


@pytest.mark.parametrize("session", [False, True], ids=["connection", "session"])
def test_writes_join_the_callers_transaction_and_roll_back_with_it(
    engine: sa.Engine, random: Random, open_store: OpenStore, pair: Pair, session: bool
) -> None:
    store = open_store(engine)
    first, second = unit(random, 2)
    store.upsert([Record("kept", first)])
    with pair.begun(engine, session=session) as ours:
        store.upsert([Record("new", second)], connection=ours.connection)
        store.delete(["kept"], connection=ours.connection)
        assert ours.scalars("SELECT chunk_id FROM rag_chunks") == ["new"]
        assert sorted(store.fetch(["kept", "new"], connection=ours.connection)) == ["new"]
        assert sorted(store.fetch(["kept", "new"])) == ["kept"]
        ours.roll_back()
        for call in (
            lambda: store.fetch(["kept"], connection=ours.connection),
            lambda: store.delete(["kept"], connection=ours.connection),
        ):
            with pytest.raises(ConfigError, match="no transaction to join") as caught:
                call()
            assert "begin anew" in caught.value.hint
    assert sorted(store.fetch(["kept", "new"])) == ["kept"]
    with pair.begun(engine, session=session) as ours:
        store.upsert([Record("new", second)], connection=ours.connection)
    assert sorted(store.fetch(["kept", "new"])) == ["kept", "new"]


def test_threads_that_write_the_same_keys_in_any_order_do_not_deadlock(
    engine: sa.Engine, random: Random, open_store: OpenStore
) -> None:
    without_index(engine)
    store = open_store(engine)
    records = [Record(f"k{i}", row) for i, row in enumerate(unit(random, 500))]
    errors: list[Exception] = []

    def write(order: Callable[[list[Record]], Any]) -> None:
        try:
            for _ in range(5):
                store.upsert(list(order(records)))
        except AmprentaError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(order,)) for order in (list, reversed) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert store.count() == 500


def waiting_for_a_lock(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        counted = sa.text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return int(connection.execute(counted).scalar_one())


@pytest.mark.parametrize("pair", ["psycopg2", "psycopg"], indirect=True)
def test_a_row_that_came_in_between_is_not_locked_out_of_order(
    engine: sa.Engine, random: Random, monkeypatch: pytest.MonkeyPatch, open_store: OpenStore
) -> None:
    first, second = open_store(engine), open_store(engine)
    low, high = [Record(key, vector) for key, vector in zip("az", unit(random, 2), strict=True)]
    first.upsert([high])
    pool, others = ThreadPoolExecutor(1), list[Future[int]]()
    insert_absent = Writing._insert_absent

    def slow(self: Writing, *arguments: Any, **options: Any) -> Any:
        """Another store inserts the lower key, and then a third writer has locked it and waits for the higher one."""
        if not others:
            with engine.begin() as connection:
                connection.execute(sa.text("INSERT INTO rag_chunks (namespace, chunk_id) VALUES ('a', 'a')"))
            others.append(pool.submit(second.upsert, [low, high]))
            until(lambda: waiting_for_a_lock(engine) == 1)
        return insert_absent(self, *arguments, **options)

    monkeypatch.setattr(Writing, "_insert_absent", slow)
    assert first.upsert([low, high]) == 2
    assert others[0].result() == 2
    pool.shutdown()
    assert set(first.fetch(["a", "z"])) == {"a", "z"}
    assert first.count() == 2


def test_a_time_out_is_an_error_not_a_short_answer(many: sa.Engine, random: Random, open_store: OpenStore) -> None:
    hurried = sa.create_engine(many.url.update_query_dict({"options": "-c statement_timeout=2ms"}))
    # Where it comes between two messages of one transaction, PostgreSQL speaks of a user's request.
    with pytest.raises(TimedOut):
        open_store(hurried).query(unit(random, 1)[0], top_k=10_000, exact=True)
    hurried.dispose()


def test_settings_of_a_search_do_not_outlive_it(
    engine: sa.Engine, random: Random, open_store: OpenStore, pair: Pair
) -> None:
    fill(engine, unit(random, 10))
    single = sa.create_engine(engine.url, pool_size=1, max_overflow=0)
    open_store(single, ef_search=77).query(unit(random, 1)[0])
    with pair.begun(single) as ours:
        assert ours.scalars("SHOW hnsw.ef_search") == ["40"]
        assert ours.scalars("SHOW transaction_isolation") == ["read committed"]
        assert ours.scalars("SHOW transaction_read_only") == ["off"]
    single.dispose()


def test_an_adopted_table_without_the_optional_columns_is_one_scope(
    engine: sa.Engine, random: Random, open_store: OpenStore
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text('CREATE SCHEMA "o\'dd %s"'))
        connection.execute(
            sa.text('CREATE TABLE "o\'dd %s"."rag chunks" (chunk_id varchar(5) UNIQUE, embedding vector(8))')
        )
    table = RAG_CHUNKS.with_columns(schema="o'dd %s", table="rag chunks", holds="any")
    store = open_store(engine, "any", table=table, model="m")
    (vector,) = unit(random, 1)
    assert store.upsert([Record("k", vector)]) == 1
    assert store.query(vector) == [Hit("k", pytest.approx(1), None, {})]  # type: ignore[arg-type]
    with pytest.raises(RowError, match="no text column"):
        store.upsert([Record("k", vector, "text")])
    with pytest.raises(RowError, match="no metadata column"):
        store.upsert([Record("k", vector, None, {"a": 1})])
    with pytest.raises(FilterUnsupported, match="no metadata column"):
        store.query(vector, filter={"a": 1})
    # varchar(5) must not make another row of a longer key.
    store.upsert([Record("abcde", vector)])
    assert store.fetch(["abcdef"]) == {}
    with pytest.raises(AmprentaError, match="too long"):
        store.upsert([Record("abcdef", vector)])


def test_what_the_table_refuses_is_said_alike_on_every_driver_and_quotes_no_row(
    engine: sa.Engine, random: Random, open_store: OpenStore
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE rag_chunks ADD CONSTRAINT short CHECK (length(content) < 9)"))
    (vector,) = unit(random, 1)
    with pytest.raises(AmprentaError) as caught:
        open_store(engine).upsert([Record("k", vector, "a secret passage")])
    expected = 'writing rag_chunks: new row for relation "rag_chunks" violates check constraint "short"'
    assert (type(caught.value), caught.value.message) == (AmprentaError, expected)


def test_a_json_column_serves_as_metadata(engine: sa.Engine, random: Random, open_store: OpenStore) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE t (id bigint PRIMARY KEY, meta json, embedding vector(8))"))
    table = VectorTable(name="t", table="t", key=("id",), dimension=8, metadata="meta")
    store = open_store(engine, table=table)
    (vector,) = unit(random, 1)
    store.upsert([Record("12", vector, None, {"year": 1990})])
    assert [hit.key for hit in store.query(vector, filter={"year": {"$gte": 1990}})] == ["12"]


def test_a_table_that_is_not_upgraded_is_named_on_first_use(engine: sa.Engine, open_store: OpenStore) -> None:
    store = open_store(engine, table=RAG_CHUNKS.with_columns(table="nowhere"))
    with pytest.raises(NotUpgraded, match="nowhere does not exist"):
        store.count()
    with pytest.raises(ConfigError, match="a key of one column"):
        open_store(engine, table=RAG_CHUNKS.with_columns(key=("a", "b")))
    with pytest.raises(ConfigError, match="ef_search"):
        open_store(engine, ef_search=1001)


def test_a_value_beyond_halfvec_is_refused_by_name(engine: sa.Engine, open_store: OpenStore) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE t (id text PRIMARY KEY, embedding halfvec(2))"))
    store = open_store(engine, table=VectorTable(name="t", table="t", key=("id",), dimension=2))
    with pytest.raises(RowError, match="range of halfvec"):
        store.upsert([Record("good", np.ones(2, np.float32)), Record("large", np.array([1e5, 1], np.float32))])


def test_a_sample_is_the_same_for_the_same_seed(engine: sa.Engine, random: Random, open_store: OpenStore) -> None:
    fill(engine, unit(random, 100))
    store = open_store(engine)
    assert np.array_equal(store.sample(10, seed=1), store.sample(10, seed=1))
    assert not np.array_equal(store.sample(10, seed=1), store.sample(10, seed=2))
    assert store.sample(1000).shape == (100, DIMENSION)


def test_a_document_survives_the_database_as_json(engine: sa.Engine, random: Random, open_store: OpenStore) -> None:
    store = open_store(engine)
    (vector,) = unit(random, 1)
    document = {"big": 2**63, "tiny": 5e-324, "nested": {"a": [1, None, "x"]}, "empty": "", "é": "é"}
    store.upsert([Record("k", vector, None, document)])
    assert json.dumps(store.fetch(["k"])["k"].metadata, sort_keys=True) == json.dumps(document, sort_keys=True)
