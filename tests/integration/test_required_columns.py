"""A NOT NULL column that nobody but the application has a value for: rows that are there are updated all the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from backfill_tools import StubSource, add_rows, errors_of, execute, run_job, stored, to_job, to_vectors

from amprenta_vectors.backfill.database.preflight import check_target, describe_target
from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.backfill.reconcile.dry_run import DryRun
from amprenta_vectors.backfill.verify.compare import digests
from amprenta_vectors.errors import RowError
from amprenta_vectors.schema.registry import RAG_CHUNKS
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.composites.dual import DualStore
from amprenta_vectors.stores.outbox import Outbox
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import Record

VECTORS, LATER = to_vectors(8), to_vectors(8, seed=1)
THERE, ABSENT = ["a", "b", "c"], ["x", "y"]
BACKOFF = Backoff(1.0, threading.Event(), lambda reason: None)
REQUIRED = {
    "document_id": "ALTER TABLE rag_chunks ADD COLUMN document_id integer NOT NULL REFERENCES documents",
    "content": "ALTER TABLE rag_chunks ALTER COLUMN content SET NOT NULL",
    "embedding_model": "ALTER TABLE rag_chunks ALTER COLUMN embedding_model SET NOT NULL",
}


@pytest.fixture(params=list(REQUIRED))
def required(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def theirs(engine: sa.Engine, required: str) -> sa.Engine:
    """Three rows of the application, in a table that takes none without a value of its own."""
    execute(engine, "CREATE TABLE documents (id integer PRIMARY KEY); INSERT INTO documents VALUES (7)")
    add_rows(engine, THERE)
    execute(engine, "UPDATE rag_chunks SET embedding_model = 'none yet'")
    statement = REQUIRED[required]
    execute(engine, statement.replace("NOT NULL REFERENCES", "NOT NULL DEFAULT 7 REFERENCES"))
    if required == "document_id":
        execute(engine, "ALTER TABLE rag_chunks ALTER COLUMN document_id DROP DEFAULT")
    return engine


def source(vectors: object = VECTORS) -> StubSource:
    records = dict(zip([*THERE, *ABSENT], vectors, strict=False))  # type: ignore[call-overload]
    return StubSource({key: [vector] for key, vector in records.items()})


def digest_of(engine: sa.Engine, key: str) -> bytes:
    return bytes(
        execute(engine, "SELECT sha256(vector_send(embedding)) FROM rag_chunks WHERE chunk_id = :k", k=key)[0][0]
    )


def test_a_backfill_fills_what_is_there_and_names_what_it_cannot_insert(theirs: sa.Engine, required: str) -> None:
    with theirs.connect() as connection:
        table = to_job(theirs, source()).slice.table
        check_target(connection, table, insert=True)
        said = [line for line in describe_target(connection, table, insert=True) if "NOT NULL" in line]
    assert len(said) == (required == "document_id")
    summary = run_job(theirs, to_job(theirs, source()))
    assert sorted(stored(theirs)) == THERE
    assert errors_of(theirs, summary.run.id) == dict.fromkeys(ABSENT, "write_refused")
    detail = execute(theirs, "SELECT DISTINCT detail FROM migration_quarantine")
    assert len(detail) == 1
    assert required in detail[0][0]


def test_reconcile_and_force_replace_what_is_there(theirs: sa.Engine, required: str) -> None:
    run_job(theirs, to_job(theirs, source(), keys_from="table"))
    job = to_job(theirs, source(LATER), keys_from="reconcile")
    prospect = DryRun(theirs, job, retry=BACKOFF).run()
    assert prospect.replaced == 3
    if required == "document_id":
        assert (prospect.written, prospect.quarantined) == (3, {"write_refused": 2})
    summary = run_job(theirs, job)
    assert errors_of(theirs, summary.run.id) == dict.fromkeys(ABSENT, "write_refused")
    assert [digest_of(theirs, key) for key in THERE] == digests(LATER[:3], "vector")
    summary = run_job(theirs, to_job(theirs, source(VECTORS), replaces=True), "restart")
    assert errors_of(theirs, summary.run.id) == dict.fromkeys(ABSENT, "write_refused")
    assert [digest_of(theirs, key) for key in THERE] == digests(VECTORS[:3], "vector")


def test_a_trigger_that_gives_the_value_is_let_do_it(engine: sa.Engine) -> None:
    execute(engine, "ALTER TABLE rag_chunks ADD COLUMN document_id integer NOT NULL")
    execute(
        engine,
        """
        CREATE FUNCTION give() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.document_id := 7; RETURN NEW; END $$;
        CREATE TRIGGER give BEFORE INSERT ON rag_chunks FOR EACH ROW EXECUTE FUNCTION give()
        """,
    )
    assert run_job(engine, to_job(engine, source())).counts.quarantined == 0
    store = PgVectorStore(engine, RAG_CHUNKS, {"namespace": ""})
    assert store.upsert([Record("new", VECTORS[0])]) == 1
    assert len(stored(engine)) == 6


class Remote:
    """The store beside it, which takes everything."""

    name = "remote"
    distance = "cosine"

    def __init__(self) -> None:
        self.keys: list[str] = []

    def upsert(self, records: list[Record]) -> int:
        self.keys += [record.key for record in records]
        return len(records)

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def store(theirs: sa.Engine) -> PgVectorStore:
    return PgVectorStore(theirs, RAG_CHUNKS, {"namespace": ""})


@pytest.fixture
def dual(store: PgVectorStore, theirs: sa.Engine) -> Iterator[tuple[DualStore, Remote]]:
    remote = Remote()
    joined = DualStore(store, remote, Outbox(theirs, "rag_chunks.embedding", {"namespace": ""}), primary=store)  # type: ignore[arg-type]
    yield joined, remote
    joined.close()


@pytest.mark.parametrize("mode", ["single", "dual"])
def test_upsert_updates_what_is_there_and_names_what_it_cannot_insert(
    store: PgVectorStore, dual: tuple[DualStore, Remote], theirs: sa.Engine, required: str, mode: str
) -> None:
    writer = store if mode == "single" else dual[0]
    records = [Record(key, vector) for key, vector in zip([*ABSENT, *THERE], VECTORS, strict=False)]
    with pytest.raises(RowError, match=required) as refused:
        writer.upsert(records)
    assert refused.value.key == "x"
    assert "'y'" in refused.value.message
    assert sorted(stored(theirs)) == THERE
    if mode == "dual":
        assert sorted(dual[1].keys) == THERE
    # What the message names is what is missing.
    execute(theirs, f"ALTER TABLE rag_chunks ALTER COLUMN {required} SET DEFAULT '7'")
    assert writer.upsert(records) == 5
    assert sorted(stored(theirs)) == [*THERE, *ABSENT]


def test_a_table_of_ours_with_such_a_column_is_updated_whole(engine: sa.Engine) -> None:
    execute(engine, "CREATE TABLE notes (id text PRIMARY KEY, owner text NOT NULL, body text, embedding vector(8))")
    execute(engine, "INSERT INTO notes VALUES ('n', 'me', 'body')")
    notes = VectorTable(name="notes", table="notes", key=("id",), dimension=8, text="body", rows="ours")
    store = PgVectorStore(engine, notes, {})
    with pytest.raises(RowError, match="owner"):
        store.upsert([Record("n", VECTORS[0]), Record("new", VECTORS[1])])
    assert execute(engine, "SELECT owner, body, embedding IS NOT NULL FROM notes") == [("me", None, True)]
