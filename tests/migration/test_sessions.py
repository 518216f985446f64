"""The operations in an application's own revisions: its session, its transaction and its readers are left alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from fingerprint import fingerprint
from migrating import Database, wait_until
from sqlalchemy.ext.asyncio import create_async_engine

from amprenta_vectors.ddl import restore
from amprenta_vectors.errors import AmprentaError
from amprenta_vectors.pg import sessions

LIMITS = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
DRIVERS = ("psycopg2", "psycopg", "asyncpg")

Revision = Callable[[Any], object]


def migrate(url: str, *revisions: Revision, driver: str = "psycopg2") -> None:
    """Run revisions one after the other, each in a transaction, as `alembic upgrade` of an application does."""
    named = sa.engine.make_url(url.replace("postgresql:", f"postgresql+{driver}:"))
    if driver == "asyncpg":
        asyncio.run(_migrate_asynchronously(named, revisions))
        return
    engine = sa.create_engine(named, poolclass=sa.NullPool)
    with engine.connect() as connection:
        _run(connection, revisions)


async def _migrate_asynchronously(url: sa.URL, revisions: tuple[Revision, ...]) -> None:
    engine = create_async_engine(url, poolclass=sa.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(_run, revisions)
    await engine.dispose()


def _run(connection: sa.Connection, revisions: tuple[Revision, ...]) -> None:
    context = MigrationContext.configure(connection, opts={"transaction_per_migration": True})
    for revision in revisions:
        with context.begin_transaction(_per_migration=True):
            revision(Operations(context))


@pytest.fixture
def docs(db: Database) -> Database:
    """A database with pgvector and two tables of an application's, 50 rows each."""
    db.execute("CREATE EXTENSION vector")
    for table in ("docs", "notes"):
        db.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, body text)")
        db.execute(f"INSERT INTO {table} SELECT n, 'text' FROM generate_series(1, 50) n")
    return db


def add(op: Any) -> None:
    op.add_vector_column("docs", "embedding", 3, beside=[sa.Column("model", sa.Text)])


def drop(op: Any) -> None:
    op.drop_vector_column("docs", "embedding", beside=["model"])


def fill(db: Database) -> None:
    db.execute("UPDATE docs SET embedding = '[1,2,3]', model = 'm'")


@contextmanager
def held(db: Database, table: str, mode: str = "ACCESS SHARE") -> Iterator[None]:
    """Another session that has a lock on a table."""
    with closing(psycopg2.connect(db.url)) as holder, holder.cursor() as cursor:
        cursor.execute(f"LOCK TABLE {table} IN {mode} MODE")
        yield


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_operations_work_on_every_driver_there_and_back(docs: Database, driver: str) -> None:
    def build(op: Any) -> None:
        op.create_vector_index("docs_i", "docs", "embedding", where="body <> '%:a'")

    def replace(op: Any) -> None:
        op.replace_vector_index("docs_i", "docs", "embedding", options={"m": 8}, where="body <> '%:a'")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("amprenta_vectors.ddl.vector_index.STORES_LOOK_SECONDS", 0.0)
        migrate(docs.url, add, build, replace, driver=driver)
    fill(docs)
    assert "m='8'" in docs.scalar("SELECT pg_get_indexdef('docs_i'::regclass)")
    migrate(docs.url, lambda op: op.drop_vector_index("docs_i"), drop, driver=driver)
    docs.execute("UPDATE docs SET body = 'new' WHERE id = 7")
    migrate(docs.url, add, driver=driver)
    assert docs.execute("SELECT id FROM docs WHERE embedding IS NULL OR model IS NULL") == [(7,)]
    migrate(docs.url, drop, driver=driver)
    assert set(docs.columns("docs")) == {"id", "body", "embedding_retired", "model_retired"}


@pytest.mark.parametrize("driver", DRIVERS)
def test_who_is_waited_for_is_named_on_every_driver(
    docs: Database, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "GIVE_UP_SECONDS", 3.0)
    monkeypatch.setattr("amprenta_vectors.pg.blockers.LOOK_SECONDS", 0.05)
    with held(docs, "docs"), pytest.raises(AmprentaError, match=r"another session held the table .*: pid \d+ \(user"):
        migrate(docs.url, add, driver=driver)
    assert "embedding" not in docs.columns("docs")


def test_time_limits_are_as_they_were_afterwards(docs: Database) -> None:
    found: list[tuple[str, ...]] = []

    def limits(op: Any) -> None:
        found.append(tuple(op.get_bind().execute(sa.text(f"SHOW {name}")).scalar() for name in LIMITS))

    def revision(op: Any) -> None:
        for name in LIMITS:
            op.execute(f"SET {name} = '9s'")
        add(op)
        limits(op)
        drop(op)
        limits(op)

    def another(op: Any) -> None:
        add(op)
        op.create_vector_index("docs_i", "docs", "embedding")
        limits(op)
        op.drop_vector_index("docs_i")
        limits(op)

    migrate(docs.url, revision, another)
    assert found == [("9s", "9s", "9s")] * 4


def test_a_plain_operation_after_ours_meets_the_roles_own_limit(docs: Database) -> None:
    name = docs.scalar("SELECT current_database()")
    docs.execute(f"ALTER DATABASE {name} SET lock_timeout = '300ms'")

    def revision(op: Any) -> None:
        add(op)
        op.add_column("notes", sa.Column("state", sa.Text))

    with held(docs, "notes"), pytest.raises(sa.exc.DBAPIError, match="lock timeout"):
        migrate(docs.url, revision)
    assert "embedding" not in docs.columns("docs")


def test_a_short_limit_on_statements_does_not_end_the_tries(docs: Database) -> None:
    name = docs.scalar("SELECT current_database()")
    docs.execute(f"ALTER DATABASE {name} SET statement_timeout = '1s'")
    with held(docs, "docs"):
        upgrade = threading.Thread(target=migrate, args=(docs.url, add))
        upgrade.start()
        tries = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'docs'::regclass"
        for waiting in (1, 0, 1):  # one try, the pause after it, another one
            wait_until(lambda waiting=waiting: docs.scalar(tries) == waiting)
    upgrade.join()
    assert "embedding" in docs.columns("docs")


def test_the_first_of_two_tables_is_not_closed_while_the_second_is_waited_for(docs: Database) -> None:
    failed: list[BaseException] = []

    def both(op: Any) -> None:
        add(op)
        op.add_vector_column("notes", "embedding", 3)

    def upgrade() -> None:
        try:
            migrate(docs.url, both)
        except AmprentaError as error:
            failed.append(error)

    with held(docs, "notes"):
        thread = threading.Thread(target=upgrade)
        thread.start()
        wait_until(lambda: docs.scalar("SELECT count(*) FROM pg_locks WHERE NOT granted") == 1)
        # A reader of the first table comes; it is let through without the second one's holder going.
        assert docs.scalar("SELECT count(*) FROM docs") == 50
        thread.join()
    assert "others wait for what this transaction locked before" in str(failed[0])
    assert "embedding" not in docs.columns("docs")
    migrate(docs.url, both)
    assert "embedding" in docs.columns("notes")


@pytest.mark.parametrize("again", [False, True], ids=["first upgrade", "second upgrade"])
def test_what_a_revision_did_before_is_not_committed(docs: Database, again: bool) -> None:
    if again:
        migrate(docs.url, add)
        fill(docs)
        migrate(docs.url, drop)
    before = fingerprint(docs)

    def revision(op: Any) -> None:
        op.create_table("theirs", sa.Column("id", sa.Integer))
        add(op)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        migrate(docs.url, revision)
    assert not docs.columns("theirs")
    assert "embedding" not in docs.columns("docs")
    if not again:
        assert fingerprint(docs) == before


def test_a_retirement_that_is_rolled_back_has_not_happened(docs: Database) -> None:
    migrate(docs.url, add)
    fill(docs)
    before = fingerprint(docs)

    def revision(op: Any) -> None:
        drop(op)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        migrate(docs.url, revision)
    assert fingerprint(docs) == before


UPDATED = {
    "none": None,
    "naive": "timestamp",
    "naive, whole seconds": "timestamp(0)",
    "aware": "timestamptz",
    "aware, whole seconds": "timestamptz(0)",
    "a day": "date",
}


@pytest.mark.parametrize("type_", UPDATED.values(), ids=UPDATED.keys())
@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Etc/GMT+12"])
def test_a_row_that_changed_meanwhile_is_null_whatever_dates_it_and_in_whatever_zone(
    docs: Database, type_: str | None, zone: str
) -> None:
    name = docs.scalar("SELECT current_database()")
    docs.execute(f"ALTER DATABASE {name} SET TimeZone = '{zone}'")
    if type_:
        docs.execute(f"ALTER TABLE docs ADD updated_at {type_} DEFAULT now()")
    migrate(docs.url, add)
    fill(docs)
    migrate(docs.url, drop)
    docs.execute("UPDATE docs SET body = 'new'" + (", updated_at = now()" if type_ else "") + " WHERE id IN (3, 4)")
    docs.execute("INSERT INTO docs (id, embedding_retired) VALUES (99, '[9,9,9]')")
    migrate(docs.url, add)
    assert docs.execute("SELECT id FROM docs WHERE embedding IS NULL ORDER BY id") == [(3,), (4,), (99,)]


@pytest.mark.parametrize(
    ("type_", "emptied"), [(None, 50), ("timestamp", 50), ("date", 50), ("timestamptz", 2), ("timestamptz(0)", 2)]
)
def test_on_another_server_a_time_with_its_zone_tells_and_nothing_else_does(
    docs: Database, monkeypatch: pytest.MonkeyPatch, type_: str | None, emptied: int
) -> None:
    if type_:
        docs.execute(f"ALTER TABLE docs ADD updated_at {type_} DEFAULT now()")
    migrate(docs.url, add)
    fill(docs)
    if type_:
        docs.execute("UPDATE docs SET updated_at = now() - interval '1 day'")
    migrate(docs.url, drop)
    docs.execute("UPDATE docs SET body = 'new'" + (", updated_at = now()" if type_ else "") + " WHERE id IN (3, 4)")
    monkeypatch.setattr(restore, "_IDENTIFIER", sa.text("SELECT CAST(7 AS bigint)"))
    migrate(docs.url, add)
    assert docs.scalar("SELECT count(*) FROM docs WHERE embedding IS NULL") == emptied


def test_a_transaction_that_began_before_the_downgrade_and_writes_after_it_changed_its_rows(docs: Database) -> None:
    migrate(docs.url, add)
    fill(docs)
    with closing(psycopg2.connect(docs.url)) as early, early.cursor() as cursor:
        cursor.execute("SAVEPOINT s")
        cursor.execute("UPDATE notes SET body = 'new' WHERE id = 1")
        migrate(docs.url, drop)
        cursor.execute("UPDATE docs SET body = 'new' WHERE id = 5")
        early.commit()
    migrate(docs.url, add)
    assert docs.execute("SELECT id FROM docs WHERE embedding IS NULL") == [(5,)]


def test_rows_of_partitions_are_told_apart_as_well(db: Database) -> None:
    db.execute("CREATE EXTENSION vector")
    db.execute("CREATE TABLE docs (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    db.execute("CREATE TABLE docs_1 PARTITION OF docs FOR VALUES FROM (0) TO (10)")
    db.execute("CREATE TABLE docs_2 PARTITION OF docs FOR VALUES FROM (10) TO (100)")
    db.execute("INSERT INTO docs SELECT n, 'text' FROM generate_series(1, 50) n")
    migrate(db.url, add)
    fill(db)
    migrate(db.url, drop)
    db.execute("UPDATE docs SET body = 'new' WHERE id IN (5, 15)")
    migrate(db.url, add)
    assert db.execute("SELECT id FROM docs WHERE embedding IS NULL ORDER BY id") == [(5,), (15,)]


def test_a_replaced_index_is_there_all_the_time(docs: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amprenta_vectors.ddl.vector_index.STORES_LOOK_SECONDS", 0.5)
    migrate(docs.url, add, lambda op: op.create_vector_index("docs_i", "docs", "embedding"))
    fill(docs)
    serving, stop = [], threading.Event()

    def look() -> None:
        valid = "SELECT count(*) FROM pg_index WHERE indrelid = 'docs'::regclass AND indisvalid"
        while not stop.is_set():
            serving.append(docs.scalar(valid) - 1)  # less that of the primary key

    watcher = threading.Thread(target=look)
    watcher.start()
    migrate(docs.url, lambda op: op.replace_vector_index("docs_i", "docs", "embedding", method="ivfflat"))
    stop.set()
    watcher.join()
    assert min(serving) == 1
    assert max(serving) == 2
    assert "USING ivfflat" in docs.scalar("SELECT pg_get_indexdef('docs_i'::regclass)")
    assert docs.index_is_valid("docs_i_building") is None
    before = fingerprint(docs)
    migrate(docs.url, lambda op: op.replace_vector_index("docs_i", "docs", "embedding", method="ivfflat"))
    assert fingerprint(docs) == before


def test_a_drop_that_finds_nothing_says_so(docs: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "amprenta_vectors.ddl")
    migrate(docs.url, drop, lambda op: op.drop_vector_index("docs_i"), lambda op: op.retire_table("none"))
    for said in ("no column docs.embedding", "no index docs_i", "no table none"):
        assert f"there is {said}: nothing to drop" in caplog.text
