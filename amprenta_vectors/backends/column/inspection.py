"""The old column of a table looked at before a move: what it holds, and what to declare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backends.column.survey import Survey, fitting_elements, survey
from amprenta_vectors.backends.column.values import OldValues, columns_beside, find_old
from amprenta_vectors.pg.types import bare_type
from amprenta_vectors.schema.expressions import to_clause
from amprenta_vectors.schema.old_column import Elements
from amprenta_vectors.schema.vector_table import VectorTable

SAMPLE = 100
"""Values of a column of bytes that are decoded to find out what they are."""


@dataclass(frozen=True)
class ColumnInspection:
    """The old column called ``name``, of ``type``, and what it holds.

    ``fitting`` lists what the bytes of a column of bytes can be; the survey is by the first of them.
    """

    name: str
    type: str
    form: str
    survey: Survey
    fitting: Sequence[Elements] = ()


def inspect_column(connection: Connection, table: VectorTable) -> ColumnInspection:
    """Inspect the old column that ``table`` declares; the new one need not be there yet. Raises as `find_old` does."""
    table, fitting = _with_elements(connection, table)
    old = find_old(connection, table)
    type_ = old.types[old.old.column].type
    return ColumnInspection(old.name, type_, old.format.name, survey(connection, old), fitting)


def _with_elements(connection: Connection, table: VectorTable) -> tuple[VectorTable, list[Elements]]:
    """Return the table with what the bytes of its old column seem to be, and all that they can be."""
    if table.old is None or table.old.elements is not None:
        return table, []
    column = columns_beside(connection, table, table.old).get(table.old.column)
    if column is None or bare_type(column.base) != "bytea":
        return table, []
    any_of_them = table.with_columns(old=replace(table.old, elements="float32-le"))
    samples = _sample(connection, find_old(connection, any_of_them))
    fitting = fitting_elements(samples, table.dimension) or fitting_elements(samples, None)
    if not fitting:
        return any_of_them, []
    return table.with_columns(old=replace(table.old, elements=fitting[0])), fitting


def _sample(connection: Connection, old: OldValues) -> list[bytes]:
    rows = to_clause(old.table, *old.table.old_names)
    value = old.raw(rows)
    statement = sa.select(value).select_from(rows if old.other is None else old.other).where(value.is_not(None))
    return [bytes(raw) for raw in connection.execute(statement.limit(SAMPLE)).scalars()]
