"""``op.add_model_scope()`` and its reverse: a table of embeddings gets a row for each key and model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.backfill import target_of
from amprenta_vectors.ddl.catalogue import Catalogue, ColumnFact, Fact, HasValue
from amprenta_vectors.ddl.columns import DropColumnOp, model_column
from amprenta_vectors.ddl.marks import MADE, RETIRED, comment_retired, is_retired, retired_name
from amprenta_vectors.ddl.model_column import AddModelColumnOp
from amprenta_vectors.ddl.model_facts import SCOPE, AddedColumnsFact, ModelColumnsFact, hashes_of
from amprenta_vectors.ddl.options import configured_dimension, is_adopted, purging
from amprenta_vectors.ddl.steps import Done, Step, SteppedOp, UndoingOp, execute, operation, together
from amprenta_vectors.errors import SchemaMismatch
from amprenta_vectors.pg.names import compose, literal, qualified
from amprenta_vectors.pg.tables import Column
from amprenta_vectors.pg.types import Storage, parse_sized

USUAL_MODEL = {1536: "text-embedding-ada-002"}
"""The model that vectors of so many dimensions are of, where nothing names it."""

_ADD_WITH_DEFAULT = """\
DO $amprenta$ BEGIN
    EXECUTE format('ALTER TABLE {table} ADD COLUMN {column} integer NOT NULL DEFAULT %s', (
        SELECT model_id FROM model_column WHERE target = {target} AND searched
    ));
END $amprenta$"""
_REFERENCE = """\
ALTER TABLE {table} ADD CONSTRAINT {name} FOREIGN KEY ({column}) REFERENCES embedding_models (id) NOT VALID"""


@operation("add_model_scope")
@dataclass
class AddModelScopeOp(SteppedOp):
    """Add the column that says which model a row is of."""

    table: str
    own_column: str = "embedding"
    schema: str | None = None

    @classmethod
    def add_model_scope(
        cls, operations: Operations, table: str, *, own_column: str = "embedding", schema: str | None = None
    ) -> None:
        """Add ``model_id``, which refers to ``embedding_models``, or take back the one that a downgrade kept.

        Where the rows have vectors in ``own_column`` already, the model of these, which ``EMBEDDING_MODEL`` names, is
        registered and is the default: an application that knows nothing of models reads and writes as before. Raises
        `SchemaMismatch` if nothing names it.
        """
        operations.invoke(cls(table, own_column, schema))

    def reverse(self) -> MigrateOperation:
        """Return the operation that undoes this one."""
        return DropModelScopeOp(self.table, self.own_column, self.schema, _reverse=self)

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step for this column, and for those of models that a downgrade retired."""
        added = catalogue.ask(_added(self, options), {})
        models = [model_column(self.table, column, size, schema=self.schema) for column, size in added.items()]
        return together([self._own_step(catalogue, options), *(each.alone_step(catalogue, options) for each in models)])

    def _own_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step: register the model of the vectors that are there, then add the column."""
        name, kept = qualified(self.table, self.schema), retired_name(SCOPE)
        fact, kept_fact = (ColumnFact(self.table, each, self.schema) for each in (SCOPE, kept))
        present = catalogue.ask(fact, None)
        if present is not None:
            if present.base not in ("integer", "bigint", ""):
                raise SchemaMismatch(
                    f"column {name}.{SCOPE} is of type {present.type}; expected integer",
                    hint=f"rename it out of the way: ALTER TABLE {name} RENAME COLUMN {SCOPE} TO …",
                )
            return Done(f"column {SCOPE} is there", name)
        catalogue.require_table(self.table, self.schema)
        retired = catalogue.ask(kept_fact, None)
        if retired is not None and is_retired(retired.comment):
            return Step(
                f"take back column {SCOPE}",
                lambda operations: self._take_back(operations, kept),
                {kept_fact: None, fact: Column(retired.type, MADE, retired.not_null)},
                **self._locked(),
            )
        assumed = Column(f"vector({configured_dimension(options) or 1536})")
        own = catalogue.ask(
            ColumnFact(self.table, self.own_column, self.schema), assumed if is_adopted(options, self.table) else None
        )
        if own is None:
            return self._add_step(catalogue)
        return self._registered(catalogue, options, own) or self._add_default_step(options)

    def _registered(self, catalogue: Catalogue, options: Mapping[str, Any], own: Column) -> Step | None:
        """Return the next step until the model of the vectors that are there is registered."""
        target = target_of(self.table, self.own_column, self.schema or options.get("schema"))
        if catalogue.ask(ModelColumnsFact(target), {}):
            return None
        found = parse_sized(own.type)
        if found is None or found[0] == "sparsevec":
            raise SchemaMismatch(
                f"column {target} is of type {own.type}; expected vector(n) or halfvec(n)",
                hint="rename it out of the way, or convert it, and run the upgrade again",
            )
        model = options.get("model") or USUAL_MODEL.get(found[1])
        if model is None:
            raise SchemaMismatch(
                f"nothing says which model the vectors in {target} are of",
                hint="export EMBEDDING_MODEL=… with its name, and run the upgrade again",
            )
        storage: Storage = "halfvec" if found[0] == "halfvec" else "vector"
        registering = AddModelColumnOp(
            self.table, self.own_column, model, found[1], self.own_column, storage=storage, schema=self.schema
        )
        step = registering.next_step(catalogue, options)
        return step if isinstance(step, Step) else None

    def _add_step(self, catalogue: Catalogue) -> Step:
        filled = catalogue.ask(HasValue(self.table, self.schema), False)

        def add(operations: Operations) -> None:
            column: sa.Column[Any] = sa.Column(SCOPE, sa.Integer, nullable=filled, comment=MADE)
            operations.add_column(self.table, column, schema=self.schema)
            self._refer(operations)

        foretold = Column("integer", MADE, not filled)
        return Step(
            f"add column {SCOPE} integer",
            add,
            {ColumnFact(self.table, SCOPE, self.schema): foretold},
            **self._locked(),
        )

    def _add_default_step(self, options: Mapping[str, Any]) -> Step:
        name = qualified(self.table, self.schema)
        target = target_of(self.table, self.own_column, self.schema or options.get("schema"))
        statement = compose(
            _ADD_WITH_DEFAULT, table=name.replace("'", "''").replace("%", "%%"), column=SCOPE, target=literal(target)
        )

        def add(operations: Operations) -> None:
            execute(operations, statement)
            execute(operations, f"COMMENT ON COLUMN {name}.{SCOPE} IS {literal(MADE)}")
            self._refer(operations)

        return Step(
            f"add column {SCOPE} integer, by default the model of {self.own_column}",
            add,
            {ColumnFact(self.table, SCOPE, self.schema): Column("integer", MADE, not_null=True)},
            **self._locked(),
        )

    def _refer(self, operations: Operations) -> None:
        # Not validated, which reads every row: those that are there have the default, which is a model's.
        statement = compose(
            _REFERENCE,
            table=qualified(self.table, self.schema),
            name=qualified(f"{self.table}_{SCOPE}_fkey"),
            column=SCOPE,
        )
        execute(operations, statement)

    def _take_back(self, operations: Operations, kept: str) -> None:
        operations.alter_column(self.table, kept, new_column_name=SCOPE, schema=self.schema)
        name = qualified(self.table, self.schema)
        execute(operations, f"COMMENT ON COLUMN {name}.{SCOPE} IS {literal(MADE)}")

    def _locked(self) -> dict[str, Any]:
        return locked(self.table, self.schema)


@operation("drop_model_scope")
@dataclass
class DropModelScopeOp(UndoingOp[AddModelScopeOp]):
    """Take the column that says which model a row is of out of use."""

    table: str
    own_column: str = "embedding"
    schema: str | None = None

    @classmethod
    def drop_model_scope(
        cls, operations: Operations, table: str, *, own_column: str = "embedding", schema: str | None = None
    ) -> None:
        """Keep ``model_id`` under a retired name, with its default; drop it from a table without rows, or to purge."""
        operations.invoke(cls(table, own_column, schema))

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step for this column, and for those of the models, whose indexes are deferred."""
        added = catalogue.ask(_added(self, options), {})
        models = [DropColumnOp(self.table, column, self.schema, hashes_of(column)) for column in added]
        # The definition of an index that is deferred names this column, so that it goes last.
        steps = (op.deferring_step(catalogue, options) or op.alone_step(catalogue, options) for op in models)
        return together([*steps, self._own_step(catalogue, options)])

    def _own_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the step that retires the column or drops it; one that was there before is left."""
        name, kept = qualified(self.table, self.schema), retired_name(SCOPE)
        fact, kept_fact = (ColumnFact(self.table, each, self.schema) for each in (SCOPE, kept))
        column = catalogue.ask(fact, Column("integer", MADE))
        if column is None:
            return Done(f"there is no column {name}.{SCOPE}: nothing to drop", name)
        if column.comment != MADE:
            return Done(f"{name}.{SCOPE} was adopted, not made here: left as it is", name)
        if purging(options) or not catalogue.ask(HasValue(self.table, self.schema), True):
            return Step(
                f"drop column {SCOPE}",
                lambda operations: operations.drop_column(self.table, SCOPE, schema=self.schema),
                {fact: None},
                **locked(self.table, self.schema),
            )
        has_default = catalogue.ask(HasDefault(self.table, SCOPE, self.schema), False)

        def retire(operations: Operations) -> None:
            operations.alter_column(
                self.table,
                SCOPE,
                new_column_name=kept,
                # An application that leaves it out must find a default, or no need of one.
                nullable=None if has_default or not column.not_null else True,
                schema=self.schema,
            )
            execute(operations, comment_retired(f"COLUMN {name}.{qualified(kept)}"))

        return Step(
            f"retire column {SCOPE} as {kept}",
            retire,
            {fact: None, kept_fact: Column(column.type, RETIRED, column.not_null and has_default)},
            said=f"{self.table}.{SCOPE}: kept as {kept}",
            **locked(self.table, self.schema),
        )


def _added(op: AddModelScopeOp | DropModelScopeOp, options: Mapping[str, Any]) -> AddedColumnsFact:
    """Return which columns models were given beside the table's own."""
    target = target_of(op.table, op.own_column, op.schema or options.get("schema"))
    return AddedColumnsFact(target, op.table, op.own_column, op.schema)


def locked(table: str, schema: str | None) -> dict[str, Any]:
    """Return what the steps that change a table's columns have in common."""
    return {
        "table": (table, schema),
        "object": qualified(table, schema),
        "lock": "ACCESS EXCLUSIVE",
        "blocks": "readers and writers",
    }


@dataclass(frozen=True)
class HasDefault(Fact[bool]):
    """Whether a column has a default."""

    table: str
    column: str
    schema: str | None = None

    def find(self, connection: Connection) -> bool:
        """Return whether it has; False without the column."""
        columns = ColumnFact(self.table, self.column, self.schema).find(connection)
        return columns is not None and bool(columns.default)
