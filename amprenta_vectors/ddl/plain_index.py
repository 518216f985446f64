"""``op.create_plain_index()`` and its reverse: an ordinary index, made as concurrently as one on vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations

from amprenta_vectors.ddl.catalogue import Catalogue, IndexesFact, IndexFact, IsPartitioned
from amprenta_vectors.ddl.index_steps import build_step, drop_step
from amprenta_vectors.ddl.marks import building_name
from amprenta_vectors.ddl.steps import Done, Step, SteppedOp, UndoingOp, operation
from amprenta_vectors.errors import SchemaMismatch
from amprenta_vectors.pg.indexes import Index
from amprenta_vectors.pg.names import qualified


@operation("create_plain_index")
@dataclass
class CreatePlainIndexOp(SteppedOp):
    """Build a btree index concurrently, unless it is there."""

    name: str
    table: str
    columns: Sequence[str]
    unique: bool = False
    where: str | None = None
    schema: str | None = None

    @classmethod
    def create_plain_index(
        cls,
        operations: Operations,
        name: str,
        table: str,
        columns: Sequence[str],
        *,
        unique: bool = False,
        where: str | None = None,
        schema: str | None = None,
    ) -> None:
        """Build index ``name`` on ``columns`` outside any transaction; a valid one of that name is left as it is.

        With ``unique``, one on exactly these columns under another name serves as well. ``where`` is the predicate of
        a partial index. An invalid leftover is dropped and rebuilt, one being built is waited for.
        """
        operations.invoke(cls(name, table, columns, unique, where, schema))

    @property
    def statement_after_name(self) -> str:
        """Return what follows the index's name in CREATE INDEX."""
        columns = ", ".join(map(qualified, self.columns))
        where = "" if self.where is None else f" WHERE {self.where}"
        return f"ON {qualified(self.table, self.schema)} ({columns}){where}"

    def reverse(self) -> MigrateOperation:
        """Return the operation that undoes this one."""
        return DropPlainIndexOp(self.name, self.schema, _reverse=self)

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step, unless the index is there or another does the same."""
        table = qualified(self.table, self.schema)
        index = catalogue.ask(IndexFact(self.name, self.schema), None)
        if index is None:
            catalogue.require_table(self.table, self.schema)
            building = catalogue.ask(IndexFact(building_name(self.name), self.schema), None)
            if building is None:
                if self.is_served(catalogue.ask(IndexesFact(self.table, self.schema), ())):
                    return Done(f"another unique index does the same as {self.name}: used instead", table)
                self._refuse_partitioned(catalogue)
        return build_step(catalogue, self, "", self._create, concurrently=True) or Done(
            f"index {self.name} is there: left as it is", table
        )

    def is_served(self, indexes: Sequence[Index]) -> bool:
        """Return whether a unique index on exactly these columns is among ``indexes``, whatever its name."""
        unique = self.unique and self.where is None
        return unique and any(
            index.table == self.table and index.unique_columns == frozenset(self.columns) for index in indexes
        )

    def _refuse_partitioned(self, catalogue: Catalogue) -> None:
        if not catalogue.ask(IsPartitioned(self.table, self.schema), False):
            return
        unique = "UNIQUE " if self.unique else ""
        raise SchemaMismatch(
            f"table {qualified(self.table, self.schema)} is partitioned: PostgreSQL cannot build index {self.name} on "
            "it without locking it",
            hint=f"CREATE {unique}INDEX {qualified(self.name)} {self.statement_after_name}, when its writers can wait; "
            "then run this again, which finds it",
        )

    def _create(self, operations: Operations, name: str) -> None:
        operations.create_index(
            name,
            self.table,
            list(self.columns),
            unique=self.unique,
            schema=self.schema,
            postgresql_concurrently=True,
            # Not text(), which would take a colon in it for a parameter.
            postgresql_where=None if self.where is None else sa.literal_column(self.where),
        )


@operation("drop_plain_index")
@dataclass
class DropPlainIndexOp(UndoingOp[CreatePlainIndexOp]):
    """Drop an ordinary index of ours."""

    name: str
    schema: str | None = None

    @classmethod
    def drop_plain_index(cls, operations: Operations, name: str, *, schema: str | None = None) -> None:
        """Drop index ``name`` if it was made here, and what an interrupted build of it left."""
        operations.invoke(cls(name, schema))

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step until the index is gone."""
        return drop_step(catalogue, self)
