"""The columns of a table that its description has no use for, and those that might be its text or metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.marks import is_ours
from amprenta_vectors.pg.types import DOCUMENTS, TEXTS, bare_type
from amprenta_vectors.schema.catalogue import columns_of
from amprenta_vectors.schema.registry import CONFIG_FILE
from amprenta_vectors.schema.vector_table import UPDATED_AT, VectorTable
from amprenta_vectors.shown import to_toml

_TYPES = {"text": TEXTS, "metadata": DOCUMENTS}
"""The types that a column of each role may be of."""

_TIMES = ("created_at", UPDATED_AT)
"""Columns that nearly every table has, and that no reader need be told of."""


@dataclass(frozen=True)
class Unused:
    """The types by name of the columns without a use, and by role that no column has, those that it might be."""

    columns: Mapping[str, str]
    candidates: Mapping[str, tuple[str, ...]]

    def describe(self) -> str:
        """Return the columns with their types, as a person reads them."""
        return ", ".join(f"{name} {type_}" for name, type_ in self.columns.items())

    def to_add(self, table: VectorTable, role: str) -> str:
        """Return what the file of the tables would say for a role that no column has."""
        lines = " or ".join(f"{role} = {to_toml(name)}" for name in self.candidates[role])
        return f"under [tables.{table.name}] in {CONFIG_FILE}: {lines}"


def unused_columns(connection: Connection, table: VectorTable) -> Unused:
    """Return the columns that a table has beside those that its description names; those of our own are left out."""
    known = {*table.column_names, *table.text_columns, *table.old_names, *table.filter_columns.values(), *_TIMES}
    columns = {
        name: column
        for name, column in columns_of(connection, table).items()
        if name not in known and not is_ours(column.comment)
    }
    candidates = {
        role: names
        for role, types in _TYPES.items()
        if _lacks(table, role)
        and (names := tuple(name for name, each in columns.items() if bare_type(each.base) in types))
    }
    return Unused({name: column.type for name, column in columns.items()}, candidates)


def _lacks(table: VectorTable, role: str) -> bool:
    """Return whether no column has a role: columns that are embedded are text, those to filter by are metadata."""
    return getattr(table, role) is None and not (table.text_columns if role == "text" else table.filter_columns)
