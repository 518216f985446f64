"""The old values beside the rows of a vector table, as SQL reaches them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backends.column.formats import Bytes, CastFormat, format_of
from amprenta_vectors.errors import ConfigError, SchemaMismatch
from amprenta_vectors.pg import tables
from amprenta_vectors.pg.indexes import unique_column_sets
from amprenta_vectors.pg.names import quoted
from amprenta_vectors.pg.tables import Column
from amprenta_vectors.pg.types import bare_type, is_text
from amprenta_vectors.schema.catalogue import check_relation_visible, columns_of
from amprenta_vectors.schema.old_column import OldColumn
from amprenta_vectors.schema.types import NamedType
from amprenta_vectors.schema.vector_table import VectorTable

_INTEGERS = {"smallint", "integer", "bigint"}


@dataclass(frozen=True)
class OldValues:
    """The old column of a vector table from the catalogue: of the table itself, or of another one, joined by key.

    ``pairs`` maps the vector table's columns to those of the other table. The other table may have several rows of one
    key unless it is ``unique``.
    """

    table: VectorTable
    old: OldColumn
    format: CastFormat | Bytes
    pairs: Mapping[str, str]
    types: Mapping[str, Column]
    unique: bool

    @property
    def name(self) -> str:
        """The column's name for messages, with its table."""
        return f"{self.place}.{self.old.column}"

    @property
    def place(self) -> str:
        """The name, for messages, of the table that has the column."""
        if self.old.table is None:
            return self.table.qualified_name
        return f"{self.old.schema}.{self.old.table}" if self.old.schema else self.old.table

    @cached_property
    def other(self) -> sa.FromClause | None:
        """The other table; None if the column is one of the vector table."""
        if self.old.table is None:
            return None
        names = dict.fromkeys([*self.pairs.values(), self.old.column])
        return sa.table(self.old.table, *map(sa.column, names), schema=self.old.schema).alias("old")

    def raw(self, rows: Any) -> sa.ColumnElement[Any]:
        """Return the value as the column holds it, beside ``rows``."""
        value: sa.ColumnElement[Any] = (rows if self.other is None else self.other).c[self.old.column]
        return value

    def joined(self, rows: Any, dimension: int | None = None) -> list[sa.ColumnElement[bool]]:
        """Return the conditions that a row of the other table belongs to one of ``rows``, and that it has a value.

        With ``dimension``, a list of another number of numbers is none; what cannot be read is one.
        """
        conditions = [*self._is_of(rows), self.format.given(self.raw(rows))]
        if dimension is not None:
            conditions.append(sa.func.coalesce(self.format.dimension(self.raw(rows)), dimension) == dimension)
        return conditions

    def given(self, rows: Any, dimension: int | None = None) -> sa.ColumnElement[bool]:
        """Return the condition that one of ``rows`` has an old value, as `joined` counts them."""
        conditions = self.joined(rows, dimension)
        if self.other is None:
            return sa.and_(*conditions)
        return sa.exists().select_from(self.other).where(*conditions).correlate(rows)

    def _is_of(self, rows: Any) -> list[sa.ColumnElement[bool]]:
        if self.other is None:
            return []
        return [self.other.c[theirs] == self._typed(rows.c[ours], theirs) for ours, theirs in self.pairs.items()]

    def _typed(self, value: sa.ColumnElement[Any], theirs: str) -> sa.ColumnElement[Any]:
        """Return a column of ours as their column's index takes it."""
        type_ = self.types[theirs].base
        return sa.cast(value, NamedType("text")) if is_text(type_) else value


def find_old(connection: Connection, table: VectorTable) -> OldValues:
    """Return the old column that ``table`` declares, as the catalogue has it; the new one need not be there.

    Raises `ConfigError` if none is declared, `SchemaMismatch` for a table or column that does not exist or cannot be
    joined, `ServerUnsuitable` where row security hides rows of the other table.
    """
    old = table.old
    if old is None:
        raise ConfigError(
            f"table {table.name} names no column that embeddings already lie in",
            hint=f'old = {{ column = "…" }} under [tables.{table.name}] in amprenta.toml',
        )
    theirs = columns_beside(connection, table, old)
    ours = columns_of(connection, table)
    pairs = _pairs(table, old, theirs) if old.table is not None else {}
    for name in (old.column, *pairs.values()):
        if name not in theirs:
            raise SchemaMismatch(
                f"{_named(old) if old.table else table.qualified_name} has no column {name}; "
                f"it has {', '.join(theirs)}",
                hint=f"correct old under [tables.{table.name}] in amprenta.toml",
            )
    for mine, their in pairs.items():
        _check_comparable(f"{table.qualified_name}.{mine}", ours.get(mine), f"{_named(old)}.{their}", theirs[their])
    unique = old.table is None or sorted(pairs.values()) in map(
        sorted, unique_column_sets(connection, old.table, old.schema)
    )
    name = f"{_named(old) if old.table else table.qualified_name}.{old.column}"
    return OldValues(table, old, format_of(name, theirs[old.column], old.elements), pairs, theirs, unique)


def columns_beside(connection: Connection, table: VectorTable, old: OldColumn) -> Mapping[str, Column]:
    """Return the columns of the table that has the old one.

    Raises `SchemaMismatch` if there is no such table, `ServerUnsuitable` where row security hides some of its rows.
    """
    name, schema = (table.table, table.schema) if old.table is None else (old.table, old.schema)
    found = tables.table_of(connection, name, schema)
    shown = f"{schema}.{name}" if schema else name
    if found is None:
        field = "table" if old.table is None else "old.table"
        raise SchemaMismatch(
            f"there is no table {shown}, which {field} of [tables.{table.name}] names",
            hint=f"correct {field}, and its schema, in amprenta.toml",
        )
    check_relation_visible(connection, quoted(schema, name), shown)
    return found.columns


def _pairs(table: VectorTable, old: OldColumn, theirs: Mapping[str, Column]) -> dict[str, str]:
    scope = {name: name for name in table.scope if name in theirs}
    return {**scope, **dict(zip(table.key, old.key or table.key, strict=True))}


def _named(old: OldColumn) -> str:
    return f"{old.schema}.{old.table}" if old.schema else str(old.table)


def _check_comparable(mine: str, column: Column | None, their: str, other: Column) -> None:
    if column is None or is_text(other.base):
        return
    types: Sequence[str] = [bare_type(each.base) for each in (column, other)]
    if types[0] == types[1] or set(types) <= _INTEGERS:
        return
    raise SchemaMismatch(
        f"{mine} is {column.type} and {their} is {other.type}: no index finds one by the other",
        hint=f"a view on the other table that casts {their} to {column.type}; name the view as old.table",
    )
