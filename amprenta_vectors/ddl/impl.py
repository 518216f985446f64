"""What the package changes in how Alembic itself speaks to PostgreSQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table
from sqlalchemy.util import OrderedSet

from amprenta_vectors.ddl.comparison import ComparingImpl


class AmprentaPostgresqlImpl(ComparingImpl):
    """Alembic's implementation for PostgreSQL; being defined, it takes that one's place.

    An application that has an implementation of its own derives it from this one.
    """

    __dialect__ = "postgresql"

    def create_table(self, table: Table, **options: Any) -> None:
        """With its indexes in the order of their names: Alembic takes them as a set, and a script would differ."""
        table.indexes = OrderedSet(sorted(table.indexes, key=lambda index: str(index.name)))
        super().create_table(table, **options)

    def _exec(self, construct: Any, *arguments: Any, **options: Any) -> Any:
        """Leave the version table to a script that keeps it itself, as `offline_script` makes them.

        Alembic's own statements suit only a database that is exactly at the revision where the script begins.
        """
        kept = self.memo.get("version table")
        if kept is not None and kept in {
            getattr(getattr(construct, attribute, None), "name", None) for attribute in ("table", "element")
        }:
            return None
        return super()._exec(construct, *arguments, **options)
