"""SQL that every reader and writer of a vector table shares: its columns, casts to their types, and its scope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from amprenta_vectors.pg.types import without_length
from amprenta_vectors.schema.types import NamedType
from amprenta_vectors.schema.vector_table import VectorTable


def to_clause(table: VectorTable, *others: str) -> sa.TableClause:
    """Return the table, with the columns its description names and ``others``, to select from and to write to.

    The columns that other models have in its rows are among them.
    """
    names = dict.fromkeys((*table.column_names, *table.beside, *others))
    return sa.table(table.table, *map(sa.column, names), schema=table.schema)


def column_type(table: VectorTable, name: str) -> NamedType:
    """Return the type, without a length, of a scope or key column of a table from the catalogue.

    An explicit cast to ``varchar(n)`` cuts a longer text short, and would find another row by what is left of its key.
    """
    plain = without_length(table.column_types[name])
    # ``character`` alone means one character; ``bpchar`` is the same type of any length.
    return NamedType("bpchar" if plain == "character" else plain)


def to_column_value(table: VectorTable, name: str, value: str | sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Return the text ``value`` cast to the type of scope or key column ``name``."""
    # Sent as text: asyncpg would take the parameter of a cast for a value of that type, which a text is not.
    given = sa.literal(value, sa.Text) if isinstance(value, str) else value
    return sa.cast(given, column_type(table, name))


def in_scope(table: VectorTable, target: sa.TableClause, scope: Mapping[str, str]) -> list[sa.ColumnElement[bool]]:
    """Return one condition for each scope column; ``target`` is the table's `to_clause`."""
    return [target.c[name] == to_column_value(table, name, scope[name]) for name in table.scope]


def among(
    table: VectorTable, target: sa.TableClause, name: str, values: Sequence[str | None]
) -> sa.ColumnElement[bool]:
    """Return ``= ANY(array)`` of texts on a scope or key column; the array is cast, so the column's index serves."""
    return target.c[name] == sa.func.any(sa.cast(text_array(values), ARRAY(column_type(table, name))))


def text_array(items: Sequence[str | None]) -> sa.ColumnElement[Any]:
    """Return a whole list of texts as one bound parameter."""
    return sa.cast(sa.literal(list(items), ARRAY(sa.Text)), ARRAY(sa.Text))
