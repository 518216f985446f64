"""Whose a row is: of an application's row, only what is ours or was given is written, and nothing deletes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from backfill_tools import StubSource, add_rows, execute, run_job, stored, to_job, to_vectors
from waiting import until

from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.backfill.reconcile.dry_run import DryRun
from amprenta_vectors.backfill.verify.compare import Difference, Verifier
from amprenta_vectors.ddl.gate import check_finished
from amprenta_vectors.errors import RunConflict, SchemaMismatch, ServerUnsuitable
from amprenta_vectors.schema.registry import RAG_CHUNKS
from amprenta_vectors.schema.vector_table import KeyRule, VectorTable
from amprenta_vectors.stores.composites.dual import DualStore
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Record, VectorStore

VECTORS = to_vectors(10)
BACKOFF = Backoff(1.0, threading.Event(), lambda reason: None)
ROW = "SELECT content, metadata, embedding IS NOT NULL, document_id, updated_at FROM rag_chunks WHERE chunk_id = :key"
OLD = "2020-01-01 00:00:00+00"


@pytest.fixture
def theirs(engine: sa.Engine) -> sa.Engine:
    """Three rows of the application, each with a text, metadata and a column that is nobody else's."""
    execute(engine, "ALTER TABLE rag_chunks ADD COLUMN document_id integer")
    add_rows(engine, ["a", "b", "c"])
    execute(
        engine,
        """UPDATE rag_chunks SET document_id = 7, updated_at = :old, metadata = '{"page": 1, "lang": "de"}'""",
        old=OLD,
    )
    return engine


@pytest.fixture
def store(theirs: sa.Engine) -> PgVectorStore:
    return PgVectorStore(theirs, RAG_CHUNKS, {"namespace": ""})


class Remote:
    """The store beside it, which takes everything."""

    name = "remote"
    distance = "cosine"

    def __init__(self) -> None:
        self.rows: dict[str, Record] = {}

    def upsert(self, records: Any) -> int:
        self.rows |= {record.key: record for record in records}
        return len(records)

    def delete(self, keys: Any) -> None:
        for key in keys:
            self.rows.pop(key, None)

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture(params=["single", "dual"])
def writer(request: pytest.FixtureRequest, store: PgVectorStore) -> Iterator[VectorStore]:
    if request.param == "single":
        yield store
        return
    remote: Any = Remote()
    dual = DualStore(store, remote, store.open_outbox(), primary=store)
    yield dual
    dual.close()


def verified(engine: sa.Engine) -> None:
    """As a comparison leaves the runs; what the gate says of those is not the question here."""
    execute(engine, "UPDATE migration_run SET verified_at = now()")


def row(engine: sa.Engine, key: str) -> Any:
    return execute(engine, ROW, key=key)[0]


def source() -> StubSource:
    return StubSource({key: [vector] for key, vector in zip("abc", VECTORS, strict=False)})


def missing(engine: sa.Engine) -> list[str]:
    """What a comparison with the source names."""
    found: list[Difference] = []
    job = to_job(engine, source())
    Verifier(engine, job.slice, job.source, batch_size=10, workers=1, retry=BACKOFF).run(found.append)
    return [difference.key for difference in found]


def test_what_was_not_given_stays(writer: VectorStore, theirs: sa.Engine) -> None:
    before = row(theirs, "a")
    writer.upsert(
        [Record("a", VECTORS[0]), Record("b", VECTORS[1], "new text"), Record("c", VECTORS[2], None, {"page": 2})]
    )
    assert tuple(row(theirs, "a")) == (before.content, before.metadata, True, 7, before.updated_at)
    assert tuple(row(theirs, "b")) == ("new text", before.metadata, True, 7, before.updated_at)
    assert tuple(row(theirs, "c")) == ("own text", {"page": 2, "lang": "de"}, True, 7, before.updated_at)


def test_no_column_that_was_not_given_is_part_of_the_statement(store: PgVectorStore, theirs: sa.Engine) -> None:
    execute(
        theirs,
        """
        CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not yours'; END $$;
        CREATE TRIGGER forbid BEFORE UPDATE OF content, metadata, document_id, updated_at ON rag_chunks
            FOR EACH ROW EXECUTE FUNCTION forbid()
        """,
    )
    store.upsert([Record("a", VECTORS[0])])
    store.delete(["a"])
    assert row(theirs, "a").content == "own text"


@pytest.mark.parametrize("kind", ["jsonb", "json", "text"])
@pytest.mark.parametrize("held", ['{"page": 1}', "[1, 2]", "3", None])
def test_given_fields_are_put_over_those_that_are_there(engine: sa.Engine, kind: str, held: str | None) -> None:
    execute(engine, f"CREATE TABLE notes (id text PRIMARY KEY, fields {kind}, embedding vector(8))")
    execute(engine, f"INSERT INTO notes VALUES ('n', CAST(:held AS {kind}))", held=held)
    notes = VectorTable(name="notes", table="notes", key=("id",), dimension=8, metadata="fields")
    store = PgVectorStore(engine, notes, {})
    store.upsert([Record("n", VECTORS[0])])
    assert execute(engine, "SELECT fields::text FROM notes") == [(held,)]
    store.upsert([Record("n", VECTORS[0], None, {"lang": "de"})])
    page = {"page": 1} if held and "page" in held else {}
    assert store.fetch(["n"])["n"].metadata == {**page, "lang": "de"}


def test_a_deleted_row_of_the_application_loses_what_is_ours_and_nothing_else(
    writer: VectorStore, theirs: sa.Engine
) -> None:
    run_job(theirs, to_job(theirs, source(), model="m1"))
    before = row(theirs, "a")
    writer.delete(["a", "absent"])
    assert tuple(row(theirs, "a")) == (before.content, before.metadata, False, 7, before.updated_at)
    assert execute(theirs, "SELECT embedding_model, embedding_hash FROM rag_chunks WHERE chunk_id = 'a'") == [
        (None, None)
    ]
    assert writer.fetch(["a"]) == {}
    assert writer.count() == 2


def test_what_was_emptied_stays_empty_until_the_application_writes_the_row_again(
    store: PgVectorStore, theirs: sa.Engine
) -> None:
    store.delete(["a", "b"])
    for keys_from in ("table", "source"):
        for replaces in (False, True):
            run_job(theirs, to_job(theirs, source(), keys_from=keys_from, replaces=replaces), "restart")
            assert list(stored(theirs)) == ["c"]
    prospect = DryRun(theirs, to_job(theirs, source(), keys_from="reconcile"), retry=BACKOFF).run()
    assert (prospect.written, prospect.equal) == (0, 3)
    run_job(theirs, to_job(theirs, source(), keys_from="reconcile"))
    assert list(stored(theirs)) == ["c"]
    assert missing(theirs) == []
    verified(theirs)
    with theirs.connect() as connection:
        assert to_job(theirs, source()).slice.count_empty(connection) == 0
        assert check_finished(connection, "rag_chunks", "embedding") == 1
    # Its own writes of whatever kind: the row's, or through the store.
    execute(theirs, "UPDATE rag_chunks SET content = content WHERE chunk_id = 'a'")
    with theirs.connect() as connection, pytest.raises(RunConflict, match="1 of 3 rows"):
        check_finished(connection, "rag_chunks", "embedding")
    assert missing(theirs) == ["a"]
    run_job(theirs, to_job(theirs, source(), keys_from="table"))
    store.upsert([Record("b", VECTORS[5])])
    assert sorted(stored(theirs)) == ["a", "b", "c"]
    execute(theirs, "UPDATE rag_chunks SET embedding = NULL WHERE chunk_id = 'b'")
    run_job(theirs, to_job(theirs, source(), keys_from="table"))
    assert sorted(stored(theirs)) == ["a", "b", "c"]


def test_a_row_that_was_deleted_and_came_anew_with_the_same_content_is_filled(
    store: PgVectorStore, theirs: sa.Engine
) -> None:
    store.delete(["a"])
    with theirs.begin() as connection:
        connection.execute(sa.text("CREATE TEMPORARY TABLE kept ON COMMIT DROP AS SELECT * FROM rag_chunks"))
        connection.execute(sa.text("DELETE FROM rag_chunks"))
        connection.execute(sa.text("INSERT INTO rag_chunks SELECT * FROM kept"))
    run_job(theirs, to_job(theirs, source(), keys_from="table"))
    assert sorted(stored(theirs)) == ["a", "b", "c"]


@pytest.mark.parametrize("rewritten", ["VACUUM FULL rag_chunks", "ALTER TABLE rag_chunks ALTER document_id TYPE int8"])
def test_a_table_that_is_written_anew_forgets_no_deletion(
    store: PgVectorStore, theirs: sa.Engine, rewritten: str
) -> None:
    store.delete(["a"])
    with theirs.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(sa.text(rewritten))
    run_job(theirs, to_job(theirs, source(), keys_from="table"))
    assert sorted(stored(theirs)) == ["b", "c"]
    verified(theirs)
    with theirs.connect() as connection:
        assert check_finished(connection, "rag_chunks", "embedding") == 2


def test_a_batch_that_is_written_while_a_row_is_emptied_waits_and_leaves_it_empty(
    store: PgVectorStore, theirs: sa.Engine
) -> None:
    fetched = threading.Event()
    stub = source()
    stub.before_fetch = lambda keys: fetched.set()
    job = to_job(theirs, stub, keys_from="table")
    with theirs.begin() as connection:
        store.delete(["a"], connection=connection)
        runner = threading.Thread(target=run_job, args=(theirs, job))
        runner.start()
        assert fetched.wait(60)
        waiting = sa.text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        while not execute(theirs, waiting.text)[0][0]:
            assert runner.is_alive()
    runner.join(60)
    assert sorted(stored(theirs)) == ["b", "c"]


@pytest.mark.parametrize("others", [0, 300])
def test_who_fills_few_rows_or_many_waits_for_who_empties_one_of_them(
    store: PgVectorStore, theirs: sa.Engine, others: int
) -> None:
    slice_ = to_job(theirs, source()).slice
    keys = [("a",), *((f"other {number}",) for number in range(others))]

    def emptied() -> set[Any]:
        with theirs.begin() as connection:
            return slice_.emptied_among(connection, keys)

    assert emptied() == set()
    with ThreadPoolExecutor(1) as pool:
        with theirs.begin() as connection:
            store.delete(["a"], connection=connection)
            found = pool.submit(emptied)
            until(
                lambda: execute(theirs, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")[0][
                    0
                ]
            )
            assert not found.done()
        assert found.result(60) == {("a",)}


def test_a_row_that_the_store_inserted_is_replaced_and_deleted_whole(store: PgVectorStore, theirs: sa.Engine) -> None:
    store.upsert([Record("new", VECTORS[3], "text", {"old": 1})])
    execute(theirs, "UPDATE rag_chunks SET updated_at = :old WHERE chunk_id = 'new'", old=OLD)
    store.upsert([Record("new", VECTORS[4], None, {"new": 2})])
    found = row(theirs, "new")
    assert (found.content, found.metadata) == (None, {"new": 2})
    assert found.updated_at.year > 2020
    store.delete(["new"])
    assert execute(theirs, ROW, key="new") == []
    assert execute(theirs, "SELECT FROM vector_row_mark") == []


def test_a_row_that_a_backfill_inserted_is_deleted_whole_while_it_is_as_it_was(
    store: PgVectorStore, theirs: sa.Engine
) -> None:
    records = {f"s{number}": [VECTORS[number]] for number in range(3)}
    run_job(theirs, to_job(theirs, StubSource(records, metadata={key: {"n": 1} for key in records})))
    execute(theirs, "UPDATE rag_chunks SET content = 'the application''s by now' WHERE chunk_id = 's1'")
    store.upsert([Record("s2", VECTORS[5])])
    store.delete(["s0", "s1", "s2"])
    assert execute(theirs, "SELECT chunk_id, content FROM rag_chunks WHERE chunk_id LIKE 's%'") == [
        ("s1", "the application's by now")
    ]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE rag_chunks SET document_id = 9 WHERE chunk_id = 'new'",
        "UPDATE rag_chunks SET content = 'theirs' WHERE chunk_id = 'new'",
        "DELETE FROM rag_chunks WHERE chunk_id = 'new'; "
        "INSERT INTO rag_chunks (namespace, chunk_id, content) VALUES ('', 'new', 'theirs')",
    ],
)
def test_what_the_application_made_of_such_a_row_is_not_deleted(
    store: PgVectorStore, theirs: sa.Engine, change: str
) -> None:
    store.upsert([Record("new", VECTORS[3], "text")])
    execute(theirs, change)
    store.delete(["new"])
    assert len(execute(theirs, ROW, key="new")) == 1


def test_where_the_column_cannot_be_empty_delete_names_the_statement_that_does_it(
    store: PgVectorStore, theirs: sa.Engine
) -> None:
    execute(theirs, "UPDATE rag_chunks SET chunk_id = 'it''s \\ a' WHERE chunk_id = 'a'")
    store.upsert([Record(key, VECTORS[0]) for key in ("it's \\ a", "b", "c", "new")])
    execute(theirs, "ALTER TABLE rag_chunks ALTER COLUMN embedding SET NOT NULL")
    with pytest.raises(SchemaMismatch, match="nothing was deleted") as refused:
        store.delete(["it's \\ a", "b", "new"])
    assert store.count() == 4
    assert refused.value.hint is not None
    execute(theirs, refused.value.hint.replace(":", "\\:"))
    assert sorted(store.fetch(["it's \\ a", "b", "c", "new"])) == ["c", "new"]
    store.delete(["it's \\ a", "b", "new"])
    assert execute(theirs, "SELECT chunk_id FROM rag_chunks") == [("c",)]


def test_a_role_that_cannot_mark_is_told_before_anything_is_emptied(store: PgVectorStore, theirs: sa.Engine) -> None:
    run_job(theirs, to_job(theirs, source()))
    execute(theirs, "DROP TABLE vector_row_mark")
    with pytest.raises(ServerUnsuitable, match="vector_row_mark") as refused:
        store.delete(["a"])
    assert "alembic upgrade head" in str(refused.value.hint)
    assert store.count() == 3
    store.upsert([Record("a", VECTORS[0]), Record("new", VECTORS[1])])
    assert store.count() == 4


def test_rows_of_a_table_of_ours_are_written_and_deleted_whole(theirs: sa.Engine) -> None:
    store = PgVectorStore(theirs, replace(RAG_CHUNKS, rows="ours"), {"namespace": ""})
    store.upsert([Record("a", VECTORS[0], None, {"new": 1})])
    assert (row(theirs, "a").content, row(theirs, "a").metadata) == (None, {"new": 1})
    store.delete(["a", "b"])
    assert execute(theirs, "SELECT chunk_id FROM rag_chunks") == [("c",)]


def look_up(engine: sa.Engine) -> PgVectorStore:
    execute(engine, "CREATE TABLE goods (id integer PRIMARY KEY, sku text NOT NULL, name text, embedding vector(8))")
    execute(engine, "INSERT INTO goods VALUES (1, 'x', 'one'), (2, 'x', 'two'), (3, 'y', 'three')")
    rule = KeyRule("lookup", lookup="sku")
    return PgVectorStore(engine, VectorTable(name="goods", table="goods", key=("id",), dimension=8, key_rule=rule), {})


def test_rows_that_are_looked_up_are_updated_and_emptied(engine: sa.Engine) -> None:
    store = look_up(engine)
    assert store.upsert([Record("x", VECTORS[0]), Record("y", VECTORS[1])]) == 2
    assert store.count() == 3
    store.delete(["x"])
    assert execute(engine, "SELECT name, embedding IS NULL FROM goods ORDER BY id") == [
        ("one", True),
        ("two", True),
        ("three", False),
    ]


def test_writers_of_the_same_new_rows_end_with_rows_that_are_the_stores(engine: sa.Engine) -> None:
    stores = [PgVectorStore(engine, RAG_CHUNKS, {"namespace": ""}) for _ in range(3)]
    for version in range(10):
        keys = [f"k{version}-{number}" for number in range(5)]
        records = [[Record(key, VECTORS[part], None, {str(part): 1}) for key in keys] for part in range(3)]
        with ThreadPoolExecutor() as pool:
            assert list(pool.map(PgVectorStore.upsert, stores, records)) == [5, 5, 5]
        assert all(len(found.metadata) == 1 for found in stores[0].fetch(keys).values())
        stores[0].delete(keys)
    assert execute(engine, "SELECT FROM rag_chunks") == []
