"""The model that a section's revisions come to, made of their own operations, for ``alembic check`` to compare with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.columns import AddColumnOp
from amprenta_vectors.ddl.marks import MADE
from amprenta_vectors.ddl.model_column import AddModelColumnOp
from amprenta_vectors.ddl.model_facts import SCOPE
from amprenta_vectors.ddl.model_scope import AddModelScopeOp
from amprenta_vectors.ddl.plain_index import CreatePlainIndexOp
from amprenta_vectors.ddl.table import AdoptTableOp
from amprenta_vectors.ddl.vector_index import CreateVectorIndexOp
from amprenta_vectors.pg.index_keys import index_key
from amprenta_vectors.pg.indexes import index_of, indexes_of
from amprenta_vectors.pg.names import quoted
from amprenta_vectors.pg.tables import Table, table_of
from amprenta_vectors.pg.types import VectorType

ADOPTED = {"adopted": True}
"""The ``info`` of a column that was there before: its owner's affair."""

_SCHEMA = sa.text("""
    SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = to_regclass(:table) AND n.nspname <> current_schema()
""")


def comparison(connection: Connection, operations: Iterable[MigrateOperation]) -> dict[str, Any]:
    """Return what ``context.configure`` needs to compare what ``operations`` make, and nothing else."""
    model = OwnModel(connection)
    for op in operations:
        model.add(op)
    tables = model.metadata.tables
    schemas = {table.schema for table in tables.values()}

    def is_named(name: str | None, type_: str, parents: Mapping[str, str | None]) -> bool:
        if type_ == "schema":
            return name in schemas
        table = str(parents.get("schema_qualified_table_name"))
        if type_ == "foreign_key_constraint":
            # Where none is ours, none is looked at: Alembic 1.18 fails on one that leads to a table it does not know.
            return bool(tables[table].foreign_keys)
        return type_ != "table" or table in tables

    return {
        "target_metadata": model.metadata,
        "include_schemas": schemas != {None},
        "include_name": is_named,
        "include_object": _is_ours,
    }


def _is_ours(item: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """Return False for whatever the database has beyond our tables, columns and indexes: it is somebody else's."""
    return not (reflected and compare_to is None) and item.info != ADOPTED


class OwnModel:
    """The model of a section: all of a table that was made here; of an adopted table, what was added to it."""

    def __init__(self, connection: Connection) -> None:
        self.metadata = sa.MetaData()
        self._connection = connection
        self._tables: dict[str, sa.Table] = {}
        self._found: dict[str, Table | None] = {}

    def add(self, op: MigrateOperation) -> None:
        """Add the table, columns or index that an operation makes; other operations add nothing."""
        if isinstance(op, AdoptTableOp):
            self._add_table(op)
        elif isinstance(op, AddModelScopeOp):
            self._add_scope(op)
        elif isinstance(op, AddColumnOp):
            for each in (op, *op.companions):
                self._add_column(each)
        elif isinstance(op, AddModelColumnOp):
            self.add(op.vector_column)
        elif isinstance(op, CreatePlainIndexOp):
            self._add_plain_index(op)
        elif isinstance(op, CreateVectorIndexOp):
            self._add_vector_index(op)

    def _add_table(self, op: AdoptTableOp) -> None:
        found = self._found[op.table] = table_of(self._connection, op.table)
        # Its schema is named where the search path does not put new tables there.
        schema = self._connection.execute(_SCHEMA, {"table": quoted(op.table)}).scalar()
        if found is None or found.comment == MADE:
            table = op.as_table.to_metadata(self.metadata, **({"schema": schema} if schema else {}))
            table.comment = MADE
        else:
            table = sa.Table(op.table, self.metadata, schema=schema, comment=found.comment or None)
        self._tables[op.table] = table

    def _add_column(self, op: AddColumnOp) -> None:
        found = self._found[op.table]
        present = None if found is None else found.columns.get(op.column)
        type_ = op.type_of({})
        # The dimension is what the database says.
        if isinstance(type_, VectorType) and present is not None:
            type_ = VectorType.parse(present.type) or type_
        # Where a column was taken back it may be NULL, as rows that changed meanwhile have none.
        made = found is None or found.comment == MADE
        nullable = not present.not_null if present is not None else op.null_allowed or not made
        info = dict(ADOPTED) if present is not None and present.comment != MADE else {}
        self._tables[op.table].append_column(sa.Column(op.column, type_, nullable=nullable, comment=MADE, info=info))

    def _add_scope(self, op: AddModelScopeOp) -> None:
        found = self._found[op.table]
        present = None if found is None else found.columns.get(SCOPE)
        info = dict(ADOPTED) if present is not None and present.comment != MADE else {}
        nullable = present is not None and not present.not_null
        # What is its default is known only where it was added.
        column: sa.Column[Any] = sa.Column(SCOPE, sa.Integer, nullable=nullable, comment=MADE, info=info)
        self._tables[op.table].append_column(column)

    def _add_plain_index(self, op: CreatePlainIndexOp) -> None:
        """Add an ordinary index without its predicate, which Alembic does not compare."""
        table, there = self._tables[op.table], index_of(self._connection, op.name)
        # Of a column that the table lacks there is nothing to compare.
        if there.comment == MADE if there else not op.is_served(indexes_of(self._connection, op.table)):
            for name in set(op.columns) - set(table.c.keys()):
                # An adopted table's own columns are not compared: a stand-in.
                table.append_column(sa.Column(name, sa.Text, info=dict(ADOPTED)))
            sa.Index(op.name, *(table.c[name] for name in op.columns), unique=op.unique)

    def _add_vector_index(self, op: CreateVectorIndexOp) -> None:
        """Add a vector index unless another serves.

        Which one serves is the operator's choice, as the dimension is; one that is there is ours.
        """
        indexes = indexes_of(self._connection, op.table)
        if any(each.is_ann and op.column in each.columns and each.serves(op.distance) for each in indexes):
            return
        column: Any = self._tables[op.table].c[op.column]
        key = index_key(op.column, column.type, op.distance)
        sa.Index(
            op.name,
            key.of(column),
            postgresql_using=op.method,
            postgresql_with=op.options,
            postgresql_ops={op.column: key.opclass},
        )
