"""The index outside revisions: built, rebuilt, dropped and brought back as it was."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from conftest import janitor

from amprenta_vectors.backfill.database.index_plan import BuildPlan, Shape, plan_build
from amprenta_vectors.cli import main
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.registry import RAG_CHUNKS

INSERT = sa.text("""
    INSERT INTO rag_chunks (chunk_id, embedding)
    SELECT n, ARRAY(SELECT random() + 0 * (n + d) FROM generate_series(1, 8) d)::vector
    FROM generate_series(1, 3000) n
""")


@pytest.fixture(scope="module")
def indexed_template(postgres_server: EmbeddedPostgres, upgraded_template: str) -> Iterator[str]:
    """The name of a database at head whose 3000 rows are indexed; made once."""
    with janitor(postgres_server, "indexed_template", as_template=True, template=upgraded_template) as template:
        template.load(load_rows)
        yield template.dbname


def load_rows(*, host: str, port: int, user: str, dbname: str, **_: object) -> None:
    """Fill the database that each test clones; its index is built over the rows, which is faster than row by row."""
    engine = sa.create_engine(
        sa.URL.create("postgresql", user, database=dbname, query={"host": host, "port": str(port)})
    )
    with engine.begin() as connection:
        (definition,) = connection.scalars(sa.text("SELECT pg_get_indexdef('idx_rag_chunks_embedding'::regclass)"))
        connection.execute(sa.text("DROP INDEX idx_rag_chunks_embedding"))
        connection.execute(sa.text("SELECT setseed(0.5)"))
        connection.execute(INSERT)
        connection.exec_driver_sql(definition)
    engine.dispose()


@pytest.fixture
def upgraded_url(postgres_server: EmbeddedPostgres, indexed_template: str) -> Iterator[str]:
    with janitor(postgres_server, "indexed", template=indexed_template) as database:
        yield postgres_server.url(database.dbname)


@pytest.fixture
def rows(engine: sa.Engine) -> sa.Engine:
    """3000 rows and their index."""
    return engine


def run(url: str, *arguments: str) -> str:
    result = CliRunner().invoke(main, ["index", *arguments], env={"DATABASE_URL": url})
    assert result.exit_code == 0, result.output
    return result.output


def definitions(engine: sa.Engine) -> list[tuple[str, str]]:
    with engine.connect() as connection:
        found = connection.execute(
            sa.text("""
                SELECT c.oid::text, indexdef FROM pg_indexes JOIN pg_class c ON c.relname = indexname
                JOIN pg_index i ON i.indexrelid = c.oid AND i.indisvalid
                WHERE tablename = 'rag_chunks' AND indexdef LIKE '%embedding%' ORDER BY indexname
            """)
        )
        return [(row[0], row[1]) for row in found]


def test_a_dropped_index_comes_back_as_it_was(rows: sa.Engine, upgraded_url: str) -> None:
    before = definitions(rows)
    assert "back with: amprenta-vectors index build" in run(upgraded_url, "drop")
    assert definitions(rows) == []
    assert "is indexed" in run(upgraded_url, "build", "--m", "4")
    assert [one[1] for one in definitions(rows)] == [one[1] for one in before]


def test_rebuild_makes_every_index_anew(rows: sa.Engine, upgraded_url: str) -> None:
    before = definitions(rows)
    assert "rebuilt:" in run(upgraded_url, "rebuild")
    after = definitions(rows)
    assert [one[1] for one in after] == [one[1] for one in before]
    assert after[0][0] != before[0][0]


def test_without_any_index_one_is_built_with_the_options_given(rows: sa.Engine, upgraded_url: str) -> None:
    with rows.begin() as connection:
        connection.execute(sa.text("DROP INDEX idx_rag_chunks_embedding"))
    run(upgraded_url, "build", "--m", "8", "--ef-construction", "32")
    assert "m='8', ef_construction='32'" in definitions(rows)[0][1]


def test_ivfflat_takes_its_lists_from_the_number_of_rows(rows: sa.Engine, upgraded_url: str) -> None:
    with rows.begin() as connection:
        connection.execute(sa.text("DROP INDEX idx_rag_chunks_embedding"))
    run(upgraded_url, "build", "--method", "ivfflat")
    assert "USING ivfflat" in definitions(rows)[0][1]
    assert "lists='3'" in definitions(rows)[0][1]


def test_rebuilding_where_there_is_none_names_the_command(rows: sa.Engine, upgraded_url: str) -> None:
    with rows.begin() as connection:
        connection.execute(sa.text("DROP INDEX idx_rag_chunks_embedding"))
    assert "index build" in run(upgraded_url, "rebuild")


@pytest.mark.parametrize("command", ["build", "build anew", "rebuild"])
def test_what_a_build_will_take_is_said_before_it_begins(rows: sa.Engine, upgraded_url: str, command: str) -> None:
    if command == "build":
        run(upgraded_url, "drop")
    elif command == "build anew":
        with rows.begin() as connection:
            connection.execute(sa.text("DROP INDEX idx_rag_chunks_embedding"))
    options = ("--maintenance-work-mem", "96MB", "--index-workers", "0")
    said = run(upgraded_url, command.split()[0], *options)
    plan, result = said.rsplit("\n", 2)[0], said.splitlines()[-1]
    assert result.startswith(("rebuilt:", "rag_chunks.embedding is indexed"))
    assert re.search(r"^index \w+ \(hnsw\) on rag_chunks.embedding: 3,000 rows × 8 dimensions$", plan, re.MULTILINE)
    assert "memory: about 2 MB of the 96 MB of maintenance_work_mem" in plan
    assert "workers: 0 beside the session that builds, limited by" in plan
    assert re.search(r"time: .*\n  disk: about .*; SQL cannot ask what is free", plan)


def test_a_graph_that_does_not_fit_is_said_with_what_would_suffice(rows: sa.Engine, upgraded_url: str) -> None:
    said = run(upgraded_url, "rebuild", "--maintenance-work-mem", "1MB")
    assert "it does not fit: what is beyond is built on disk" in said
    assert "AMPRENTA_MAINTENANCE_WORK_MEM=4MB" in said
    assert "shared_buffers 128MB" in said
    shape = Shape("hnsw", {"m": 16}, storage="vector")
    assert OUTGROWN not in build(rows, shape, maintenance_work_mem="4MB")[1]
    assert OUTGROWN in build(rows, shape, maintenance_work_mem="1MB")[1]


@pytest.mark.parametrize(
    ("value", "message"),
    [("lots", "AMPRENTA_MAINTENANCE_WORK_MEM: "), ("99999TB", "setting up the build of the index: ")],
)
def test_memory_that_postgresql_does_not_accept_is_refused(
    rows: sa.Engine, upgraded_url: str, value: str, message: str
) -> None:
    before = definitions(rows)
    arguments = ["index", "rebuild", "--maintenance-work-mem", value]
    result = CliRunner().invoke(main, arguments, env={"DATABASE_URL": upgraded_url})
    assert result.exit_code == 2
    assert message in str(result.exception or "") + result.output
    assert definitions(rows) == before


@pytest.fixture
def plain(engine: sa.Engine) -> sa.Engine:
    """The same rows without any index of their vectors."""
    with engine.begin() as connection:
        connection.execute(sa.text("DROP INDEX idx_rag_chunks_embedding"))
    return engine


def build(rows: sa.Engine, shape: Shape, **settings: str) -> tuple[BuildPlan, str]:
    """The plan for an index, and what PostgreSQL says while it is built."""
    name = "planned"
    with rows.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("SET client_min_messages = debug1"))
        for setting, value in settings.items():
            connection.execute(sa.text("SELECT set_config(:name, :value, false)"), {"name": setting, "value": value})
        plan = plan_build(connection, resolve_table(connection, RAG_CHUNKS), name, shape)
        # On the driver's own cursor: SQLAlchemy clears the notices.
        driver: Any = connection.connection.dbapi_connection
        options = ", ".join(f"{option} = {value}" for option, value in shape.options.items())
        driver.cursor().execute(
            f"CREATE INDEX {name} ON rag_chunks USING {shape.method} (embedding vector_cosine_ops) WITH ({options})"
        )
        said = "".join(driver.notices)
        connection.exec_driver_sql(f"DROP INDEX {name}")
        connection.invalidate()
    return plan, said


OUTGROWN = "hnsw graph no longer fits into maintenance_work_mem"


def test_the_memory_that_is_said_is_about_what_a_graph_takes(plain: sa.Engine) -> None:
    shape, block = Shape("hnsw", {"m": 8}, storage="vector"), 1024 * 1024
    needed = build(plain, shape, maintenance_work_mem="64MB")[0].needed_bytes
    for given, outgrows in ((needed * 1.1 + block, False), (needed * 0.8, True)):
        plan, said = build(plain, shape, maintenance_work_mem=f"{int(given / 1024)}kB")
        assert (plan.fits, OUTGROWN in said) == (not outgrows, outgrows), said


@pytest.mark.parametrize(
    ("settings", "workers", "limit"),
    [
        ({"max_parallel_maintenance_workers": "4"}, 1, "32 MB of maintenance_work_mem for each"),
        ({"max_parallel_maintenance_workers": "4", "maintenance_work_mem": "1GB"}, 2, "the table's size"),
        (
            {"max_parallel_maintenance_workers": "1", "maintenance_work_mem": "1GB"},
            1,
            "max_parallel_maintenance_workers",
        ),
        ({"max_parallel_maintenance_workers": "4", "max_parallel_workers": "0"}, 0, "max_parallel_workers"),
    ],
)
def test_the_workers_that_are_named_are_those_that_postgresql_asks_for(
    plain: sa.Engine, settings: dict[str, str], workers: int, limit: str
) -> None:
    small = {"min_parallel_table_scan_size": "100kB", "maintenance_work_mem": "64MB"}
    plan, said = build(plain, Shape("hnsw", {"m": 4}, storage="vector"), **{**small, **settings})
    assert (plan.workers, plan.workers_limit) == (workers, limit)
    asked = re.search(r"with request for (\d+) parallel worker", said)
    assert (int(asked[1]) if asked else 0) == workers or settings.get("max_parallel_workers") == "0", said


def test_a_table_that_sets_its_own_workers_is_believed(plain: sa.Engine) -> None:
    with plain.begin() as connection:
        connection.execute(sa.text("ALTER TABLE rag_chunks SET (parallel_workers = 3)"))
    settings = {"max_parallel_maintenance_workers": "8", "maintenance_work_mem": "1GB"}
    plan, said = build(plain, Shape("hnsw", {"m": 4}, storage="vector"), **settings)
    assert (plan.workers, plan.workers_limit) == (3, "the table's parallel_workers")
    assert "with request for 3 parallel workers" in said


def test_of_ivfflat_the_memory_is_that_of_finding_centres(plain: sa.Engine) -> None:
    shape = Shape("ivfflat", {"lists": 1000}, storage="vector")
    plan, _ = build(plain, shape, maintenance_work_mem="64MB")
    assert (plan.method, plan.fits) == ("ivfflat", True)
    with pytest.raises(psycopg2.Error, match=r"memory required is \d+ MB") as caught:
        build(plain, shape, maintenance_work_mem="1MB")
    required = int(re.findall(r"memory required is (\d+) MB", str(caught.value))[0]) * 1024 * 1024
    assert plan.needed_bytes == pytest.approx(required, rel=0.2)
