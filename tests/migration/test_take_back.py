"""A retired column comes back at once for everybody, and never with a value that is older than its row."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from migrating import Database, adopted_at, wait_until
from test_operations import ODD, revision

from amprenta_vectors.ddl import restore
from amprenta_vectors.errors import AmprentaError

TRIGGERS = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'amprenta%'"
FUNCTIONS = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'amprenta%'"
CHANGE = "UPDATE rag_chunks SET content = 'new', updated_at = clock_timestamp() WHERE chunk_id = :key"


def retire(db: Database) -> None:
    """Retire the embeddings of 100 rows by a downgrade, and change ten rows since."""
    adopted_at(db, "head", 3)
    db.execute("UPDATE rag_chunks SET embedding = '[1,2,3]', updated_at = now() - interval '1 day'")
    db.downgrade("rag_0001")
    for number in range(1, 11):
        db.execute(CHANGE, key=f"chunk-{number}")


def retire_on_pages(db: Database) -> None:
    """Do the same to rows of several pages."""
    retire(db)
    db.execute("ALTER TABLE rag_chunks ADD padding text DEFAULT repeat('x', 400)")
    db.execute("VACUUM FULL rag_chunks")


@pytest.fixture
def retired(clone: Callable[..., Database]) -> Database:
    """100 rows whose embeddings a downgrade retired, ten of them changed since."""
    return clone(retire)


@pytest.fixture
def one_page(clone: Callable[..., Database], monkeypatch: pytest.MonkeyPatch) -> Database:
    """The same, in so few pages a statement that the emptying takes several."""
    monkeypatch.setattr(restore, "PAGES", 1)
    return clone(retire_on_pages)


def stale(db: Database) -> list[Any]:
    """Rows whose embedding can be seen although they changed since it was made."""
    return list(
        db.execute("SELECT chunk_id FROM rag_chunks WHERE embedding IS NOT NULL AND content = 'new' ORDER BY chunk_id")
    )


def assert_back(db: Database, *, emptied: int) -> None:
    assert stale(db) == []
    assert db.scalar("SELECT count(*) FROM rag_chunks WHERE embedding = '[1,2,3]'") == 100 - emptied
    assert db.scalar(TRIGGERS) == db.scalar(FUNCTIONS) == 0


def test_nobody_waits_while_changed_rows_are_emptied(one_page: Database) -> None:
    upgrade = threading.Thread(target=one_page.upgrade)
    with closing(psycopg2.connect(one_page.url)) as holder, holder.cursor() as cursor:
        cursor.execute("SELECT FROM rag_chunks WHERE chunk_id = 'chunk-10' FOR UPDATE")
        upgrade.start()
        wait_until(lambda: one_page.scalar(TRIGGERS) == 1)
        with closing(psycopg2.connect(one_page.url, options="-c statement_timeout=60s")) as other:
            with other.cursor() as writer:
                writer.execute("SELECT count(*) FROM rag_chunks")
                writer.execute("UPDATE rag_chunks SET content = content WHERE chunk_id = 'chunk-9'")
                writer.execute("INSERT INTO rag_chunks (chunk_id) VALUES ('inserted')")
            other.commit()
        assert "embedding" not in one_page.columns("rag_chunks")
        assert upgrade.is_alive()
    upgrade.join()
    assert_back(one_page, emptied=10)


def test_a_row_that_changes_while_the_column_comes_back_is_null_as_well(
    one_page: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = restore.try_for_lock
    keys = iter(range(20, 30))

    def change_one_before(*arguments: Any) -> Any:
        key = next(keys, None)
        if key is not None:
            one_page.execute(CHANGE, key=f"chunk-{key}")
        return original(*arguments)

    monkeypatch.setattr(restore, "try_for_lock", change_one_before)
    one_page.upgrade()
    changed = one_page.scalar("SELECT count(*) FROM rag_chunks WHERE content = 'new'")
    assert changed > 10, "nothing changed meanwhile: the test shows nothing"
    assert_back(one_page, emptied=changed)


@pytest.mark.parametrize("step", ["_create_trigger", "_empty", "drop_trigger"])
def test_broken_off_anywhere_nothing_stale_is_seen_and_the_same_command_finishes(
    retired: Database, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    original: Callable[..., Any] = getattr(restore, step)

    def then_fail(*arguments: Any) -> Any:
        original(*arguments)
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(restore, step, then_fail)
        with pytest.raises(ZeroDivisionError):
            retired.upgrade()
    assert "embedding" not in retired.columns("rag_chunks")
    retired.execute(CHANGE, key="chunk-20")
    retired.upgrade()
    assert_back(retired, emptied=11)


def test_what_a_broken_off_upgrade_leaves_does_not_stand_in_the_old_applications_way(
    retired: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(restore, "_empty", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            retired.upgrade()
    assert retired.scalar(TRIGGERS) == 1
    retired.execute(CHANGE, key="chunk-1")
    retired.execute("ALTER TABLE rag_chunks DROP COLUMN embedding_retired")
    retired.execute(CHANGE, key="chunk-2")
    assert retired.scalar("SELECT count(*) FROM rag_chunks WHERE content = 'new' AND document_id = 7") == 10


def test_a_row_lock_that_is_never_given_back_is_named_and_the_column_stays_retired(
    one_page: Database, brief_tries: None, give_up_when_named: None
) -> None:
    with closing(psycopg2.connect(one_page.url, application_name="hold tight")) as holder:
        holder.cursor().execute("SELECT FROM rag_chunks WHERE chunk_id = 'chunk-10' FOR UPDATE")
        with pytest.raises(AmprentaError, match="application hold tight, idle in transaction") as caught:
            one_page.upgrade()
        assert f"pid {holder.info.backend_pid} (user postgres" in str(caught.value)
    assert "embedding" not in one_page.columns("rag_chunks")
    one_page.upgrade()
    assert_back(one_page, emptied=10)


def test_a_partitioned_table_is_emptied_in_every_partition(db: Database) -> None:
    db.execute("CREATE EXTENSION vector")
    db.execute(
        "CREATE TABLE parts (id int, updated_at timestamptz DEFAULT now(), PRIMARY KEY (id)) PARTITION BY HASH (id)"
    )
    for remainder in range(2):
        db.execute(
            f"CREATE TABLE part_{remainder} PARTITION OF parts FOR VALUES WITH (MODULUS 2, REMAINDER {remainder})"
        )
    with revision(db) as op:
        op.add_vector_column("parts", "embedding", 3)
    db.execute("INSERT INTO parts SELECT n, now() - interval '1 day', '[1,2,3]' FROM generate_series(1, 1000) n")
    with revision(db) as op:
        op.drop_kept_column("parts", "embedding")
    db.execute("UPDATE parts SET updated_at = now() WHERE id % 10 = 0")
    with revision(db) as op:
        op.add_vector_column("parts", "embedding", 3)
    assert db.execute("SELECT count(*), count(embedding) FROM parts") == [(1000, 900)]
    assert db.scalar("SELECT count(embedding) FROM parts WHERE id % 10 = 0") == 0


@pytest.mark.parametrize("schema", [None, ODD], ids=["search path", "schema"])
def test_values_come_back_under_names_that_need_quoting(db: Database, schema: str | None) -> None:
    db.execute("CREATE EXTENSION vector")
    name = '"o""dd: 100% ключ"'
    relation = name if schema is None else f"{name}.{name}"
    if schema is not None:
        db.execute(f"CREATE SCHEMA {name}".replace(":", "\\:"))
    db.execute(f"CREATE TABLE {relation} (id int PRIMARY KEY, updated_at timestamp)".replace(":", "\\:"))
    with revision(db) as op:
        op.add_vector_column(ODD, ODD, 3, schema=schema)
    insert = f"INSERT INTO {relation} VALUES (1, '1999-01-01', '[1,2,3]'), (2, '1999-01-01', '[1,2,3]')"
    db.execute(insert.replace(":", "\\:"))
    with revision(db) as op:
        op.drop_kept_column(ODD, ODD, schema=schema)
    db.execute(f"UPDATE {relation} SET updated_at = '2999-01-01' WHERE id = 2".replace(":", "\\:"))
    with revision(db) as op:
        op.add_vector_column(ODD, ODD, 3, schema=schema)
    assert db.execute(f"SELECT id, {name}::text FROM {relation} ORDER BY id".replace(":", "\\:")) == [
        (1, "[1,2,3]"),
        (2, None),
    ]
    assert db.scalar(TRIGGERS) == db.scalar(FUNCTIONS) == 0
