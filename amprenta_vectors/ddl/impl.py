"""This package's changes to how Alembic itself speaks to PostgreSQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table
from sqlalchemy.schema import CreateTable
from sqlalchemy.util import OrderedSet

from amprenta_vectors.ddl.comparison import ComparingImpl


class AmprentaPostgresqlImpl(ComparingImpl):
    """Alembic's implementation for PostgreSQL, changed; defining this class puts it in that one's place.

    An application that has an implementation of its own derives it from this one.
    """

    __dialect__ = "postgresql"

    def create_table(self, table: Table, **options: Any) -> None:
        """Create a table with its indexes ordered by name: Alembic takes them as a set, and scripts would differ."""
        table.indexes = OrderedSet(sorted(table.indexes, key=lambda index: str(index.name)))
        super().create_table(table, **options)

    def _exec(self, construct: Any, *arguments: Any, **options: Any) -> Any:
        """Leave out the version table of a script for a database that has it: Alembic's would make it at base."""
        made = isinstance(construct, CreateTable) and construct.element.name == self.memo.get("amprenta_version_table")
        return None if made else super()._exec(construct, *arguments, **options)
