"""A query of the pgvector store: one message, no trace in the session, k hits whatever is left, and a plan in words."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import psycopg2.extensions
import pytest
import sqlalchemy as sa
from databases import janitor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from poolers import pooled

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.errors import ConfigError, FilterError, TimedOut, TransientError
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres
from amprenta_vectors.schema.registry import RAG_CHUNKS
from amprenta_vectors.stores.daemons import DaemonPool
from amprenta_vectors.stores.factory import open_pgvector_store
from amprenta_vectors.stores.pgvector.options import StoreOptions
from amprenta_vectors.stores.pgvector.search import Searcher
from amprenta_vectors.stores.pgvector.store import PgVectorStore

DIMENSION = 8
ROWS = 4000
QUERY = np.arange(1, DIMENSION + 1, dtype=np.float32)
INDEX = "idx_rag_chunks_embedding"
SETTINGS = ("hnsw.ef_search", "hnsw.iterative_scan", "statement_timeout", "transaction_isolation")
BENT = "-c enable_seqscan=off -c enable_bitmapscan=off -c enable_sort=off"
"""A planner that uses the vector index wherever it can."""
OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
Sent = list[str]


@pytest.fixture(scope="module")
def rows_template(postgres_server: EmbeddedPostgres, upgraded_template: str) -> Iterator[str]:
    """`ROWS` rows in scope ``a`` and a few in ``b``; every tenth has no vector, every tenth a zero vector."""
    with janitor(postgres_server, "rows_template", upgraded_template, as_template=True) as template:
        engine = sa.create_engine(driven(postgres_server.url(template.dbname)))
        fill(engine, "a", ROWS)
        fill(engine, "b", 40)
        engine.dispose()
        yield template.dbname


@pytest.fixture
def upgraded_url(postgres_server: EmbeddedPostgres, rows_template: str) -> Iterator[str]:
    """The URL of a database with those rows, for this test alone."""
    with janitor(postgres_server, "rows", rows_template) as database:
        yield postgres_server.url(database.dbname)


@pytest.fixture
def rows(engine: sa.Engine) -> sa.Engine:
    """An engine on the rows of ``rows_template``."""
    return engine


def fill(engine: sa.Engine, namespace: str, rows: int) -> None:
    random = np.random.default_rng(7)
    vectors: list[str | None] = [str(row.tolist()) for row in random.normal(size=(rows, DIMENSION))]
    for i in range(rows):
        if i % 10 == 8:
            vectors[i] = None
        elif i % 10 == 9:
            vectors[i] = str([0] * DIMENSION)
    with engine.begin() as connection:
        definition = connection.scalar(sa.text("SELECT indexdef FROM pg_indexes WHERE indexname = :i"), {"i": INDEX})
        connection.execute(sa.text("DROP INDEX " + INDEX))
        connection.execute(
            sa.text(
                "INSERT INTO rag_chunks (namespace, chunk_id, metadata, embedding) SELECT :namespace, "
                "'k' || lpad((i - 1)::text, 6, '0'), jsonb_build_object('n', i - 1, 'tag', 't' || (i - 1) % 500), v "
                "FROM unnest(CAST(:vectors AS vector[])) WITH ORDINALITY AS given(v, i)"
            ),
            {"namespace": namespace, "vectors": vectors},
        )
        connection.execute(sa.text(str(definition)))
        connection.execute(sa.text("ANALYZE rag_chunks"))


def driven(url: str) -> sa.URL:
    return sa.make_url(url).set(drivername="postgresql+psycopg2")


def open_store(engine: sa.Engine, namespace: str = "a", **options: Any) -> PgVectorStore:
    return PgVectorStore(engine, RAG_CHUNKS, {"namespace": namespace}, StoreOptions(**options))


@pytest.fixture
def sent(upgraded_url: str) -> Iterator[tuple[sa.Engine, Sent]]:
    """An engine, and every message that its connections send."""
    messages: Sent = []

    class Cursor(psycopg2.extensions.cursor):
        def execute(self, query: Any, vars: Any = None) -> None:
            messages.append(str(query))
            super().execute(query, vars)

    engine = sa.create_engine(driven(upgraded_url), connect_args={"cursor_factory": Cursor})
    yield engine, messages
    engine.dispose()


def test_a_query_is_one_message_to_the_server_and_leaves_no_transaction_open(
    rows: sa.Engine, sent: tuple[sa.Engine, Sent]
) -> None:
    engine, messages = sent
    store = open_store(engine, query_timeout_seconds=5)
    store.query(QUERY)
    messages.clear()
    assert len(store.query(QUERY)) == 10
    assert len(messages) == 1
    with rows.connect() as connection:
        assert set(connection.scalars(sa.text("SELECT state " + OTHERS))) == {"idle"}


def test_a_query_after_a_snapshot_sends_nothing_beside_its_message(rows: sa.Engine, upgraded_url: str) -> None:
    """Neither before it nor after it, where only the server sees what the driver sends by itself."""
    engine = sa.create_engine(driven(upgraded_url), pool_size=1, max_overflow=0)
    store = open_store(engine)
    for _ in range(2):
        store.count()
        store.query(QUERY)
        with rows.connect() as connection:
            (last,) = connection.scalars(sa.text("SELECT query " + OTHERS + " AND query <> ''"))
        assert "hnsw.ef_search" in last
    engine.dispose()


def test_filters_that_differ_in_their_values_are_compiled_once(
    rows: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    compile_one = sa.Select.compile

    def counting(self: Any, *arguments: Any, **options: Any) -> Any:
        compiled.append(self)
        return compile_one(self, *arguments, **options)

    store = open_store(rows)
    store.query(QUERY)
    monkeypatch.setattr(sa.Select, "compile", counting)
    for number in (7, 3, 107):
        asked = {"tag": f"t{number}", "n": {"$gte": number}}
        hits = store.query(QUERY, filter=asked, top_k=5)
        assert {hit.metadata["tag"] for hit in hits} == {f"t{number}"}
        assert min(hit.metadata["n"] for hit in hits) >= number
        assert store.query(QUERY, filter=asked, top_k=5, exact=True) == hits
    # With the index and without.
    assert len(compiled) == 2


def test_a_short_answer_is_repeated_in_one_more_message(rows: sa.Engine, sent: tuple[sa.Engine, Sent]) -> None:
    engine, messages = sent
    store = open_store(engine)
    store.query(QUERY)
    messages.clear()
    assert len(store.query(QUERY, filter={"n": {"$lt": 3}})) == 3
    assert len(messages) == 2


def test_behind_a_pooler_no_setting_of_a_search_reaches_the_next_client(rows: sa.Engine, upgraded_url: str) -> None:
    with pooled(upgraded_url, pool_size=1) as url:
        stores = [
            open_store(sa.create_engine(driven(url)), ef_search=ef_search, query_timeout_seconds=timeout)
            for ef_search, timeout in ((77, 7.0), (333, None))
        ]
        other = sa.create_engine(driven(url))
        for _ in range(3):
            for store in stores:
                assert len(store.query(QUERY)) == 10
                assert len(store.query(QUERY, filter={"tag": "t7"}, top_k=50)) == 8
                with other.connect() as connection:
                    shown = [connection.scalar(sa.text("SHOW " + name)) for name in SETTINGS]
                assert shown == ["40", "off", "0", "read committed"]
        for engine in (other, *(store._engine for store in stores)):
            engine.dispose()


def test_a_search_whose_connection_was_lost_meanwhile_is_asked_again_once(rows: sa.Engine, upgraded_url: str) -> None:
    store = open_pgvector_store(Settings.load(database_url=upgraded_url, namespace="a"))
    expected = store.query(QUERY)
    end_sessions(rows)
    assert store.query(QUERY) == expected
    store.close()


def test_a_connection_that_waited_is_tried_before_it_is_used_again(rows: sa.Engine, upgraded_url: str) -> None:
    engine = create_engine(Settings.load(database_url=upgraded_url), ping_after_seconds=0.05)
    store = open_store(engine)
    count = store.count()
    end_sessions(rows)
    time.sleep(0.1)
    assert store.count() == count
    engine.dispose()
    patient = create_engine(Settings.load(database_url=upgraded_url), ping_after_seconds=60)
    store = open_store(patient)
    store.count()
    end_sessions(rows)
    with pytest.raises(TransientError):
        store.count()
    patient.dispose()


def end_sessions(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT pg_terminate_backend(pid, 5000) " + OTHERS))


def test_all_connections_in_use_is_an_error_that_names_the_setting(rows: sa.Engine) -> None:
    engine = sa.create_engine(rows.url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    store = open_store(engine)
    store.query(QUERY)
    with engine.connect(), pytest.raises(TransientError, match="in use") as caught:
        store.query(QUERY)
    assert "AMPRENTA_POOL_SIZE" in caught.value.hint
    engine.dispose()


def test_a_query_past_its_time_is_an_error_not_a_short_answer(rows: sa.Engine, upgraded_url: str) -> None:
    store = open_store(rows, query_timeout_seconds=0.001)
    with pytest.raises(TimedOut, match="statement timeout") as caught:
        store.query(QUERY, top_k=10_000, exact=True)
    assert "AMPRENTA_QUERY_TIMEOUT_SECONDS" in caught.value.hint
    assert len(open_store(rows, query_timeout_seconds=60).query(QUERY)) == 10
    hurried = Settings.load(database_url=upgraded_url, namespace="a", query_timeout_seconds=0.001)
    from_settings = open_pgvector_store(hurried)
    with pytest.raises(TimedOut):
        from_settings.query(QUERY, top_k=10_000, exact=True)
    from_settings.close()


def test_the_first_query_does_not_wait_for_an_index_that_is_rebuilt_longer_than_its_time(rows: sa.Engine) -> None:
    store = open_store(rows, query_timeout_seconds=1.0)
    with rows.begin() as other:
        other.execute(sa.text(f"REINDEX INDEX {INDEX}"))
        with pytest.raises(TimedOut, match="statement timeout"):
            DaemonPool(1, "waiting").submit(store.query, QUERY).result(60)
    assert len(store.query(QUERY)) == 10


def test_a_query_that_is_repeated_has_for_it_what_is_left_of_its_time(
    rows: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []
    ask = Searcher._ask

    def slow(self: Searcher, settings: list[str], *message: Any) -> Any:
        limits.append(int(settings[-1].removeprefix("SET LOCAL statement_timeout = ")))
        found = ask(self, settings, *message)
        time.sleep(0.05)
        return found

    monkeypatch.setattr(Searcher, "_ask", slow)
    assert len(open_store(rows, "b", query_timeout_seconds=60).query(QUERY, top_k=100)) < 100
    first, second = limits
    assert first == 60_000
    assert second <= first - 50


def test_true_and_one_are_two_filters_whichever_was_asked_first(engine: sa.Engine) -> None:
    fill(engine, "c", 3)
    with engine.begin() as connection:
        for key, value in (("k000000", "1"), ("k000001", "true"), ("k000002", '"1"')):
            statement = (
                "UPDATE rag_chunks SET metadata = CAST(:metadata AS jsonb) WHERE namespace = 'c' AND chunk_id = :key"
            )
            connection.execute(sa.text(statement), {"metadata": '{"f": ' + value + "}", "key": key})
    store = open_store(engine, "c")
    for _ in range(2):
        found = [[hit.key for hit in store.query(QUERY, filter={"f": value})] for value in (True, 1, 1.0, "1")]
        assert found == [["k000001"], ["k000000"], ["k000000"], ["k000002"]]


def is_hit(number: int) -> bool:
    return number % 10 < 8


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    matching=st.sampled_from([0, 1, 3, 30, 300, 2000, ROWS]),
    top_k=st.integers(1, 40) | st.integers(1, 10_000),
    ef_search=st.integers(1, 50) | st.integers(1, 1000),
    namespace=st.sampled_from("aab"),
    max_scan_tuples=st.sampled_from([1, 100, 20_000]),
    bent=st.booleans(),
)
def test_as_many_hits_as_match_come_back_whatever_is_asked(
    rows: sa.Engine, matching: int, top_k: int, ef_search: int, namespace: str, max_scan_tuples: int, bent: bool
) -> None:
    options = f"{BENT if bent else ''} -c hnsw.max_scan_tuples={max_scan_tuples}"
    present = 40 if namespace == "b" else ROWS
    wanted = {f"k{number:06d}" for number in range(min(matching, present)) if is_hit(number)}
    with ExitStack() as ending:
        engine = sa.create_engine(rows.url, connect_args={"options": options})
        # An example that fails is tried in hundreds of variations, which are not to use up the server's connections.
        ending.callback(engine.dispose)
        store = open_store(engine, namespace, ef_search=ef_search)
        hits = store.query(QUERY, top_k=top_k, filter={"n": {"$lt": matching}})
        assert len({hit.key for hit in hits}) == len(hits) == min(top_k, len(wanted))
        assert {hit.key for hit in hits} <= wanted
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert store.explain(QUERY, top_k=top_k, filter={"n": {"$lt": matching}}).rows_returned == len(hits)


def test_explain_names_the_index_that_a_query_takes_and_its_settings(rows: sa.Engine) -> None:
    plan = open_store(rows, ef_search=50).explain(QUERY)
    assert (plan.index, plan.repeated, plan.rows_returned) == (INDEX, False, 10)
    assert (plan.ef_search, plan.iterative_scan) == (50, "relaxed_order")
    # Of all rows in the scope, nine tenths have a vector.
    assert plan.rows_estimated == pytest.approx(0.9 * ROWS, rel=0.1)
    assert f"index {INDEX} costs less than reading about" in plan.why
    assert open_store(rows, ef_search=50).explain(QUERY, top_k=120).ef_search == 120
    bent = sa.create_engine(rows.url, connect_args={"options": BENT})
    assert open_store(bent).explain(QUERY, top_k=1500).ef_search == 1000
    bent.dispose()


def test_explain_says_that_few_rows_are_read_one_by_one(rows: sa.Engine) -> None:
    plan = open_store(rows, "b").explain(QUERY)
    assert (plan.index, plan.ef_search, plan.iterative_scan, plan.repeated) == (None, None, None, False)
    assert plan.rows_estimated < 100
    assert "costs less than a vector index" in plan.why


def test_explain_says_that_an_answer_cut_short_was_repeated(rows: sa.Engine) -> None:
    bent = sa.create_engine(rows.url, connect_args={"options": BENT + " -c hnsw.max_scan_tuples=1"})
    plan = open_store(bent, ef_search=1).explain(QUERY, filter={"n": {"$gte": 3000, "$lt": 3010}}, top_k=5)
    assert (plan.index, plan.repeated, plan.rows_returned) == (INDEX, True, 5)
    assert re.search(f"index {INDEX} gave [0-4] of 5, so every matching row was read", plan.why)
    bent.dispose()


def test_explain_says_that_exact_was_asked_for_and_that_there_is_no_index(rows: sa.Engine) -> None:
    store = open_store(rows)
    plan = store.explain(QUERY, exact=True)
    assert (plan.index, plan.repeated, plan.rows_returned) == (None, False, 10)
    assert "an exact search was asked for" in plan.why
    with rows.begin() as connection:
        connection.execute(sa.text("DROP INDEX " + INDEX))
    assert "there is no valid vector index" in store.explain(QUERY).why


def test_explain_refuses_what_a_query_refuses(rows: sa.Engine) -> None:
    store = open_store(rows)
    with pytest.raises(FilterError):
        store.explain(QUERY, filter={"n": {"$near": 1}})
    with pytest.raises(ConfigError):
        store.explain(QUERY, top_k=0)


@pytest.mark.parametrize(
    "asked", [{"tag": "t7"}, {"tag": {"$in": ["t7", "t8"]}}, {"n": 7}, {"$and": [{"tag": "t7"}, {"n": {"$gt": 600}}]}]
)
def test_the_filter_index_of_the_documentation_serves_selective_filters(rows: sa.Engine, asked: dict[str, Any]) -> None:
    page = Path("docs/indexes.md").read_text(encoding="utf-8")
    (statement,) = re.findall(r"CREATE INDEX CONCURRENTLY \S+ ON rag_chunks USING gin [^;]+;", page)
    store = open_store(rows)
    before = store.query(QUERY, filter=asked, exact=True)
    with rows.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(statement)
        connection.exec_driver_sql("VACUUM ANALYZE rag_chunks")
    plan = store.explain(QUERY, filter=asked, top_k=5)
    assert plan.index is None
    assert "by index idx_rag_chunks_metadata" in plan.why
    assert store.query(QUERY, filter=asked) == before


def test_an_engine_of_another_driver_is_refused(engine: sa.Engine) -> None:
    with pytest.raises(ConfigError, match="driver is pg8000; expected psycopg2, psycopg or asyncpg"):
        open_store(sa.create_engine(engine.url.set(drivername="postgresql+pg8000"), module=psycopg2))


def test_statements_are_kept_by_their_size_whatever_filters_strangers_send(engine: sa.Engine) -> None:
    store, asked = open_store(engine), [1.0] * 8
    for number in range(3):
        store.query(asked, filter={"n": {"$in": [*range(number, number + 2000)]}})
    searcher = store._column(store.models.now(), None).searcher()
    assert not searcher._statements
    # Each limit by filters that reach it before the other.
    for number in range(250):
        store.query(asked, filter={"n": {"$in": [f"{number}-{place}" for place in range(80)]}})
    assert sum(len(text) for text, _ in searcher._statements) <= 128 * 1024
    for number in range(300):
        store.query(asked, filter={"n": number})
    assert 0 < len(searcher._statements) <= 256
