"""Before a run: what PostgreSQL would refuse is refused at once with its mend; what only should be known is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

import pytest
import sqlalchemy as sa
from backfill_tools import (
    StubSource,
    add_rows,
    environment,
    errors_of,
    execute,
    expected,
    run_forked,
    run_job,
    stored,
    to_ids,
    to_job,
    to_vectors,
)

from amprenta_vectors.backfill.database.preflight import check_target, describe_target
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.errors import AmprentaError, SchemaMismatch, ServerUnsuitable
from amprenta_vectors.migrate import upgrade
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.registry import RAG_CHUNKS

IDS, VECTORS = to_ids(60), to_vectors(60)
ROLE = "amprenta_filler"


@pytest.fixture
def filler(engine: sa.Engine) -> Iterator[sa.Engine]:
    """A role that may fill the tables and owns none of them."""
    execute(
        engine,
        f"""
        DO $$ BEGIN CREATE ROLE {ROLE} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {ROLE};
        GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {ROLE}
        """,
    )
    filler = sa.create_engine(engine.url.set(username=ROLE), pool_size=10)
    yield filler
    filler.dispose()
    execute(engine, f"ALTER ROLE {ROLE} RESET default_transaction_read_only")
    execute(engine, f"DROP OWNED BY {ROLE}")


def stub() -> StubSource:
    return StubSource({key: [vector] for key, vector in zip(IDS, VECTORS, strict=True)})


def check(engine: sa.Engine, *, insert: bool = True) -> None:
    with engine.connect() as connection:
        check_target(connection, resolve_table(connection, RAG_CHUNKS), insert=insert)


def describe(engine: sa.Engine, *, insert: bool = True) -> list[str]:
    with engine.connect() as connection:
        return describe_target(connection, resolve_table(connection, RAG_CHUNKS), insert=insert)


def refusal(engine: sa.Engine) -> ServerUnsuitable:
    with pytest.raises(ServerUnsuitable) as caught:
        check(engine)
    return caught.value


def test_a_table_of_ones_own_has_nothing_to_tell(engine: sa.Engine) -> None:
    check(engine)
    assert describe(engine) == []


def test_whom_the_table_belongs_to_is_said_to_a_role_that_may_not_index_it(
    engine: sa.Engine, filler: sa.Engine
) -> None:
    (said,) = describe(filler)
    assert said.startswith(f"table rag_chunks belongs to postgres, of which role {ROLE} is no member")


def test_a_role_that_may_only_read_is_refused_with_the_statement_that_mends_it(
    engine: sa.Engine, filler: sa.Engine
) -> None:
    execute(engine, f"ALTER ROLE {ROLE} SET default_transaction_read_only = on")
    filler.dispose()
    refused = refusal(filler)
    assert refused.message == f"role {ROLE} may only read: default_transaction_read_only is on"
    execute(engine, refused.hint)
    filler.dispose()
    check(filler)
    execute(engine, f"ALTER ROLE {ROLE} IN DATABASE {engine.url.database} RESET default_transaction_read_only")


ENABLE = "ALTER TABLE rag_chunks ENABLE ROW LEVEL SECURITY"


def test_row_security_is_refused_to_whom_it_applies(engine: sa.Engine, filler: sa.Engine) -> None:
    execute(engine, ENABLE)
    assert "row security hides rows of rag_chunks from this role" in refusal(filler).message
    check(engine)


def test_row_security_that_is_forced_upon_the_owner_is_refused_too(engine: sa.Engine, filler: sa.Engine) -> None:
    execute(engine, ENABLE)
    execute(engine, f"ALTER TABLE rag_chunks OWNER TO {ROLE}")
    check(filler)
    execute(filler, "ALTER TABLE rag_chunks FORCE ROW LEVEL SECURITY")
    assert "where it is not forced" in refusal(filler).hint
    execute(engine, f"ALTER ROLE {ROLE} BYPASSRLS")
    check(filler)
    execute(engine, f"ALTER ROLE {ROLE} NOBYPASSRLS")
    execute(engine, "ALTER TABLE rag_chunks OWNER TO postgres")


@pytest.mark.parametrize("keys_from", ["table", "source"])
def test_row_security_that_comes_while_a_run_goes_on_stops_it(
    engine: sa.Engine, filler: sa.Engine, keys_from: str
) -> None:
    add_rows(engine, IDS)
    source, policy = stub(), "CREATE POLICY half ON rag_chunks USING (chunk_id < 'chunk-000030')"

    def enable(keys: Sequence[str]) -> None:
        source.before_fetch = lambda keys: None
        execute(engine, policy)
        execute(engine, ENABLE)

    source.before_fetch = enable
    with pytest.raises(AmprentaError, match=r"row security hides rows|violates row-level security"):
        run_job(filler, to_job(filler, source, batch_size=10, workers=1, keys_from=keys_from))
    execute(engine, "ALTER TABLE rag_chunks DISABLE ROW LEVEL SECURITY")
    run_job(filler, to_job(filler, stub(), keys_from=keys_from), "resume")
    assert stored(engine) == expected(IDS, VECTORS)


def test_updates_that_a_publication_would_refuse_are_refused_before_the_run(engine: sa.Engine) -> None:
    execute(engine, "CREATE PUBLICATION events FOR TABLE rag_chunks")
    assert describe(engine) == ["every row that is filled goes to the subscribers of publication events as well"], (
        "its primary key tells rows by"
    )
    execute(engine, "ALTER TABLE rag_chunks REPLICA IDENTITY NOTHING")
    add_rows(engine, IDS[:1])
    with pytest.raises(sa.exc.DBAPIError, match="does not have a replica identity"):
        execute(engine, "UPDATE rag_chunks SET content = 'x'")
    refused = refusal(engine)
    assert "PostgreSQL would refuse every update of rag_chunks: publication events passes updates on" in refused.message
    assert refused.hint == "ALTER TABLE rag_chunks REPLICA IDENTITY USING INDEX rag_chunks_pkey"
    execute(engine, refused.hint)
    check(engine)
    execute(engine, "UPDATE rag_chunks SET content = 'x'")


def test_without_a_fit_index_whole_rows_are_the_replica_identity(engine: sa.Engine) -> None:
    execute(engine, "CREATE PUBLICATION everything FOR ALL TABLES")
    execute(engine, "ALTER TABLE rag_chunks DROP CONSTRAINT rag_chunks_pkey")
    execute(engine, "ALTER TABLE rag_chunks ALTER chunk_id DROP NOT NULL")
    execute(engine, "CREATE UNIQUE INDEX ON rag_chunks (namespace, chunk_id)")
    refused = refusal(engine)
    assert refused.hint == "ALTER TABLE rag_chunks REPLICA IDENTITY FULL"
    execute(engine, refused.hint)
    check(engine)
    (said,) = describe(engine)
    assert said.endswith("publication everything as well with what it was before (REPLICA IDENTITY FULL)")


def test_a_publication_of_inserts_alone_refuses_nothing(engine: sa.Engine) -> None:
    execute(engine, "CREATE PUBLICATION inserts FOR TABLE rag_chunks WITH (publish = 'insert')")
    execute(engine, "ALTER TABLE rag_chunks REPLICA IDENTITY NOTHING")
    check(engine)
    add_rows(engine, IDS[:1])
    execute(engine, "UPDATE rag_chunks SET content = 'x'")


TRIGGERS = """
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.updated_at := now(); RETURN NEW; END $$;
CREATE FUNCTION notify_changed() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NOTIFY changed; RETURN NULL; END $$;
CREATE TRIGGER a_touch BEFORE UPDATE ON rag_chunks FOR EACH ROW EXECUTE FUNCTION touch();
CREATE TRIGGER b_notify AFTER INSERT ON rag_chunks FOR EACH STATEMENT EXECUTE FUNCTION notify_changed();
CREATE TRIGGER c_content AFTER UPDATE OF content ON rag_chunks FOR EACH ROW EXECUTE FUNCTION notify_changed();
CREATE TRIGGER d_embedding AFTER UPDATE OF embedding ON rag_chunks FOR EACH ROW EXECUTE FUNCTION notify_changed();
CREATE TRIGGER e_off AFTER UPDATE ON rag_chunks FOR EACH ROW EXECUTE FUNCTION notify_changed();
ALTER TABLE rag_chunks DISABLE TRIGGER e_off;
CREATE TRIGGER f_delete AFTER DELETE ON rag_chunks FOR EACH ROW EXECUTE FUNCTION notify_changed();
"""


def test_the_triggers_that_a_run_sets_off_are_named(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(TRIGGERS)
    touch = (
        "trigger a_touch runs touch() for each row that is filled; it names updated_at, so that filled rows may look"
    )
    embedding = "trigger d_embedding runs notify_changed() for each row that is filled"
    inserted = "trigger b_notify runs notify_changed() for each batch"
    assert describe(engine, insert=False) == [f"{touch} changed", embedding]
    assert describe(engine, insert=True) == [f"{touch} changed", inserted, embedding]


PARTITIONED = """
CREATE TABLE rag_chunks (
    namespace text NOT NULL, chunk_id text NOT NULL, content text, PRIMARY KEY (namespace, chunk_id)
) PARTITION BY LIST (namespace);
CREATE TABLE chunks_a PARTITION OF rag_chunks FOR VALUES IN ('a');
CREATE TABLE chunks_rest PARTITION OF rag_chunks DEFAULT;
"""
BY_HAND = (
    "CREATE INDEX idx_rag_chunks_embedding ON ONLY rag_chunks USING hnsw (embedding vector_cosine_ops)",
    "CREATE INDEX CONCURRENTLY a_ann ON chunks_a USING hnsw (embedding vector_cosine_ops)",
    "CREATE INDEX CONCURRENTLY rest_ann ON chunks_rest USING hnsw (embedding vector_cosine_ops)",
    "ALTER INDEX idx_rag_chunks_embedding ATTACH PARTITION a_ann",
    "ALTER INDEX idx_rag_chunks_embedding ATTACH PARTITION rest_ann",
)


@pytest.fixture
def partitioned(database_url: str) -> Iterator[sa.Engine]:
    """A partitioned table of the application, adopted; its index as the refusal says to build it."""
    settings = Settings.load(database_url=database_url, vector_dimension=8)
    engine = create_engine(settings, pool_size=20)
    with engine.begin() as connection:
        connection.exec_driver_sql(PARTITIONED)
    with pytest.raises(SchemaMismatch, match="is partitioned: PostgreSQL cannot build index") as caught:
        upgrade(settings)
    assert "ATTACH PARTITION" in caught.value.hint
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in BY_HAND:
            connection.execute(sa.text(statement))
    upgrade(settings)
    yield engine
    engine.dispose()


@pytest.mark.parametrize("keys_from", ["table", "source"])
def test_a_partitioned_table_is_filled_with_its_index_in_place(partitioned: sa.Engine, keys_from: str) -> None:
    for namespace in ("a", "b"):
        if keys_from == "table":
            add_rows(partitioned, IDS, namespace)
        job = to_job(partitioned, stub(), namespace=namespace, keys_from=keys_from)
        summary = run_job(partitioned, job)
        assert (summary.run.state, summary.indexes_built) == ("finished", [])
        assert stored(partitioned, namespace) == expected(IDS, VECTORS)
        assert errors_of(partitioned, summary.run.id) == {}
    assert execute(partitioned, "SELECT count(embedding) FROM chunks_a") == [(60,)]
    valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'idx_rag_chunks_embedding'::regclass"
    assert execute(partitioned, valid) == [(True,)]


def test_of_a_partitioned_table_everything_else_is_checked_too(partitioned: sa.Engine) -> None:
    check(partitioned)
    assert describe(partitioned) == [
        "table rag_chunks is partitioned: its ANN index stays in place during the load, and is yours to drop and build"
    ]
    execute(partitioned, "CREATE PUBLICATION part FOR TABLE rag_chunks WITH (publish_via_partition_root = true)")
    execute(partitioned, "ALTER TABLE chunks_a REPLICA IDENTITY NOTHING")
    refused = refusal(partitioned)
    assert "every update of chunks_a: publication part" in refused.message
    assert refused.hint == "ALTER TABLE chunks_a REPLICA IDENTITY USING INDEX chunks_a_pkey"


def test_to_put_the_index_of_a_partitioned_table_off_is_refused(partitioned: sa.Engine) -> None:
    with pytest.raises(SchemaMismatch, match="could not build its index again concurrently"):
        run_job(partitioned, to_job(partitioned, stub(), namespace="a", defer_index=True))


StartEmulator = Callable[..., PineconeEmulator]


def test_notices_are_shown_by_a_dry_run_and_by_a_run_in_words_and_in_json(
    engine: sa.Engine, upgraded_url: str, emulator: StartEmulator
) -> None:
    add_rows(engine, IDS)
    with engine.begin() as connection:
        connection.exec_driver_sql(TRIGGERS)
    pinecone = emulator()
    pinecone.load("", IDS, VECTORS)
    variables = environment(upgraded_url, pinecone, AMPRENTA_MAX_WAL_MB_PER_SECOND="1000")
    code, output = run_forked(variables, "--dry-run")
    assert code == 0, output
    assert "notice: trigger a_touch runs touch()" in output
    code, output = run_forked(variables, "--resume", "--no-verify", "--json")
    events = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    notices = [event["text"] for event in events if event["event"] == "notice"]
    assert [notice.split()[1] for notice in notices if notice.startswith("trigger")] == ["a_touch", "d_embedding"]
