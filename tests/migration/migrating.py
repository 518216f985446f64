"""A database under migration, with what a test types into it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from amprenta_vectors import migrate
from amprenta_vectors.config import Settings
from amprenta_vectors.sandbox import postgres

ROOT = Path(__file__).parents[2]


def wait_until(holds: Callable[[], object]) -> None:
    """Wait for what another thread or process does; the test fails where it does not come."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def psql(db: Database, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a person does who got it from somebody."""
    command = [postgres.binaries() / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", db.url]
    return subprocess.run(command, input=script, capture_output=True, text=True, timeout=120, check=False)


def run_script(db: Database, script: str) -> None:
    """Run a script that is to succeed."""
    done = psql(db, script)
    assert done.returncode == 0, done.stderr + script


@contextmanager
def settings_at(beginning: str | tuple[str, ...], *settings: str) -> Iterator[list[tuple[str, ...]]]:
    """What ``settings`` are in a session each time that this process runs a statement of such a ``beginning`` in it."""
    found: list[tuple[str, ...]] = []

    def look(connection: sa.Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().startswith(beginning):
            with connection.connection.cursor() as cursor:
                cursor.execute("SELECT " + ", ".join(f"current_setting('{name}')" for name in settings))
                found.append(cursor.fetchone())

    sa.event.listen(sa.Engine, "before_cursor_execute", look)
    try:
        yield found
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", look)


class Database:
    """Statements by hand, upgrades and downgrades in process, and what the catalogue says."""

    def __init__(self, url: str, *, role: str | None = None) -> None:
        parsed = sa.engine.make_url(url).set(drivername="postgresql+psycopg2")
        # What a test sets for its role holds from the next session on.
        pool: dict[str, Any] = {"poolclass": sa.NullPool} if role else {"pool_pre_ping": True}
        self.engine = sa.create_engine(
            parsed.set(username=role or parsed.username),
            isolation_level="AUTOCOMMIT",
            use_native_hstore=False,
            **pool,
        )
        self.url = self.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)

    def execute(self, statement: str, **values: Any) -> Any:
        """Run one statement; returns its rows, None where it has none."""
        with self.engine.connect() as connection:
            result = connection.execute(sa.text(statement), values)
            return result.all() if result.returns_rows else None

    def scalar(self, statement: str, **values: Any) -> Any:
        """The first column of the first row."""
        return self.execute(statement, **values)[0][0]

    def upgrade(self, revision: str = "head", section: str = "alembic", **settings: Any) -> None:
        """Upgrade in process."""
        migrate.upgrade(Settings.load(database_url=self.url, **settings), section, revision)

    def downgrade(self, revision: str = "base", *, purge: bool = False, **settings: Any) -> None:
        """Downgrade in process."""
        migrate.downgrade(Settings.load(database_url=self.url, **settings), revision=revision, purge=purge)

    def waits(self) -> set[tuple[Any, ...]]:
        """Who waits for a lock in this database, and since when: a second try is another wait."""
        waiting = """
            SELECT l.pid, l.waitstart FROM pg_locks l JOIN pg_stat_activity a USING (pid)
            WHERE a.datname = current_database() AND NOT l.granted AND l.waitstart IS NOT NULL
        """
        return {tuple(row) for row in self.execute(waiting)}

    def columns(self, table: str) -> dict[str, str]:
        """The type of every column of a table; empty where there is none."""
        rows = self.execute(
            """
            SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
            WHERE attrelid = to_regclass(:table) AND attnum > 0 AND NOT attisdropped
            """,
            table=table,
        )
        return {row[0]: row[1] for row in rows}

    def index_is_valid(self, name: str) -> bool | None:
        """Whether an index can be used; None where there is none."""
        rows = self.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)", name=name)
        return rows[0][0] if rows else None

    def catalogue(self) -> list[Any]:
        """Every relation and column with its type, nullability, default and comment; every constraint and index."""
        return list(
            self.execute("""
                SELECT c.relname::text, c.relkind::text, a.attname::text, format_type(a.atttypid, a.atttypmod),
                       a.attnotnull::text, pg_get_expr(d.adbin, d.adrelid), obj_description(c.oid, 'pg_class'),
                       col_description(c.oid, a.attnum)
                FROM pg_class c
                LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
                WHERE c.relnamespace = 'public'::regnamespace
                UNION ALL
                SELECT conrelid::regclass::text, 'constraint', conname::text, pg_get_constraintdef(oid), '', '', '', ''
                FROM pg_constraint WHERE connamespace = 'public'::regnamespace
                UNION ALL
                SELECT indrelid::regclass::text, 'index', pg_get_indexdef(indexrelid), indisvalid::text, '', '', '', ''
                FROM pg_index JOIN pg_class c ON c.oid = indrelid WHERE c.relnamespace = 'public'::regnamespace
                UNION ALL
                SELECT extname::text, 'extension', obj_description(oid, 'pg_extension'), '', '', '', '', ''
                FROM pg_extension
                ORDER BY 1, 2, 3
            """)
        )


def prepared(prepare: Callable[..., object], *arguments: object) -> pytest.MarkDecorator:
    """Mark a test whose ``db`` is as ``prepare(db, *arguments)`` leaves an empty one, which is done once a session."""
    return pytest.mark.prepared.with_args(prepare, *arguments)


def adopt(db: Database) -> None:
    """Make rag_chunks as an application does: one namespace, a column of its own, 100 rows."""
    db.execute("""
        CREATE TABLE rag_chunks (
            chunk_id text PRIMARY KEY, document_id integer NOT NULL DEFAULT 7, content text,
            updated_at timestamptz NOT NULL DEFAULT now()
        )
    """)
    db.execute(
        "INSERT INTO rag_chunks (chunk_id, content) SELECT 'chunk-' || n, 'text ' || n FROM generate_series(1, 100) n"
    )


def at(db: Database, revision: str = "head", dimension: int | None = None) -> None:
    """Upgrade an empty database (for `prepared`)."""
    db.upgrade(revision, vector_dimension=dimension)


def adopted_at(db: Database, revision: str = "head", dimension: int | None = None) -> None:
    """Upgrade the database of `adopt` (for `prepared`)."""
    adopt(db)
    db.upgrade(revision, vector_dimension=dimension)
