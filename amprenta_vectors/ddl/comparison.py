"""Alembic's PostgreSQL implementation as autogenerate asks it: whether indexes are equal, how types are written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from alembic.ddl.impl import ComparisonResult
from alembic.ddl.postgresql import PostgresqlImpl
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.ddl.model_index import index_if_built
from amprenta_vectors.ddl.options import log
from amprenta_vectors.ddl.render import render_vector_type
from amprenta_vectors.pg.errors import TYPE_MISMATCH, UNDEFINED_COLUMN, UNDEFINED_OBJECT, sqlstate, to_line
from amprenta_vectors.pg.indexes import ANN_METHODS, index_of

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext

_IMPOSSIBLE = frozenset({UNDEFINED_COLUMN, UNDEFINED_OBJECT, TYPE_MISMATCH})
"""Errors of an index that the table as it is cannot have: no such column or class, a class of another type."""


class ComparingImpl(PostgresqlImpl):
    """Tells ANN indexes apart and writes vector types with their import; a base of `AmprentaPostgresqlImpl`."""

    def compare_indexes(self, metadata_index: sa.Index, reflected_index: sa.Index) -> ComparisonResult:
        """Compare ANN indexes by method, key, operator class, options and predicate; others as Alembic does."""
        if not {_method_of(metadata_index), _method_of(reflected_index)} & ANN_METHODS:
            return super().compare_indexes(metadata_index, reflected_index)
        connection, table = self.connection, reflected_index.table
        assert connection is not None and table is not None  # noqa: S101, PT018 - reflection needs both
        found = index_of(connection, str(reflected_index.name), table.schema)
        assert found is not None  # noqa: S101 - it was just reflected
        try:
            differences = found.differences(index_if_built(connection, metadata_index))
        except DBAPIError as error:
            reason = to_line(error.orig)
            if sqlstate(error) in _IMPOSSIBLE:
                return ComparisonResult.Different(reason)
            log.warning("index %s is not compared: %s", reflected_index.name, reason)
            return ComparisonResult.Skip(reason)
        return ComparisonResult.Different(differences) if differences else ComparisonResult.Equal()

    def render_type(self, type_: sa.types.TypeEngine[Any], autogen_context: AutogenContext) -> str | Literal[False]:
        """Return a vector type with the import that it needs; render others as Alembic does."""
        return render_vector_type(type_, autogen_context) or super().render_type(type_, autogen_context)


def _method_of(index: sa.Index) -> str:
    """Return the access method of an index of a model or of the database, btree where none is named."""
    return str(index.dialect_options["postgresql"]["using"] or "btree").lower()
