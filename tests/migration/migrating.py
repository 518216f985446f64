"""A database under migration, with what a test types into it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from amprenta_vectors import migrate
from amprenta_vectors.config import Settings

ROOT = Path(__file__).parents[2]


def wait_until(holds: Callable[[], object]) -> None:
    """Wait for what another thread or process does; the test fails where it does not come."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Database:
    """Statements by hand, upgrades and downgrades in process, and what the catalogue says."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = sa.create_engine(
            url.replace("postgresql:", "postgresql+psycopg2:"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
        )

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
