"""The rows of a vector table as records of a source, which go by their own keys: the scopes, and the rows of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from amprenta_vectors.batch import Key
from amprenta_vectors.errors import SourceNotFound
from amprenta_vectors.schema.expressions import to_clause, to_column_value
from amprenta_vectors.schema.keymaps import OwnKeys, to_own_keys
from amprenta_vectors.schema.slice import Slice, given_keys
from amprenta_vectors.schema.vector_table import VectorTable


class OwnRows:
    """The rows of one scope of a table from the catalogue. The source keys are their own keys, as `OwnKeys` has them.

    ``columns`` are those that are read beside the ones that the table's description names.
    """

    def __init__(self, table: VectorTable, scope: Mapping[str, str], *columns: str) -> None:
        self.slice = Slice(table, scope, OwnKeys([table.column_types[name] for name in table.key]))
        self.rows = to_clause(table, *table.old_names, *columns)

    def wanted(self, keys: Sequence[str]) -> dict[Key, str]:
        """Return the source key of each row that is meant, by the row's key; what is no key is left out."""
        return to_own_keys(self.slice.key_map, keys)

    def select(self, keys: Sequence[Key], *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
        """Return a query of ``(*key, *columns)`` of those ``rows`` that exist."""
        given = given_keys(keys, width=len(self.slice.table.key))
        return sa.select(*given.c, *columns).where(*self.slice.is_row_of(given, self.rows))


class OwnScopes:
    """The scopes of a table that have rows; with ``wanted``, those that have rows for which that condition holds."""

    def __init__(
        self, engine: Engine, table: VectorTable, wanted: Callable[[Any], sa.ColumnElement[bool]] | None = None
    ) -> None:
        self._engine = engine
        self._table = table
        self._wanted = wanted
        self.name = f"table {table.qualified_name}"

    def namespaces(self) -> dict[str, int]:
        """Return each scope with its number of rows."""
        table = self._table
        target = to_clause(table, *table.old_names)
        columns = [sa.cast(target.c[name], sa.Text) for name in table.namespace_columns]
        fixed = {name: value for name, value in table.scope_values.items() if name in table.scope}
        conditions = [target.c[name] == to_column_value(table, name, value) for name, value in fixed.items()]
        if self._wanted is not None:
            conditions.append(self._wanted(target))
        statement = sa.select(sa.func.count(), *columns).select_from(target).where(*conditions)
        with self._engine.connect() as connection:
            rows = connection.execute(statement.group_by(*columns))
            return {"/".join(values): count for count, *values in rows if None not in values}

    def count(self, namespace: str) -> int:
        """Return how many rows a scope has; where the texts lie in another table, how many that has.

        Raises `SourceNotFound` for a scope without a row, listing those that have.
        """
        texts = self._table.texts
        if texts is not None:
            rows = sa.table(texts.table, schema=texts.schema)
            with self._engine.connect() as connection:
                return connection.execute(sa.select(sa.func.count()).select_from(rows)).scalar_one()
        found = self.namespaces()
        if self._table.namespace_columns and namespace not in found:
            listed = ", ".join(f"{name or '(empty)'} ({count})" for name, count in sorted(found.items())[:20])
            columns = " / ".join(self._table.namespace_columns)
            raise SourceNotFound(
                f"{self.name} has no row with {columns} {namespace!r}; it has: {listed or 'none'}",
                hint="--namespace NAME, or --all-namespaces",
            )
        return found.get(namespace, 0)
