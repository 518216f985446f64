"""A key column of another collation than the database's is found by its index wherever rows are found by their key."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import StubSource, execute, run_job, to_job, to_vectors
from databases import janitor
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.verify.sides import compare_sides, source_side
from amprenta_vectors.backfill.writing.sink import Sink
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.expressions import among, in_scope, to_clause
from amprenta_vectors.schema.keymaps import Identity, LookUp
from amprenta_vectors.schema.row_keys import EmptyRows
from amprenta_vectors.schema.slice import Slice
from amprenta_vectors.schema.vector_table import KeyRule, VectorTable

ROWS = 6000
KEYS = [f"Key {number:05d} ß" for number in range(ROWS)]
COLLATIONS = ["C", "ucs_basic", "pg_unicode_fast", "default"]
NOTES = VectorTable(name="notes", table="notes", key=("id",), scope=("tenant",), dimension=3)


@pytest.fixture(scope="module", params=COLLATIONS)
def collated_template(
    request: pytest.FixtureRequest, postgres_server: EmbeddedPostgres, upgraded_template: str
) -> Iterator[str]:
    """The name of a database with six tenants of 1,000 rows each, of which every other one has its embedding."""
    with janitor(postgres_server, "collated_template", upgraded_template, as_template=True) as template:
        engine = sa.create_engine(
            sa.make_url(postgres_server.url(template.dbname)).set(drivername="postgresql+psycopg2")
        )
        fill(engine, request.param)
        engine.dispose()
        yield template.dbname


@pytest.fixture
def collated_engine(postgres_server: EmbeddedPostgres, collated_template: str) -> Iterator[sa.Engine]:
    with janitor(postgres_server, "collated", collated_template) as database:
        engine = create_engine(Settings.load(database_url=postgres_server.url(database.dbname)))
        yield engine
        engine.dispose()


@pytest.fixture
def collated(collated_engine: sa.Engine) -> VectorTable:
    """The table of ``collated_template``, in a database of this test's own."""
    with collated_engine.connect() as connection:
        return resolve_table(connection, NOTES)


def fill(engine: sa.Engine, collation: str) -> None:
    if not execute(engine, "SELECT 1 FROM pg_collation WHERE collname = :name", name=collation):
        pytest.skip(f"this server has no collation {collation}")
    execute(
        engine,
        f'CREATE TABLE notes (id varchar(40) COLLATE "{collation}", tenant text COLLATE "{collation}", '
        "embedding vector(3), pad text DEFAULT repeat('x', 300), PRIMARY KEY (tenant, id))",
    )
    execute(
        engine,
        "INSERT INTO notes (id, tenant, embedding) SELECT key, 'tenant ' || (n - 1) % 6, "
        "CASE WHEN n % 4 < 2 THEN '[1,2,3]'::vector END "
        "FROM unnest(CAST(:keys AS text[])) WITH ORDINALITY AS given(key, n)",
        keys=KEYS,
    )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE notes")


def explain(connection: Connection, statement: Any, **values: Any) -> str:
    """The plan of a statement, as the driver sends it."""
    compiled = statement.compile(connection.engine, compile_kwargs={"render_postcompile": True})
    cursor: Any = connection.connection.cursor()
    cursor.execute("EXPLAIN (COSTS off) " + str(compiled), {**compiled.params, **values})
    return "\n".join(row[0] for row in cursor)


def assert_found_by_index(plan: str, columns: Sequence[str]) -> None:
    assert "Seq Scan on notes" not in plan, plan
    (condition,) = re.findall(r"Index Cond: (.*)", plan)[:1] or [""]
    assert all(name in condition for name in columns), plan


def scope_of(number: int) -> dict[str, str]:
    return {"tenant": f"tenant {number}"}


def batch_of(keys: Sequence[str]) -> VectorBatch:
    return VectorBatch(source_keys=keys, vectors=np.ones((len(keys), 3), np.float32), keys=[(key,) for key in keys])


@pytest.mark.parametrize("insert", [False, True], ids=["update", "upsert"])
def test_a_batch_finds_its_rows_by_the_index(collated: VectorTable, collated_engine: sa.Engine, insert: bool) -> None:
    sink = Sink(Slice(collated, scope_of(1), Identity()), None, insert=insert)
    keys = KEYS[1:1000:6]
    with collated_engine.begin() as connection:
        sink.load(connection, batch_of(keys))
        written, refused = sink.write(connection, batch_of(keys))
        # Of every two rows one waits; the statement is planned under the settings that the write has made.
        assert (written, refused) == (len(keys) // 2 + len(keys) % 2, [])
        plan = explain(connection, sink._statement, start=0, end=1000)
    if insert:
        assert "Conflict Arbiter Indexes: notes_pkey" in plan
    else:
        assert_found_by_index(plan, ("id", "tenant"))


@pytest.mark.parametrize("type_", ["bigint", "uuid", "character(36)", "numeric(38)"])
def test_a_key_of_another_type_is_found_by_its_index(type_: str, engine: sa.Engine) -> None:
    keys = [str(uuid.UUID(int=n)) if type_ == "uuid" else str(n) for n in range(1000)]
    execute(
        engine, f"CREATE TABLE typed (id {type_} PRIMARY KEY, embedding vector(3), pad text DEFAULT repeat('x', 300))"
    )
    execute(engine, f"INSERT INTO typed (id) SELECT CAST(unnest(CAST(:keys AS text[])) AS {type_})", keys=keys)
    with engine.begin() as connection:
        connection.exec_driver_sql("ANALYZE typed")
        table = resolve_table(connection, VectorTable(name="typed", table="typed", key=("id",), dimension=3))
        sink = Sink(Slice(table, {}, Identity()), None, insert=False)
        sink.load(connection, batch_of(keys[:50]))
        assert sink.write(connection, batch_of(keys[:50])) == (50, [])
        plan = explain(connection, sink._statement, start=0, end=1000)
        page = explain(connection, EmptyRows(engine, Slice(table, {}, Identity()))._page((keys[900],)))
    assert "Index Cond: (id = " in plan, plan
    assert "Index Cond: (id > " in page or "Index Cond: (ROW(id) > " in page, page


def test_a_page_of_rows_that_wait_is_read_in_the_order_of_the_index(
    collated: VectorTable, collated_engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amprenta_vectors.schema.row_keys.KEYSET_PAGE", 100)
    rows = EmptyRows(collated_engine, Slice(collated, scope_of(1), Identity()))
    with collated_engine.connect() as connection:
        plan = explain(connection, rows._page((KEYS[500],)))
    assert_found_by_index(plan, ("id", "tenant"))
    # Ordered by the index: nothing is left to sort.
    assert "Sort" not in plan, plan
    listed = [key for page, _ in rows.iter_keys() for key in page]
    assert sorted(listed) == [key for n, key in enumerate(KEYS, 1) if (n - 1) % 6 == 1 and n % 4 >= 2]
    assert len(set(listed)) == len(listed)


def test_a_verification_reads_one_scope_by_the_index(collated: VectorTable, collated_engine: sa.Engine) -> None:
    there = source_side(collated)
    with collated_engine.begin() as connection:
        there.create(connection)
        connection.exec_driver_sql("INSERT INTO amprenta_source SELECT id, id FROM notes WHERE tenant = 'tenant 1'")
        connection.exec_driver_sql("ANALYZE amprenta_source")
        statement = compare_sides(connection, Slice(collated, scope_of(1), Identity()), there)
        plan = explain(connection, statement)
        found = connection.execute(statement).all()
    assert_found_by_index(plan, ("tenant",))
    assert "Nested Loop" not in plan, plan
    assert {row.source for row in found} == {key for n, key in enumerate(KEYS, 1) if (n - 1) % 6 == 1 and n % 4 < 2}


def test_keys_and_look_ups_are_found_by_the_index(collated: VectorTable, collated_engine: sa.Engine) -> None:
    target = to_clause(collated)
    statement = sa.select(target.c.id).where(
        among(collated, target, "id", KEYS[1:60:6]), *in_scope(collated, target, scope_of(1))
    )
    with collated_engine.connect() as connection:
        assert_found_by_index(explain(connection, statement), ("id", "tenant"))
    by_id = replace(collated, key_rule=KeyRule("lookup", lookup="id"))
    found = LookUp(collated_engine, by_id, scope_of(1)).apply(batch_of(KEYS[:12]))
    assert found.keys == [(KEYS[1],), (KEYS[7],)]


def test_a_run_and_its_keys_from_the_table_fill_every_row(collated: VectorTable, collated_engine: sa.Engine) -> None:
    source = StubSource(dict(zip(KEYS, to_vectors(ROWS, 3)[:, None], strict=True)), 3, page=1000)
    job = to_job(collated_engine, source, table=collated, scope=scope_of(2), keys_from="table", batch_size=200)
    summary = run_job(collated_engine, job)
    assert (summary.counts.written, summary.errors) == (500, {})
    assert execute(collated_engine, "SELECT count(*) - count(embedding) FROM notes WHERE tenant = 'tenant 2'") == [(0,)]
