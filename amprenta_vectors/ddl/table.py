"""``op.adopt_table()``: take a table as it is, or make it; its reverse keeps what it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import CreateTableOp
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import Catalogue, Fact, HasValue, IsUsed, TableFact, refuse_unless
from amprenta_vectors.ddl.marks import MADE, RETIRED, comment_retired, is_ours, is_retired, retired_name
from amprenta_vectors.ddl.options import is_adopted, log, purging
from amprenta_vectors.ddl.privileges import require_create, require_ownership
from amprenta_vectors.ddl.sections import OtherSections
from amprenta_vectors.ddl.steps import Done, Step, SteppedOp, Taught, UndoingOp, execute, operation, write_check
from amprenta_vectors.errors import AmprentaError, SchemaMismatch
from amprenta_vectors.pg.errors import IN_USE
from amprenta_vectors.pg.indexes import unique_column_sets
from amprenta_vectors.pg.names import compose, literal, qualified
from amprenta_vectors.pg.tables import Column, Table, count_rows, has_value, schemas_with
from amprenta_vectors.pg.types import DOCUMENTS, TEXTS, bare_type, spelt

# What holds for a type holds for a domain on it.
_TYPED = """WITH RECURSIVE chain (oid) AS (
    SELECT pg_typeof(t.{column})::oid FROM (SELECT) one LEFT JOIN {table} t ON false
    UNION ALL SELECT typbasetype FROM chain JOIN pg_type USING (oid) WHERE typtype = 'd'
) SELECT {type}::regtype = ANY(SELECT oid FROM chain)"""
# PostgreSQL looks for the index that the conflict is about, and fails where there is none.
_ARBITRATED = "INSERT INTO {table} ({keys}) SELECT {keys} FROM {table} WHERE false ON CONFLICT ({keys}) DO NOTHING"


@operation("adopt_table")
@dataclass
class AdoptTableOp(SteppedOp):
    """Adopt a table that exists and make one that does not."""

    table: str
    elements: Sequence[sa.schema.SchemaItem]
    key: Sequence[str] = ()
    scope: Sequence[str] = ()
    relies_on: Sequence[str] = ()
    types: Mapping[str, str] = field(default_factory=dict)
    schema: str | None = None

    @classmethod
    def adopt_table(
        cls,
        operations: Operations,
        table: str,
        *elements: sa.schema.SchemaItem,
        key: Sequence[str] = (),
        scope: Sequence[str] = (),
        relies_on: Sequence[str] = (),
        types: Mapping[str, str] | None = None,
        schema: str | None = None,
    ) -> None:
        """Make ``table`` of ``elements`` if it is absent; if it exists, check what is relied on.

        Relied on are the columns ``key``, ``relies_on`` and ``types``, which maps some to the type they must have, and
        a unique index on exactly ``key`` with those ``scope`` columns that the table has. Raises `SchemaMismatch`
        naming what is missing, or the schema in which a table of that name is hidden from the search path.
        """
        operations.invoke(cls(table, elements, key, scope, relies_on, types or {}, schema))

    @cached_property
    def as_table(self) -> sa.Table:
        """Return the table as SQLAlchemy knows it; once, because an index belongs to one table for good."""
        return CreateTableOp(self.table, list(self.elements), schema=self.schema).to_table()

    @property
    def relied_on(self) -> list[str]:
        """Return the columns that a table must have to be adopted."""
        return list(dict.fromkeys((*self.key, *self.relies_on, *self.types)))

    def reverse(self) -> MigrateOperation:
        """Return the operation that undoes this one."""
        return RetireTableOp(self.table, self.schema, _reverse=self)

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step: none for a table that serves, else take a retired one back, or make one."""
        name, kept = qualified(self.table, self.schema), retired_name(self.table)
        fact, kept_fact = TableFact(self.table, self.schema), TableFact(kept, self.schema)
        assumed = Table(self.table, self.schema) if is_adopted(options, self.table) else None
        if (table := catalogue.ask(fact, assumed)) is not None:
            if table.comment == MADE:
                return Done(f"{name} is there", name)
            if catalogue.connection is None:
                return Step(f"check that {name} has what is relied on", self._write_check, last=True)
            self._check(catalogue, table)
            return Done(f"{name} exists: adopted as it is{''.join(self._not_used(table))}", name)
        retired = catalogue.ask(kept_fact, None)
        if retired is not None and is_retired(retired.comment):
            return Step(
                f"take back {name} from {qualified(kept, self.schema)}",
                lambda operations: _rename(operations, kept, self.table, self.schema, MADE),
                {kept_fact: None, fact: replace(retired, name=self.table, comment=MADE)},
                table=(kept, self.schema),
                object=qualified(kept, self.schema),
                lock="ACCESS EXCLUSIVE",
                blocks="nobody",
                needs=(lambda connection: require_ownership(connection, kept, self.schema),),
                measured=lambda connection: (
                    f"take back {name} from {qualified(kept, self.schema)}, with "
                    f"{count_rows(connection, kept, self.schema):,} rows"
                ),
                said=f"{self.table}: taken back from {kept}",
            )
        if self.key and self.schema is None and (others := catalogue.ask(HiddenTables(self.table), ())):
            # An application's own revision names the schema; ours are not the application's to change.
            ours = f"amprenta-vectors db upgrade --section {options.get('section')} --schema {others[0]} adopts it; "
            ours += f"so does alembic -x schema={others[0]} upgrade head"
            raise SchemaMismatch(
                f"table {self.table} is in schema {', '.join(others)}, which is not on the search path; this upgrade "
                "would make an empty one beside it",
                hint=ours if "section" in options else f"name its schema in the revision: schema={others[0]!r}",
            )

        def create(operations: Operations) -> None:
            operations.create_table(self.table, *self.elements, schema=self.schema, comment=MADE)

        return Step(
            f"create table {name}",
            create,
            {fact: _foretold(self), HasValue(self.table, self.schema): False},
            needs=(lambda connection: require_create(connection, self.schema),),
        )

    def _check(self, catalogue: Catalogue, table: Table) -> None:
        """Raise `SchemaMismatch` if the table lacks what is relied on."""
        name = qualified(self.table, self.schema)
        missing = [column for column in self.relied_on if column not in table.columns]
        if missing:
            raise SchemaMismatch(
                f"table {name} exists without the columns relied on: {', '.join(missing)}",
                hint=f"add them (ALTER TABLE {name} ADD COLUMN …), or rename the table out of the way",
            )
        for column, type_ in self.types.items():
            found = table.columns[column]
            # What holds for a type holds for a domain on it.
            if type_ not in (found.type, found.base):
                raise SchemaMismatch(
                    f"column {name}.{qualified(column)} is of type {found.type}; expected {type_}",
                    hint=f"rename the table out of the way, or ALTER TABLE {name} ALTER COLUMN {qualified(column)} "
                    f"TYPE {type_} USING …, then run the upgrade again",
                )
        wanted = frozenset(column for column in (*self.scope, *self.key) if column in table.columns)
        if self.key and wanted not in catalogue.ask(UniqueSets(self.table, self.schema), (wanted,)):
            listed = ", ".join(map(qualified, (each for each in (*self.scope, *self.key) if each in wanted)))
            raise SchemaMismatch(
                f"table {name} exists without a unique index on exactly ({listed})",
                hint=f"CREATE UNIQUE INDEX CONCURRENTLY ON {name} ({listed})",
            )

    def _not_used(self, table: Table) -> Iterator[str]:
        """Yield what might stand in for each column that the table lacks: a column of its kind and of another name."""
        made = {element.name: spelt(element.type) for element in self.elements if isinstance(element, sa.Column)}
        for name, type_ in made.items():
            kind = next((kind for kind in (TEXTS, DOCUMENTS) if bare_type(type_) in kind), ())
            there = [
                f"{other} {column.type}"
                for other, column in table.columns.items()
                if other not in made and bare_type(column.base) in kind and not is_ours(column.comment)
            ]
            if name not in table.columns and there:
                yield f"; it has no {name}, and does not use {', '.join(there)}: amprenta-vectors doctor says how to"

    def _write_check(self, operations: Operations) -> None:
        """Write statements that fail, changing nothing, if the table lacks what is relied on."""
        context = operations.get_context()
        parts = {"table": qualified(self.table, self.schema)}
        columns = ", ".join(map(qualified, self.relied_on))
        write_check(context, compose("SELECT {columns} FROM {table} WHERE false", columns=columns, **parts))
        for column, type_ in self.types.items():
            typed = compose(_TYPED, column=qualified(column), type=literal(type_), **parts)
            write_check(context, refuse_unless(typed, f"{self.table}.{column} is {type_}"))
        if self.key:
            write_check(context, compose(_ARBITRATED, keys=", ".join(map(qualified, self.key)), **parts))


@operation("retire_table")
@dataclass
class RetireTableOp(UndoingOp[AdoptTableOp]):
    """Take a table of ours out of use: one with rows is kept under a retired name, one without is dropped."""

    table: str
    schema: str | None = None
    shared: bool = False

    @classmethod
    def retire_table(
        cls, operations: Operations, table: str, *, schema: str | None = None, shared: bool = False
    ) -> None:
        """Retire ``table``, or drop it if it is empty or ``-x purge=true`` is given; leave an adopted one.

        With ``shared``, it is left while another section has revisions in this database.
        """
        operations.invoke(cls(table, schema, shared))

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step: retire the table with its rows, drop it without, leave an adopted one."""
        name, kept, purge = qualified(self.table, self.schema), retired_name(self.table), purging(options)
        fact, kept_fact = TableFact(self.table, self.schema), TableFact(kept, self.schema)
        if self.shared and catalogue.ask(OtherSections(options.get("version_table")), ()):
            return Done(f"{name} is left: another section needs it")
        assumed = Table(self.table, self.schema, comment="" if is_adopted(options, self.table) else MADE)
        if (table := catalogue.ask(fact, assumed)) is None:
            return Done(f"there is no table {name}: nothing to drop")
        if table.comment != MADE:
            return Done(f"{self.table} was adopted, not made here: left as it is")
        if catalogue.ask(kept_fact, None) is not None:
            raise SchemaMismatch(
                f"table {kept} is in the way: {self.table} is to be kept under that name",
                hint=f"ALTER TABLE {qualified(kept, self.schema)} RENAME TO …, then run the downgrade again",
            )
        used = catalogue.ask(IsUsed(f"table {name}"), False)
        rows = catalogue.ask(HasValue(self.table, self.schema), True)
        if purge and rows and used:
            raise AmprentaError(
                f"{self.table} cannot be dropped: something of yours depends on it",
                hint="drop that first (psql: \\d+ says what), or downgrade without purging",
            )
        shared: dict[str, Any] = {
            "table": (self.table, self.schema),
            "object": name,
            "lock": "ACCESS EXCLUSIVE",
            "blocks": "readers and writers",
            "needs": (lambda connection: require_ownership(connection, self.table, self.schema),),
        }
        if used or (rows and not purge):
            without = f"{self.table}: something of yours depends on it; kept as {kept}, without rows"
            return Step(
                f"retire table {name} as {kept}",
                lambda operations: _retire(operations, self.table, kept, self.schema),
                {fact: None, kept_fact: replace(table, name=kept, comment=RETIRED)},
                said=f"{self.table}: kept as {kept}" if rows else without,
                **shared,
            )
        return Step(
            f"drop table {name}",
            lambda operations: self._drop(operations, purge=purge),
            {fact: None},
            teaches={IN_USE: (IsUsed(f"table {name}"), True)},
            **shared,
        )

    def _drop(self, operations: Operations, *, purge: bool) -> None:
        """Drop the table, unless a row came into it meanwhile."""
        if not operations.get_context().as_sql:
            connection = operations.get_bind()
            execute(operations, f"LOCK TABLE {qualified(self.table, self.schema)}")
            if has_value(connection, self.table, schema=self.schema):
                if not purge:
                    raise Taught(HasValue(self.table, self.schema), True)
                rows = count_rows(connection, self.table, self.schema)
                log.warning("%s: dropping %d rows", self.table, rows)
        operations.drop_table(self.table, schema=self.schema)


def _rename(operations: Operations, old: str, new: str, schema: str | None, comment: str) -> None:
    operations.rename_table(old, new, schema=schema)
    operations.create_table_comment(new, comment, schema=schema)


def _retire(operations: Operations, old: str, kept: str, schema: str | None) -> None:
    operations.rename_table(old, kept, schema=schema)
    execute(operations, comment_retired(f"TABLE {qualified(kept, schema)}"))


@dataclass(frozen=True)
class UniqueSets(Fact[tuple[frozenset[str], ...]]):
    """The columns of every unique index of a table that ON CONFLICT can name."""

    table: str
    schema: str | None = None

    def find(self, connection: Connection) -> tuple[frozenset[str], ...]:
        """Return the set of columns of each such index."""
        return tuple(unique_column_sets(connection, self.table, self.schema))


@dataclass(frozen=True)
class HiddenTables(Fact[tuple[str, ...]]):
    """The schemas off the search path that have a table of a name."""

    table: str

    def find(self, connection: Connection) -> tuple[str, ...]:
        """Return the names of the schemas."""
        return tuple(schemas_with(connection, self.table))


def _foretold(op: AdoptTableOp) -> Table:
    """Return the table that ``op`` makes, as the catalogue will have it."""
    columns = {
        element.name: Column(spelt(element.type), element.comment or "", not element.nullable)
        for element in op.elements
        if isinstance(element, sa.Column)
    }
    return Table(op.table, op.schema, comment=MADE, columns=columns)
