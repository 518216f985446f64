"""``op.add_vector_column()`` and ``op.add_kept_column()``: columns whose values a downgrade keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.backfill import target_of
from amprenta_vectors.ddl.catalogue import Catalogue, ColumnFact, Fact, HasValue, IndexesFact, IndexFact, IsUsed
from amprenta_vectors.ddl.index_steps import defer_step
from amprenta_vectors.ddl.leases import LeasesFact, wait_for_workers
from amprenta_vectors.ddl.marks import MADE, RETIRED, comment_retired, is_retired, is_unfinished, retired_name
from amprenta_vectors.ddl.model_facts import AddedColumnsFact, ModelColumnsFact, forget_models, hashes_of
from amprenta_vectors.ddl.options import configured_dimension, log, purging
from amprenta_vectors.ddl.privileges import require_ownership
from amprenta_vectors.ddl.restore import UPDATED_AT, WatchFact, drop_trigger, restore_step
from amprenta_vectors.ddl.steps import Done, Step, SteppedOp, Taught, UndoingOp, done_of, execute, operation, together
from amprenta_vectors.errors import AmprentaError, DimensionMismatch, SchemaMismatch
from amprenta_vectors.pg.errors import IN_USE, STATEMENT_CANCELLED
from amprenta_vectors.pg.names import qualified, quoted
from amprenta_vectors.pg.sessions import LOCK_SECONDS, settings
from amprenta_vectors.pg.tables import Column, count_rows, has_value
from amprenta_vectors.pg.types import Storage, VectorType, is_text, spelt


class AddColumnOp(SteppedOp):
    """An operation that adds a column, whatever its type."""

    table: str
    column: str
    schema: str | None

    def type_of(self, options: Mapping[str, Any]) -> sa.types.TypeEngine[Any]:
        """Return the type that a new column gets."""
        raise NotImplementedError

    def check(self, column: str, found: Column, options: Mapping[str, Any]) -> None:
        """Raise `SchemaMismatch` if a column that is there cannot be adopted or taken back."""
        raise NotImplementedError

    @property
    def null_allowed(self) -> bool:
        """Return whether the column may be NULL although the table had no rows when it was added."""
        return True

    def reverse(self) -> MigrateOperation:
        """Return the operation that undoes this one."""
        return DropColumnOp(
            self.table, self.column, self.schema, tuple(op.column for op in self.companions), _reverse=self
        )

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step for this column and those beside it."""
        return together(op.own_step(catalogue, options) for op in (self, *self.companions))

    def target(self, options: Mapping[str, Any]) -> str:
        """Return the column as runs and models are recorded by it."""
        return target_of(self.table, self.column, self.schema or options.get("schema"))

    def already(self, catalogue: Catalogue, options: Mapping[str, Any]) -> list[Done]:
        """Return which of the columns are there already, if not all are."""
        return done_of(op.own_step(catalogue, options) for op in (self, *self.companions))

    @property
    def companions(self) -> Sequence[AddColumnOp]:
        """Return the columns that come and go with this one."""
        return ()

    def own_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step for this column alone: add it, or one of the steps of `restore`."""
        kept, name = retired_name(self.column), qualified(self.table, self.schema)
        present = catalogue.ask(ColumnFact(self.table, self.column, self.schema), None)
        if present is not None:
            self.check(self.column, present, options)
            was = "is there" if present.comment == MADE else "exists: adopted as it is"
            return Done(f"column {self.column} {present.type} {was}", name)
        catalogue.require_table(self.table, self.schema)
        retired = catalogue.ask(ColumnFact(self.table, kept, self.schema), None)
        if retired is not None and is_retired(retired.comment):
            self.check(kept, retired, options)
            updated_at = catalogue.ask(ColumnFact(self.table, UPDATED_AT, self.schema), None)
            return restore_step(catalogue, self.table, self.column, self.schema, retired, updated_at)
        return self._add_step(catalogue, self.type_of(options))

    def _add_step(self, catalogue: Catalogue, type_: sa.types.TypeEngine[Any]) -> Step:
        if catalogue.connection is not None:
            # Before rows are looked for, which a role may not even read.
            require_ownership(catalogue.connection, self.table, self.schema)
        not_null = not self.null_allowed and not catalogue.ask(HasValue(self.table, self.schema), True)
        name = qualified(self.table, self.schema)

        def add(operations: Operations) -> None:
            must = not_null
            if must and not operations.get_context().as_sql:
                # Under the lock no row can come between the look and the column.
                execute(operations, f"LOCK TABLE {name}")
                must = not has_value(operations.get_bind(), self.table, schema=self.schema)
            column: sa.Column[Any] = sa.Column(self.column, type_, nullable=not must, comment=MADE)
            operations.add_column(self.table, column, schema=self.schema)

        sql = spelt(type_)
        return Step(
            f"add column {self.column} {sql}",
            add,
            {ColumnFact(self.table, self.column, self.schema): Column(sql, MADE, not_null)},
            table=(self.table, self.schema),
            object=name,
            lock="ACCESS EXCLUSIVE",
            blocks="readers and writers",
        )


@operation("add_vector_column")
@dataclass
class AddVectorColumnOp(AddColumnOp):
    """Add a nullable embedding column, or take back the one an earlier downgrade kept.

    Its reverse is ``drop_vector_column``.
    """

    table: str
    column: str
    dimension: int
    storage: Storage = "vector"
    schema: str | None = None
    configurable: bool = False
    nullable: bool = True
    beside: Sequence[sa.Column[Any]] = ()

    @classmethod
    def add_vector_column(
        cls,
        operations: Operations,
        table: str,
        column: str,
        dimension: int,
        *,
        storage: Storage = "vector",
        schema: str | None = None,
        configurable: bool = False,
        nullable: bool = True,
        beside: Sequence[sa.Column[Any]] = (),
    ) -> None:
        """Add ``column`` as ``storage(dimension)``; a column of that name and kind is adopted as it is.

        With ``configurable``, ``-x dimension=`` or ``VECTOR_DIMENSION`` decides instead of ``dimension``. Values kept
        by a downgrade come back, but for rows that changed since it: those become NULL. Without ``nullable`` the column
        is NOT NULL if the table has no rows yet; rows that are there wait to be filled. ``beside`` are columns that
        come and go with it, such as the name of its model; they may be NULL. Raises `DimensionMismatch` or
        `SchemaMismatch` for a column that cannot be adopted.
        """
        operations.invoke(cls(table, column, dimension, storage, schema, configurable, nullable, beside))

    @property
    def companions(self) -> Sequence[AddColumnOp]:
        """Return the columns that come and go with this one."""
        return [AddKeptColumnOp(self.table, each.name, each.type, self.schema) for each in self.beside]

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step for this column, those beside it, and those that other models have in its rows."""
        added = catalogue.ask(AddedColumnsFact(self.target(options), self.table, self.column, self.schema), {})
        models = [model_column(self.table, column, size, schema=self.schema) for column, size in added.items()]
        return together(each.own_step(catalogue, options) for op in (self, *models) for each in (op, *op.companions))

    def alone_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step for this column and those beside it."""
        return super().next_step(catalogue, options)

    @property
    def null_allowed(self) -> bool:
        """Return whether the column may be NULL although the table had no rows when it was added."""
        return self.nullable

    def type_of(self, options: Mapping[str, Any]) -> VectorType:
        """Return the type with the dimension that is demanded, or else with the revision's own."""
        return VectorType(self.storage, self._demanded(options) or self.dimension)

    def check(self, column: str, found: Column, options: Mapping[str, Any]) -> None:
        """Raise `SchemaMismatch` for a column that is no vector, `DimensionMismatch` for one of another length."""
        demanded, actual = self._demanded(options), VectorType.parse(found.type)
        if actual is None:
            raise _wrong_type(self, column, found.type, f"{self.storage}({demanded or self.dimension})")
        if demanded is not None and actual.dimension != demanded:
            raise DimensionMismatch(
                f"VECTOR_DIMENSION is {demanded}, but {self.table}.{column} is {found.type}",
                hint=f"export VECTOR_DIMENSION={actual.dimension}, or unset it",
            )

    def _demanded(self, options: Mapping[str, Any]) -> int | None:
        return configured_dimension(options) if self.configurable else self.dimension


def model_column(
    table: str, column: str, dimension: int, *, storage: Storage = "vector", schema: str | None = None
) -> AddVectorColumnOp:
    """Return the operation that adds the column of another model, with those in which the engine keeps its hashes."""
    beside = [sa.Column(name, sa.BigInteger) for name in hashes_of(column)]
    return AddVectorColumnOp(table, column, dimension, storage, schema, beside=beside)


@operation("add_kept_column")
@dataclass
class AddKeptColumnOp(AddColumnOp):
    """Add a nullable column, or take back the one an earlier downgrade kept."""

    table: str
    column: str
    type: sa.types.TypeEngine[Any]
    schema: str | None = None

    @classmethod
    def add_kept_column(
        cls,
        operations: Operations,
        table: str,
        column: str,
        type: sa.types.TypeEngine[Any],
        *,
        schema: str | None = None,
    ) -> None:
        """Add ``column`` of ``type``; one of that type is adopted as it is.

        Raises `SchemaMismatch` for one of another type.
        """
        operations.invoke(cls(table, column, type, schema))

    def type_of(self, options: Mapping[str, Any]) -> sa.types.TypeEngine[Any]:
        """Return the type as the revision names it."""
        return self.type

    def check(self, column: str, found: Column, options: Mapping[str, Any]) -> None:
        """Raise `SchemaMismatch` for a column of another type; all types of text are one."""
        expected = spelt(self.type)
        if found.type and found.type != expected and not (is_text(found.type) and is_text(expected)):
            raise _wrong_type(self, column, found.type, expected)


@operation("drop_vector_column", "drop_kept_column")
@dataclass
class DropColumnOp(UndoingOp[AddColumnOp]):
    """Take a column out of use: one with values is kept under a retired name, one without is dropped."""

    table: str
    column: str
    schema: str | None = None
    beside: Sequence[str] = ()

    @classmethod
    def drop_vector_column(
        cls,
        operations: Operations,
        table: str,
        column: str,
        *,
        schema: str | None = None,
        beside: Sequence[str] = (),
    ) -> None:
        """Retire ``column``, or drop it if it holds no value or ``-x purge=true`` is given.

        A column that was adopted, not made here, is left as it is. What an interrupted build left of an index on the
        column is dropped. ``beside`` are the columns that go with it.
        """
        operations.invoke(cls(table, column, schema, beside))

    @classmethod
    def drop_kept_column(cls, operations: Operations, table: str, column: str, *, schema: str | None = None) -> None:
        """Retire ``column`` as ``drop_vector_column`` does."""
        operations.invoke(cls(table, column, schema))

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step for this column, those beside it, and those that other models have in its rows."""
        target = target_of(self.table, self.column, self.schema or options.get("schema"))
        added = catalogue.ask(AddedColumnsFact(target, self.table, self.column, self.schema), {})
        models = [DropColumnOp(self.table, column, self.schema, hashes_of(column)) for column in added]
        step = together(
            op.deferring_step(catalogue, options) or op.alone_step(catalogue, options) for op in (self, *models)
        )
        if isinstance(step, Step) or not purging(options) or not catalogue.ask(ModelColumnsFact(target), {}):
            return step
        return forget_models(target, AddedColumnsFact(target, self.table, self.column, self.schema))

    def deferring_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | None:
        """Return the step that defers an index of ours on the column of another model; None for any other column."""
        for index in (
            catalogue.ask(IndexesFact(self.table, self.schema), ()) if self.beside == hashes_of(self.column) else ()
        ):
            ours = self.column in index.columns and index.comment == MADE and not is_unfinished(index.name)
            if ours and catalogue.ask(IndexFact(index.name, self.schema), None) is not None:
                return defer_step(
                    index, target_of(self.table, self.column, self.schema or options.get("schema")), self.schema
                )
        return None

    def alone_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step for this column and those beside it."""
        others = (DropColumnOp(self.table, column, self.schema) for column in self.beside)
        return together(op.own_step(catalogue, options) for op in (self, *others))

    def own_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step for this column alone: wait for workers, then retire it or drop it."""
        where, kept = f"{self.table}.{self.column}", retired_name(self.column)
        name, purge = qualified(self.table, self.schema), purging(options)
        fact, kept_fact = (ColumnFact(self.table, each, self.schema) for each in (self.column, kept))
        column = catalogue.ask(fact, Column("", MADE))
        retired = catalogue.ask(kept_fact, None)
        if column is None:
            if retired is None or not is_retired(retired.comment):
                return Done(f"there is no column {where}: nothing to drop", name)
            if not purge:
                return Done(f"{where}: its values are kept as {kept}", name)
            return self._drop_step(catalogue, kept, purge=True)
        if column.comment != MADE:
            return Done(f"{where} was adopted, not made here: left as it is", name)
        if retired is not None:
            raise SchemaMismatch(
                f"column {self.table}.{kept} is in the way: {where} is to be kept under that name",
                hint=f"ALTER TABLE {name} RENAME COLUMN {qualified(kept)} TO …, then run the downgrade again",
            )
        leases = LeasesFact(target_of(self.table, self.column, self.schema or options.get("schema")))
        if catalogue.ask(leases, 0):
            return wait_for_workers(leases)
        if catalogue.connection is not None:
            # Before values are looked for, which a role may not even read.
            require_ownership(catalogue.connection, self.table, self.schema)
        used = catalogue.ask(IsUsed(f"column {where}"), False)
        filled = catalogue.ask(HasValue(self.table, self.schema, self.column), True)
        if purge and used and filled:
            raise AmprentaError(
                f"{where} cannot be dropped: something of yours depends on it",
                hint="drop that first (psql: \\d+ says what), or downgrade without purging",
            )
        if used or (filled and not purge):
            return self._retire_step(catalogue, column, filled=filled)
        return self._drop_step(catalogue, self.column, purge=purge)

    def _retire_step(self, catalogue: Catalogue, column: Column, *, filled: bool) -> Step:
        """Return the step that renames the column, lets an old application leave it out, and notes the moment."""
        where, kept, name = f"{self.table}.{self.column}", retired_name(self.column), qualified(self.table, self.schema)
        unfinished = self._unfinished(catalogue)
        checks = catalogue.ask(ForbidNull(self.table, self.column, self.schema), ())

        def retire(operations: Operations) -> None:
            self._drop_indexes(operations, unfinished)
            for check in checks:
                operations.drop_constraint(check, self.table, schema=self.schema, type_="check")
                log.warning(
                    "%s: CHECK constraint %s, which forbids NULL, is dropped and does not come back", where, check
                )
            nullable = True if column.not_null or operations.get_context().as_sql else None
            operations.alter_column(
                self.table, self.column, nullable=nullable, new_column_name=kept, schema=self.schema
            )
            execute(operations, comment_retired(f"COLUMN {name}.{qualified(kept)}"))

        kept_as = f"{where}: its values are kept as {kept}"
        used = f"{where}: something of yours depends on it; kept as {kept}, without values"
        return Step(
            f"retire {where} as {kept}",
            retire,
            {
                ColumnFact(self.table, self.column, self.schema): None,
                ColumnFact(self.table, kept, self.schema): Column(column.type, RETIRED),
            },
            said=kept_as if filled else used,
            **self._locked(),
        )

    def _drop_step(self, catalogue: Catalogue, column: str, *, purge: bool) -> Step:
        """Return the step that drops the column, unless a value came into it meanwhile."""
        where = f"{self.table}.{self.column}"
        filled, unfinished = HasValue(self.table, self.schema, column), self._unfinished(catalogue)

        def drop(operations: Operations) -> None:
            if not operations.get_context().as_sql:
                connection = operations.get_bind()
                execute(operations, f"LOCK TABLE {qualified(self.table, self.schema)}")
                if purge:
                    values = count_rows(connection, self.table, self.schema, sa.column(column).is_not(None))
                    if values:
                        log.warning("%s: dropping %d values", where, values)
                else:
                    # Readers wait meanwhile. Where it takes long, the column is kept as if it had a value.
                    with settings(connection, local=True, statement_timeout=f"{LOCK_SECONDS * 1000:.0f}ms"):
                        if has_value(connection, self.table, column, self.schema):
                            raise Taught(filled, True)
            self._drop_indexes(operations, unfinished)
            drop_trigger(operations, WatchFact(self.table, retired_name(self.column), self.schema))
            operations.drop_column(self.table, column, schema=self.schema)

        return Step(
            f"drop column {self.table}.{column}",
            drop,
            {ColumnFact(self.table, column, self.schema): None},
            teaches={IN_USE: (IsUsed(f"column {where}"), True), STATEMENT_CANCELLED: (filled, True)},
            **self._locked(),
        )

    def _unfinished(self, catalogue: Catalogue) -> list[str]:
        """Return the indexes on the column that an interrupted build left, however far it came."""
        indexes = catalogue.ask(IndexesFact(self.table, self.schema), ())
        return [index.name for index in indexes if is_unfinished(index.name) and self.column in index.columns]

    def _drop_indexes(self, operations: Operations, names: list[str]) -> None:
        for name in names:
            operations.drop_index(name, schema=self.schema, if_exists=True)

    def _locked(self) -> dict[str, Any]:
        return {
            "table": (self.table, self.schema),
            "object": qualified(self.table, self.schema),
            "lock": "ACCESS EXCLUSIVE",
            "blocks": "readers and writers",
        }


@dataclass(frozen=True)
class ForbidNull(Fact[tuple[str, ...]]):
    """The CHECK constraints on a column that say no more than NOT NULL, validated or not."""

    table: str
    column: str
    schema: str | None = None

    def find(self, connection: Connection) -> tuple[str, ...]:
        """Return the names of the constraints."""
        names = connection.execute(
            sa.text("""
                SELECT conname FROM pg_constraint c
                JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attname = :column AND c.conkey = ARRAY[a.attnum]
                WHERE c.conrelid = to_regclass(:name) AND c.contype = 'c'
                  AND pg_get_expr(c.conbin, c.conrelid) = format('(%I IS NOT NULL)', a.attname)
                ORDER BY conname
            """),
            {"name": quoted(self.schema, self.table), "column": self.column},
        )
        return tuple(names.scalars())


def _wrong_type(op: AddColumnOp, column: str, found: str, expected: str) -> SchemaMismatch:
    return SchemaMismatch(
        f"column {op.table}.{column} is of type {found}; expected {expected}",
        hint=f"rename it out of the way (ALTER TABLE {qualified(op.table, op.schema)} RENAME COLUMN "
        f"{qualified(column)} TO {qualified(column + '_old')}), then: alembic upgrade head",
    )
