"""``amprenta-vectors doctor``: each fault is made on a real server, found, and mended by the command that is named."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from backfill_tools import execute
from click.testing import CliRunner
from databases import janitor

from amprenta_vectors import doctor
from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.doctor.examine import TABLE_CHECKS, examine
from amprenta_vectors.doctor.finding import Finding
from amprenta_vectors.doctor.server import server_faults
from amprenta_vectors.migrate import upgrade
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres
from amprenta_vectors.schema.engine_tables import ENGINE_TABLES

INDEX = "idx_rag_chunks_embedding"
FILL = """
    INSERT INTO rag_chunks (chunk_id, content, embedding)
    SELECT n, 'text', ARRAY(SELECT random() + 0 * (n + d) FROM generate_series(1, 8) d)::vector
    FROM generate_series(1, {rows}) n
"""


class Patient:
    """A database with rows in which an application searches, and what the doctor says of it."""

    def __init__(self, engine: sa.Engine, url: str) -> None:
        self.engine, self.url = engine, url
        self.settings: dict[str, Any] = {"database_url": url, "vector_backend": "pgvector"}

    def execute(self, *statements: str) -> None:
        # Outside a transaction, as what is typed is; the counters of the server are told at once.
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in statements:
                connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
            connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
            connection.exec_driver_sql("SELECT 1")

    def findings(self, check: str | None = None, **settings: Any) -> list[Finding]:
        found = examine(Settings.load(**self.settings, **settings))
        return [finding for finding in found if check in (None, finding.check)]

    def finding(self, check: str, **settings: Any) -> Finding:
        (only,) = self.findings(check, **settings)
        return only

    def mend(self, check: str) -> None:
        """Type the statement that the finding names; it is gone then."""
        self.execute(self.finding(check).mend)
        assert self.findings(check) == []


@pytest.fixture(scope="module")
def filled_template(postgres_server: EmbeddedPostgres, upgraded_template: str) -> Iterator[str]:
    """The name of a database with 500 rows and no run that is left unfinished."""
    with janitor(postgres_server, "filled_template", upgraded_template, as_template=True) as template:
        url = postgres_server.url(template.dbname)
        engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg2"))
        Patient(engine, url).execute("UPDATE migration_run SET state = 'cancelled'", FILL.format(rows=500))
        engine.dispose()
        yield template.dbname


@pytest.fixture
def patient(postgres_server: EmbeddedPostgres, filled_template: str) -> Iterator[Patient]:
    with janitor(postgres_server, "upgraded", filled_template) as database:
        url = postgres_server.url(database.dbname)
        engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg2"))
        made = Patient(engine, url)
        # In this database itself: the counters of the server do not come along with a template.
        made.execute("VACUUM (ANALYZE) rag_chunks")
        yield made
        engine.dispose()


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the tests are as many as need an index."""
    monkeypatch.setattr(doctor.indexes, "WORTH_AN_INDEX", 100)


def command(patient: Patient, *arguments: str, **more: str) -> Any:
    environment = {"DATABASE_URL": patient.url, "VECTOR_BACKEND": "pgvector", **more}
    return CliRunner().invoke(main, ["doctor", *arguments], env=environment, catch_exceptions=False)


def test_a_sound_database_has_no_serious_finding_and_exits_0(patient: Patient) -> None:
    done = command(patient)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1].startswith("0 serious, ")
    said = json.loads(command(patient, "--json").output)
    assert said["serious"] == 0
    assert {finding["check"] for finding in said["findings"]} == {"versions", "sizes", "sizes of the engine"}


def test_one_serious_finding_exits_1_and_stands_first(patient: Patient) -> None:
    done = command(patient, VECTOR_SECONDARY="pinecone")
    assert done.exit_code == 1
    assert done.output.startswith("serious  mode: VECTOR_SECONDARY is 'pinecone'")
    assert "         mend: unset VECTOR_SECONDARY" in done.output


def test_nothing_is_changed(patient: Patient) -> None:
    before = execute(patient.engine, "SELECT pg_current_xact_id_if_assigned(), max(xmin::text) FROM rag_chunks")
    patient.findings()
    assert execute(patient.engine, "SELECT pg_current_xact_id_if_assigned(), max(xmin::text) FROM rag_chunks") == before


@pytest.mark.parametrize(
    ("version", "severity", "faults"),
    [
        ("0.8.1", "serious", ["CVE-2026-3172", "vacuum may corrupt", "graph not repaired", "IVFFlat builds"]),
        ("0.8.2", "serious", ["vacuum may corrupt", "graph not repaired", "IVFFlat builds"]),
        ("0.8.3", "advice", ["graph not repaired", "IVFFlat builds"]),
        ("0.8.4", "advice", ["IVFFlat builds"]),
    ],
)
def test_a_pgvector_with_known_faults_is_named_with_them(
    patient: Patient, version: str, severity: str, faults: list[str]
) -> None:
    patient.execute(f"UPDATE pg_extension SET extversion = '{version}' WHERE extname = 'vector'")
    found = patient.finding("versions")
    assert found.severity == severity
    assert found.found.count("mended in") == len(faults)
    assert all(fault in found.found for fault in faults)
    assert "ALTER EXTENSION vector UPDATE" in found.mend


def test_a_sound_pgvector_is_no_finding_and_a_newer_one_is_advice(patient: Patient) -> None:
    patient.execute("UPDATE pg_extension SET extversion = '0.9.0' WHERE extname = 'vector'")
    assert patient.findings("versions") == []


def test_a_server_that_is_too_old_is_serious(patient: Patient) -> None:
    patient.execute("UPDATE pg_extension SET extversion = '0.6.2' WHERE extname = 'vector'")
    found = patient.finding("versions")
    assert (found.severity, "pgvector 0.6.2 is too old" in found.found) == ("serious", True)


@pytest.mark.parametrize(("version", "faults"), [(140003, 1), (140004, 0), (150000, 0)])
def test_a_postgresql_whose_concurrent_builds_miss_rows_is_serious(version: int, faults: int) -> None:
    assert [finding.severity for finding in server_faults(version)] == ["serious"] * faults


def test_a_pool_that_the_server_cannot_serve_is_serious(patient: Patient) -> None:
    found = patient.finding("connections", pool_size=1000)
    assert (found.severity, found.mend) == ("serious", "export AMPRENTA_POOL_SIZE=19")


def test_an_invalid_index_that_alone_would_serve_is_serious_and_rebuilt(patient: Patient) -> None:
    patient.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{INDEX}'::regclass")
    found = patient.finding("invalid indexes")
    assert (found.severity, found.mend) == ("serious", f"REINDEX INDEX CONCURRENTLY public.{INDEX}")
    patient.mend("invalid indexes")
    assert patient.findings("missing index") == []


def test_an_invalid_leftover_beside_one_that_serves_is_dropped(patient: Patient) -> None:
    patient.execute(
        "CREATE INDEX left_behind ON rag_chunks USING hnsw (embedding vector_cosine_ops)",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'left_behind'::regclass",
    )
    found = patient.finding("invalid indexes")
    assert (found.severity, found.mend) == ("advice", "DROP INDEX CONCURRENTLY public.left_behind")
    patient.mend("invalid indexes")


def test_an_invalid_index_of_something_else_than_vectors_is_found_and_rebuilt(patient: Patient) -> None:
    patient.execute(
        "CREATE INDEX of_metadata ON rag_chunks USING gin (metadata)",
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'of_metadata'::regclass",
    )
    found = patient.finding("invalid indexes")
    assert (found.severity, found.mend) == ("advice", "REINDEX INDEX CONCURRENTLY public.of_metadata")
    patient.mend("invalid indexes")


def test_an_index_that_may_be_being_built_is_a_note(patient: Patient) -> None:
    patient.execute(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{INDEX}'::regclass")
    with patient.engine.connect() as other:
        other.exec_driver_sql("LOCK TABLE rag_chunks IN SHARE UPDATE EXCLUSIVE MODE")
        assert patient.finding("invalid indexes").severity == "note"


@pytest.mark.usefixtures("many")
def test_no_index_is_serious_for_many_rows_and_advice_for_few(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient.execute(f"DROP INDEX {INDEX}")
    found = patient.finding("missing index")
    assert (found.severity, found.mend) == ("serious", "amprenta-vectors index build")
    assert "each search reads all rows, about 500" in found.found
    monkeypatch.setattr(doctor.indexes, "WORTH_AN_INDEX", 10_000)
    assert patient.finding("missing index").severity == "advice"
    built = CliRunner().invoke(main, ["index", "build"], env={"DATABASE_URL": patient.url})
    assert built.exit_code == 0, built.output
    assert patient.findings("missing index") == []


@pytest.mark.parametrize(
    ("key", "serves"),
    [
        ("(embedding::halfvec(8)) halfvec_cosine_ops", True),
        ("(binary_quantize(embedding)::bit(8)) bit_hamming_ops", True),
        ("(binary_quantize(embedding)::bit(8)) bit_jaccard_ops", False),
        ("(embedding::halfvec(8)) halfvec_l2_ops", False),
        ("(subvector(embedding, 1, 4)::vector(4)) vector_cosine_ops", False),
    ],
)
def test_an_index_serves_by_what_it_holds(patient: Patient, key: str, serves: bool) -> None:
    patient.execute("DROP INDEX idx_rag_chunks_embedding")
    patient.execute(f"CREATE INDEX other ON rag_chunks USING hnsw ({key})")
    assert (patient.findings("missing index") == []) is serves


@pytest.mark.usefixtures("many")
def test_an_index_of_another_distance_or_of_some_rows_serves_no_search(patient: Patient) -> None:
    patient.execute(
        f"DROP INDEX {INDEX}",
        "CREATE INDEX by_l2 ON rag_chunks USING hnsw (embedding vector_l2_ops)",
        "CREATE INDEX partly ON rag_chunks USING hnsw (embedding vector_cosine_ops) WHERE namespace = 'n'",
    )
    found = patient.finding("missing index")
    assert found.severity == "serious"
    assert "public.by_l2 (vector_l2_ops), public.partly (vector_cosine_ops, partial) does not serve" in found.found
    assert found.mend == "amprenta-vectors index build; DROP INDEX CONCURRENTLY public.by_l2"
    built = CliRunner().invoke(main, ["index", "build"], env={"DATABASE_URL": patient.url})
    assert built.exit_code == 0, built.output
    assert patient.findings("missing index") == []


@pytest.mark.usefixtures("many")
def test_an_index_that_was_deferred_and_that_no_run_will_build_is_serious(patient: Patient) -> None:
    assert CliRunner().invoke(main, ["index", "drop"], env={"DATABASE_URL": patient.url}).exit_code == 0
    found = patient.finding("missing index")
    assert (found.severity, found.mend) == ("serious", "amprenta-vectors index build")
    assert f"index {INDEX} was deferred for a load; no run is left to build it" in found.found
    begin_run(patient)
    assert patient.finding("missing index").severity == "note"


@pytest.mark.usefixtures("many")
def test_each_partition_needs_an_index_of_its_own(patient: Patient, tmp_path: Path) -> None:
    patient.execute(
        "CREATE TABLE parts (id text NOT NULL, embedding vector(8), PRIMARY KEY (id)) PARTITION BY HASH (id)",
        # Nobody analyses them before it is found that nobody has.
        "CREATE TABLE part_0 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 0) "
        "WITH (autovacuum_enabled = off)",
        "CREATE TABLE part_1 PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER 1) "
        "WITH (autovacuum_enabled = off)",
        "CREATE INDEX ON part_0 USING hnsw (embedding vector_cosine_ops)",
        "INSERT INTO parts SELECT chunk_id, embedding FROM rag_chunks",
    )
    config = tmp_path / "amprenta.toml"
    config.write_text('[tables.parts]\ntable = "parts"\nkey = ["id"]\ndimension = 8\n')
    own = {"table": "parts", "config": config}
    found = patient.finding("missing index", **own)
    assert "public.part_1 has no vector index" in found.found
    patient.execute(found.mend)
    assert patient.findings("missing index", **own) == []
    assert {finding.found.split()[0] for finding in patient.findings("missing statistics", **own)} == {
        "public.parts",
        "public.part_0",
        "public.part_1",
    }
    assert patient.findings("rows without embedding", **own) == []


@pytest.mark.usefixtures("many")
def test_an_index_that_no_search_used_is_advice_until_one_does(patient: Patient) -> None:
    found = patient.finding("unused index")
    assert (found.severity, "was not used once since" in found.found) == ("advice", True)
    patient.execute(
        "SET enable_seqscan = off; SELECT FROM rag_chunks ORDER BY embedding <=> '[1,1,1,1,1,1,1,1]' LIMIT 1"
    )
    assert patient.findings("unused index") == []


@pytest.mark.usefixtures("many")
def test_an_application_that_does_not_search_here_yet_leaves_the_index_unused(patient: Patient) -> None:
    patient.settings |= {"vector_backend": "pinecone", "pinecone_api_key": "k", "pinecone_index_name": "i"}
    assert patient.findings("unused index") == []


def test_dead_rows_are_advice_and_serious_once_they_are_half(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.upkeep, "LEAST_DEAD", 100)
    patient.execute(
        "ALTER TABLE rag_chunks SET (autovacuum_enabled = off)",
        "DELETE FROM rag_chunks WHERE CAST(chunk_id AS integer) <= 100",
    )
    found = patient.finding("dead rows")
    assert (found.severity, "100 of 500 rows of rag_chunks are dead (20%)" in found.found) == ("advice", True)
    patient.execute("UPDATE rag_chunks SET content = 'new'")
    found = patient.finding("dead rows")
    assert (found.severity, found.mend) == ("serious", "VACUUM (ANALYZE) rag_chunks; amprenta-vectors index rebuild")
    patient.execute("VACUUM (ANALYZE) rag_chunks")
    assert patient.findings("dead rows") == []


def test_a_table_that_was_never_analysed_is_advice(engine: sa.Engine, upgraded_url: str) -> None:
    fresh = Patient(engine, upgraded_url)
    fresh.execute("ALTER TABLE rag_chunks SET (autovacuum_enabled = off)")
    assert fresh.findings("missing statistics") == []
    fresh.execute(FILL.format(rows=10))
    assert fresh.finding("missing statistics").mend == "ANALYZE public.rag_chunks"
    fresh.mend("missing statistics")


def test_a_cache_that_is_too_small_is_advice(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"fsync": "off", "autovacuum": "off", "shared_buffers": "1MB", "max_connections": "20"}
    small = EmbeddedPostgres(own_folder, settings)
    small.start()
    try:
        upgrade(Settings.load(database_url=small.url(), vector_dimension=8))
        monkeypatch.setattr(doctor.upkeep, "LEAST_BLOCKS", 1000)
        engine = sa.create_engine(small.url().replace("postgresql:", "postgresql+psycopg2:"))
        ill = Patient(engine, small.url())
        ill.execute(
            "INSERT INTO rag_chunks (chunk_id, content) SELECT n, repeat('text ', 200) FROM generate_series(1, 3000) n",
            *["SELECT sum(length(content)) FROM rag_chunks"] * 20,
        )
        found = ill.findings("cache hits")
        engine.dispose()
    finally:
        small.stop("immediate")
    assert any(
        "rag_chunks (table) came from shared_buffers (1MB), expected 95% or more" in each.found for each in found
    )


def test_sizes_stand_beside_the_memory_and_it_is_said_what_cannot_be_asked(patient: Patient) -> None:
    (note,) = patient.findings("sizes")
    assert note.severity == "note"
    assert "shared_buffers 128MB" in note.found
    assert "SQL cannot ask how much memory the server has" in note.found
    patient.execute("ALTER DATABASE upgraded SET effective_cache_size = '8kB'")
    assert [each.severity for each in patient.findings("sizes")] == ["advice", "note"]


def test_the_sizes_of_the_engines_own_tables_are_noted_the_largest_first(patient: Patient) -> None:
    patient.execute(
        "INSERT INTO shadow_query (primary_store, secondary_store, query, top_k, hits, primary_ms) "
        "SELECT 'a', 'b', array_fill(n, ARRAY[256]), 1, 1, 1 FROM generate_series(1, 500) AS n"
    )
    found = patient.finding("sizes of the engine")
    assert found.severity == "note"
    total, listed = re.fullmatch(r"the engine's own tables take (\d+ kB): (.*)", found.found).groups()  # type: ignore[union-attr]
    assert listed.startswith("shadow_query ")
    assert sorted(part.split()[0] for part in listed.split(", ")) == sorted(ENGINE_TABLES)
    assert int(total.split()[0]) > 500


def test_rows_without_embedding_are_advice_and_serious_where_none_has_one(patient: Patient) -> None:
    patient.execute("UPDATE rag_chunks SET embedding = NULL WHERE chunk_id = '1'")
    found = patient.finding("rows without embedding")
    assert (found.severity, "1 of 500 rows" in found.found) == ("advice", True)
    patient.execute("UPDATE rag_chunks SET embedding = NULL")
    assert patient.finding("rows without embedding").severity == "serious"
    pinecone = {"vector_backend": "pinecone", "pinecone_api_key": "k", "pinecone_index_name": "i"}
    patient.settings |= pinecone
    assert patient.finding("rows without embedding").severity == "advice"


def test_vectors_of_another_model_than_the_settings_name_are_serious(patient: Patient) -> None:
    patient.execute("UPDATE rag_chunks SET embedding_model = CASE WHEN chunk_id < '5' THEN 'a' ELSE 'b' END")
    assert patient.findings("other models") == []
    found = patient.finding("other models", embedding_model="a")
    assert (found.severity, found.mend) == ("serious", "export EMBEDDING_MODEL=b, or embed those rows again")


def test_a_similarity_that_no_row_can_reach_is_serious(patient: Patient) -> None:
    assert patient.finding("threshold", pgvector_similarity_threshold=1.5).severity == "serious"
    assert patient.findings("threshold", pgvector_similarity_threshold=0.9) == []


def begin_run(patient: Patient, state: str = "running", source: str | None = "pinecone:x") -> None:
    patient.execute("DELETE FROM migration_run")
    execute(
        patient.engine,
        "INSERT INTO migration_run (vector_table, target, state, desired_state, source, last_error) "
        "VALUES ('rag_chunks', 'rag_chunks.embedding', :state, 'running', :source, 'the key was refused')",
        state=state,
        source=source,
    )


@pytest.mark.parametrize(
    ("state", "source", "severity"),
    [("running", "x", "serious"), ("paused", "x", "serious"), ("planned", None, "advice"), ("finished", "x", None)],
)
def test_a_run_that_nobody_works_on_is_named_with_why_it_stopped(
    patient: Patient, state: str, source: str | None, severity: str | None
) -> None:
    begin_run(patient, state, source)
    found = patient.findings("unfinished runs")
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    for finding in found:
        assert "stopped by: the key was refused" in finding.found
        assert finding.mend.startswith("amprenta-vectors backfill --resume")


def test_a_run_that_is_worked_on_is_a_note(patient: Patient) -> None:
    begin_run(patient)
    patient.execute(
        "INSERT INTO migration_progress (run_id, batch, first_key, last_key, keys, status, owner, lease_expires_at) "
        "SELECT id, 1, 'a', 'b', '{a,b}', 'running', 'me', now() + interval '1 hour' FROM migration_run"
    )
    found = patient.finding("unfinished runs")
    assert (found.severity, found.mend) == ("note", "")


def test_a_run_whose_planner_is_at_work_is_worked_on(patient: Patient) -> None:
    begin_run(patient)
    patient.execute(
        "UPDATE migration_run SET plan_owner = 'me', plan_lease_expires_at = clock_timestamp() + interval '1 hour'"
    )
    found = patient.finding("unfinished runs")
    assert (found.severity, found.mend) == ("note", "")
    assert "by 1 process(es)" in found.found
    status = CliRunner().invoke(main, ["status"], env={"DATABASE_URL": patient.url})
    assert "1 process(es) at work" in status.output
    patient.execute("UPDATE migration_run SET plan_lease_expires_at = clock_timestamp() - interval '1 s'")
    assert patient.finding("unfinished runs").severity == "serious"


def test_a_run_that_waits_for_another_one_into_the_column_is_queued_and_not_dead(patient: Patient) -> None:
    begin_run(patient)
    patient.execute(
        "UPDATE migration_run SET plan_owner = 'me', plan_lease_expires_at = clock_timestamp() + interval '1 hour'",
        "INSERT INTO migration_run (vector_table, target, scope, state, desired_state, source) "
        "VALUES ('rag_chunks', 'rag_chunks.embedding', '{\"namespace\": \"b\"}', 'planned', 'running', 'pinecone:x')",
    )
    queued, _ = patient.findings("unfinished runs")
    assert (queued.severity, queued.mend) == ("note", "")
    assert "is queued behind another" in queued.found


def test_what_a_run_wrote_and_nobody_compared_is_named(patient: Patient) -> None:
    begin_run(patient, "finished")
    patient.execute(
        "INSERT INTO migration_progress (run_id, batch, first_key, last_key, keys, status, rows_written) "
        "SELECT id, 1, 'a', 'b', '{}', 'done', 3 FROM migration_run"
    )
    found = patient.finding("unverified")
    assert (found.severity, found.mend.partition(",")[0]) == ("advice", "amprenta-vectors backfill --resume")
    patient.execute("UPDATE migration_run SET verified_at = now()")
    assert patient.findings("unverified") == []


@pytest.mark.usefixtures("many")
def test_lists_that_do_not_suit_the_rows_are_serious_and_the_rebuild_mends_them(patient: Patient) -> None:
    patient.execute(
        f"DROP INDEX {INDEX}",
        f"CREATE INDEX {INDEX} ON rag_chunks USING ivfflat (embedding vector_cosine_ops) WITH (lists = 50)",
    )
    found = patient.finding("lists far off")
    assert (found.severity, found.mend) == ("serious", "amprenta-vectors index rebuild")
    assert "has 50 lists for about 500 rows; 1 suit them" in found.found
    assert CliRunner().invoke(main, ["index", "rebuild"], env={"DATABASE_URL": patient.url}).exit_code == 0
    assert patient.findings("lists far off") == []


def test_writes_that_the_other_store_has_not_got_are_serious_once_they_are_late(patient: Patient) -> None:
    patient.execute(
        "INSERT INTO vector_outbox (target, scope, key, operation) VALUES ('rag_chunks.embedding', '{}', 'k', 'delete')"
    )
    assert patient.finding("pending writes").severity == "note"
    patient.execute("UPDATE vector_outbox SET created_at = now() - interval '1 hour'")
    found = patient.finding("pending writes")
    assert (found.severity, found.mend) == ("serious", "amprenta-vectors outbox drain")
    patient.execute("UPDATE vector_outbox SET cleared_at = now()")
    assert patient.findings("pending writes") == []


def test_old_shadow_queries_are_advice_with_the_command_that_deletes_them(patient: Patient) -> None:
    patient.execute(
        "INSERT INTO shadow_query (primary_store, secondary_store, query, top_k, hits, primary_ms, at) "
        "SELECT 'a', 'b', '{1}', 1, 1, 1, now() - make_interval(days => n) FROM generate_series(28, 32) AS n"
    )
    found = patient.finding("old shadow queries")
    assert (found.severity, found.found) == ("advice", "3 row(s) of shadow_query are older than 30 days")
    assert found.mend == "amprenta-vectors prune --older-than 30d"
    typed = [*found.mend.split()[1:], "--yes"]
    assert CliRunner().invoke(main, typed, env={"DATABASE_URL": patient.url}).exit_code == 0
    assert patient.findings("old shadow queries") == []


@pytest.mark.parametrize(
    ("settings", "module", "install"),
    [
        ({"embedder": "wordllama"}, "wordllama", "pip install 'amprenta_vectors[sandbox]'"),
        ({"embedder": "gemini"}, "google.genai", "pip install 'amprenta_vectors[gemini]'"),
        ({"embedder": "ollama"}, "ollama", "pip install 'amprenta_vectors[ollama]'"),
        ({"vector_mode": "hybrid", "vector_secondary": "chroma"}, "chromadb", "pip install 'amprenta_vectors[chroma]'"),
        ({}, "pgvector", "pip install pgvector"),
        ({"vector_secondary": "pinecone"}, "pinecone", "pip install 'amprenta_vectors[pinecone]'"),
        ({"vector_secondary": "pinecone"}, "grpc", "pip install 'amprenta_vectors[pinecone]'"),
    ],
)
def test_a_missing_package_that_the_settings_need_is_serious(
    settings: dict[str, str], module: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Settings.load(vector_backend="pgvector", **settings)
    assert list(doctor.configuration.packages(given)) == []
    monkeypatch.setitem(sys.modules, module, None)
    (found,) = doctor.configuration.packages(given)
    assert (found.severity, found.mend) == ("serious", install)


def test_a_package_that_the_settings_do_not_need_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pinecone", "grpc", "wordllama"):
        monkeypatch.setitem(sys.modules, module, None)
    assert list(doctor.configuration.packages(Settings.load(vector_backend="pgvector"))) == []


def test_settings_that_pinecone_needs_are_named(patient: Patient) -> None:
    patient.settings["vector_backend"] = "pinecone"
    found = patient.findings("credentials")
    assert [finding.mend for finding in found] == ["export PINECONE_API_KEY=…", "export PINECONE_INDEX_NAME=…"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"postgres_host": "elsewhere"}, "POSTGRES_HOST is 'elsewhere' and is not used"),
        ({"migration_database_url": "postgresql://h/other"}, "MIGRATION_DATABASE_URL names database 'other'"),
    ],
)
def test_a_database_that_is_named_twice_and_differently_is_advice(settings: dict[str, str], message: str) -> None:
    found = list(doctor.configuration.databases(Settings.load(database_url="postgresql://h/app", **settings)))
    assert [(finding.severity, message in finding.found) for finding in found] == [("advice", True)]


def test_what_stands_in_the_way_of_looking_is_a_finding(database_url: str, tmp_path: Path) -> None:
    settings = {"vector_backend": "pgvector"}
    nowhere = examine(Settings.load(database_url=f"postgresql:///x?host={tmp_path}", **settings))
    assert [(finding.severity, finding.check) for finding in nowhere] == [("serious", "connection")]
    unset = examine(Settings.load(**settings))
    assert "no database is configured" in unset[0].found
    bare = {finding.check: finding for finding in examine(Settings.load(database_url=database_url, **settings))}
    assert bare["table"].mend == "alembic upgrade head"
    assert "extension vector is not in this database" in bare["versions"].found


def test_a_dimension_that_the_column_does_not_have_is_serious(patient: Patient) -> None:
    assert "VECTOR_DIMENSION is 9" in patient.finding("table", vector_dimension=9).found


@pytest.fixture
def role(patient: Patient) -> Iterator[str]:
    patient.execute("CREATE ROLE visitor LOGIN")
    yield "visitor"
    patient.execute("DROP OWNED BY visitor", "DROP ROLE visitor")


def test_a_check_that_this_role_may_not_make_is_said_and_the_others_are_made(patient: Patient, role: str) -> None:
    begin_run(patient)
    patient.execute(
        f"GRANT SELECT ON migration_run, migration_index, migration_progress, migration_quarantine TO {role}"
    )
    patient.settings["database_url"] = patient.url.replace("//postgres@", f"//{role}@")
    found = {finding.check: finding for finding in patient.findings()}
    assert "this check could not be made" in found["rows without embedding"].found
    assert found["rows without embedding"].severity == "advice"
    assert "could not be made" in found["pending writes"].found
    assert found["unfinished runs"].severity == "serious"


def test_a_role_that_may_only_read_can_make_every_check(patient: Patient, role: str) -> None:
    patient.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    patient.settings["database_url"] = patient.url.replace("//postgres@", f"//{role}@")
    assert {finding.check for finding in patient.findings()} == {"versions", "sizes", "sizes of the engine"}


def test_rows_that_row_security_hides_are_serious(patient: Patient, role: str) -> None:
    patient.execute(
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}", "ALTER TABLE rag_chunks ENABLE ROW LEVEL SECURITY"
    )
    patient.settings["database_url"] = patient.url.replace("//postgres@", f"//{role}@")
    assert patient.finding("visible rows").severity == "serious"


def test_every_check_says_in_a_sentence_what_it_looks_for() -> None:
    checks: list[Callable[..., Any]] = [*doctor.configuration.CHECKS, *doctor.server.CHECKS, *TABLE_CHECKS]
    names = [check.__name__ for check in checks]
    assert len(set(names)) == len(names)
    assert all(check.__doc__ for check in checks)
