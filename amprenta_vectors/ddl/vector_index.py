"""``op.create_vector_index()``, its reverse, and ``op.replace_vector_index()``: concurrent, and never left invalid."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import Catalogue, ColumnFact, Fact, Foretold, IndexesFact, IndexFact, IsPartitioned
from amprenta_vectors.ddl.index_steps import DeferredFact, build_step, drop_index, drop_step, rename, unfinished_step
from amprenta_vectors.ddl.marks import MADE, building_name
from amprenta_vectors.ddl.options import configured_dimension, configured_index
from amprenta_vectors.ddl.privileges import require_ownership
from amprenta_vectors.ddl.steps import Done, Step, SteppedOp, UndoingOp, execute, operation
from amprenta_vectors.errors import SchemaMismatch
from amprenta_vectors.pg.index_keys import IndexKey, index_key_of
from amprenta_vectors.pg.indexes import DEFAULT_OPTIONS, STORES_LOOK_SECONDS, Index, builder_of, predicate_as_written
from amprenta_vectors.pg.ivfflat import suitable_lists
from amprenta_vectors.pg.names import literal, qualified
from amprenta_vectors.pg.tables import Column, count_rows
from amprenta_vectors.pg.types import CoarserStorage, IndexDistance, IndexMethod


@dataclass
class VectorIndexOp(SteppedOp):
    """An ANN index that is wanted."""

    name: str
    table: str
    column: str
    method: IndexMethod = "hnsw"
    distance: IndexDistance = "cosine"
    options: dict[str, int] = field(default_factory=dict)
    where: str | None = None
    storage: CoarserStorage | None = None
    schema: str | None = None

    @property
    def kind(self) -> str:
        """The method and storage of the index, in words."""
        return f" ({', '.join(filter(None, (self.method, self.storage)))})"

    def key(self, catalogue: Catalogue, options: Mapping[str, Any]) -> IndexKey:
        """Return the key of the index. Raises `SchemaMismatch` for a column that is no vector, or too long."""
        # A script without a database knows no dimension but the one that it is told.
        assumed = Column(f"vector({configured_dimension(options) or 1})")
        column = catalogue.ask(ColumnFact(self.table, self.column, self.schema), assumed)
        if column is None:
            catalogue.require_table(self.table, self.schema)
        found = None if column is None else column.type
        return index_key_of(self.table, self.column, found, self.distance, self.storage)

    def refuse_partitioned(self, catalogue: Catalogue, key: IndexKey) -> None:
        """Raise `SchemaMismatch`, with the statements that build the index, if the table is partitioned."""
        if not catalogue.ask(IsPartitioned(self.table, self.schema), False):
            return
        name, index, typed = qualified(self.table, self.schema), qualified(self.name), f"({key.typed})"
        raise SchemaMismatch(
            f"table {name} is partitioned: PostgreSQL cannot build index {self.name} on it without locking it",
            hint=f"CREATE INDEX {index} ON ONLY {name} USING {self.method} {typed}; for each partition: CREATE INDEX "
            f"CONCURRENTLY name ON partition USING {self.method} {typed}, then ALTER INDEX {index} ATTACH PARTITION "
            "name; then run this again, which finds it",
        )

    def create(self, operations: Operations, name: str, key: IndexKey, *, concurrently: bool) -> None:
        """Build the index under ``name``."""
        operations.create_index(
            name,
            self.table,
            [self.column if key.is_column else key.of(sa.column(self.column))],
            schema=self.schema,
            postgresql_concurrently=concurrently,
            postgresql_using=self.method,
            postgresql_ops={self.column: key.opclass},
            postgresql_with=self._parameters(operations),
            # Not text(), which would take a colon in it for a parameter.
            postgresql_where=None if self.where is None else sa.literal_column(self.where),
        )

    def _parameters(self, operations: Operations) -> dict[str, int]:
        """Return the storage parameters; lists of 0 follow from the rows that are there when the index is built."""
        if self.options.get("lists") != 0:
            return self.options
        if operations.get_context().as_sql:
            return {name: value for name, value in self.options.items() if name != "lists"}
        connection = operations.get_bind()
        rows = count_rows(connection, self.table, self.schema, sa.column(self.column).is_not(None))
        return {**self.options, "lists": suitable_lists(rows)}


@operation("create_vector_index")
@dataclass
class CreateVectorIndexOp(VectorIndexOp):
    """Build an ANN index concurrently, unless it is there or its building is deferred by a backfill."""

    concurrently: bool = True
    configurable: bool = False

    @classmethod
    def create_vector_index(
        cls,
        operations: Operations,
        name: str,
        table: str,
        column: str,
        *,
        method: IndexMethod = "hnsw",
        distance: IndexDistance = "cosine",
        options: Mapping[str, int] | None = None,
        where: str | None = None,
        storage: CoarserStorage | None = None,
        schema: str | None = None,
        concurrently: bool = True,
        configurable: bool = False,
    ) -> None:
        """Build index ``name`` on ``table.column`` outside any transaction; one that does the same is used instead.

        ``method`` is hnsw or ivfflat; ``options`` its storage parameters (``{"m": 16, "ef_construction": 64}``). The
        operator class follows from ``distance`` and what is indexed: the column; with ``storage="halfvec"`` its cast,
        as always past 2000 dimensions; with ``storage="bit"`` the sign of each dimension, as always past 4000, whatever
        the distance. ``where`` is the predicate of a partial index. An invalid leftover is dropped and rebuilt, one
        being built is waited for. ``concurrently=False`` is for a table that the same transaction makes. With
        ``configurable``, ``-x index=`` decides method and storage; ``lists`` of an ivfflat index are 0 to follow from
        the number of rows. Raises `SchemaMismatch` for a column that is no vector, or too long for the storage.
        """
        given = dict(options or {})
        op = cls(name, table, column, method, distance, given, where, storage, schema, concurrently, configurable)
        operations.invoke(op)

    def reverse(self) -> MigrateOperation:
        """Return the operation that undoes this one."""
        return DropVectorIndexOp(self.name, self.schema, _reverse=self)

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step, unless the index is there, deferred, or another does the same."""
        wanted, table = configured(options, self), qualified(self.table, self.schema)
        if catalogue.ask(DeferredFact(self.name), False):
            return Done(f"index {self.name} is left to the backfill that deferred it", table)
        key = wanted.key(catalogue, options)
        index = catalogue.ask(IndexFact(self.name, self.schema), None)
        if index is None and (other := self._equivalent(catalogue, key)) is not None:
            if not other.valid:
                return unfinished_step(catalogue, other, self.schema)
            building = catalogue.ask(IndexFact(building_name(self.name), self.schema), None)
            if building is None:
                return Done(f"index {other.name} does the same as {self.name}: used instead", table)
        if index is None and self.concurrently:
            self.refuse_partitioned(catalogue, key)
        step = build_step(
            catalogue,
            wanted,
            wanted.kind,
            lambda operations, name: wanted.create(operations, name, key, concurrently=self.concurrently),
            concurrently=self.concurrently,
        )
        return step or Done(f"index {self.name} is there: left as it is", table)

    def _equivalent(self, catalogue: Catalogue, key: IndexKey) -> Index | None:
        """Return an index under another name that answers the same queries; one that others are building counts."""
        if self.where is not None:
            return None
        found = catalogue.ask(IndexesFact(self.table, self.schema), ())
        own = (self.name, building_name(self.name))
        alike = [
            index
            for index in found
            if index.name not in own
            and index.method == self.method
            and not index.partial
            and key.is_of(index)
            # That of a partition serves a part of the table.
            and index.table == self.table
        ]
        usable = [index for index in alike if index.valid or _is_built_elsewhere(catalogue, index)]
        return min(usable, key=lambda index: (not index.valid, index.name), default=None)


def _is_built_elsewhere(catalogue: Catalogue, index: Index) -> bool:
    return catalogue.connection is not None and builder_of(catalogue.connection, index) is not None


@operation("drop_vector_index")
@dataclass
class DropVectorIndexOp(UndoingOp[CreateVectorIndexOp]):
    """Drop an index of ours."""

    name: str
    schema: str | None = None
    adopted: bool = False

    @classmethod
    def drop_vector_index(
        cls, operations: Operations, name: str, *, schema: str | None = None, adopted: bool = False
    ) -> None:
        """Drop index ``name`` if this package made it, under a short lock; forget it if a backfill deferred it.

        What an interrupted build of it left is dropped too. With ``adopted=True``, also one that was made otherwise.
        """
        operations.invoke(cls(name, schema, adopted))

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step until the index is gone."""
        return drop_step(catalogue, self, adopted=self.adopted)


@operation("replace_vector_index")
@dataclass
class ReplaceVectorIndexOp(VectorIndexOp, UndoingOp[VectorIndexOp]):
    """Build an ANN index beside the one of that name, and put it in its place."""

    @classmethod
    def replace_vector_index(
        cls,
        operations: Operations,
        name: str,
        table: str,
        column: str,
        *,
        method: IndexMethod = "hnsw",
        distance: IndexDistance = "cosine",
        options: Mapping[str, int] | None = None,
        where: str | None = None,
        storage: CoarserStorage | None = None,
        schema: str | None = None,
    ) -> None:
        """Make index ``name`` what the arguments say, those of ``create_vector_index``; queries have one all the time.

        The new one is built beside the old one. A minute later, when every running store has looked at the indexes
        again, it gets the name, and the old one goes. An index that is as wanted is left.
        """
        operations.invoke(cls(name, table, column, method, distance, dict(options or {}), where, storage, schema))

    def reverse(self) -> ReplaceVectorIndexOp:
        """Return the operation that puts the old index back. Raises ValueError if that is not known."""
        old = super().reverse()
        shared = {name: getattr(old, name) for name in VectorIndexOp.__dataclass_fields__}
        return ReplaceVectorIndexOp(**shared, _reverse=self)

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step: build the new index, wait for the stores, or put it in place of the old one."""
        fact, building_fact = (IndexFact(name, self.schema) for name in (self.name, building_name(self.name)))
        key, table = self.key(catalogue, options), qualified(self.table, self.schema)
        index, building = (
            catalogue.ask(fact, Index(self.name, self.table, comment=MADE)),
            catalogue.ask(building_fact, None),
        )
        create = CreateVectorIndexOp(**{name: getattr(self, name) for name in VectorIndexOp.__dataclass_fields__})
        as_wanted = index is not None and index.valid and self._is(catalogue, index, key)
        if index is None or as_wanted:
            # Without an old one, a new one is to be built; with the right one, only what is left beside it is to go.
            return create.next_step(catalogue, options)
        if building is not None and building.valid and not self._is(catalogue, building, key):
            # What the build of another revision left.
            return drop_index(building, self.schema)
        if building is None or not building.valid:
            self.refuse_partitioned(catalogue, key)
            beside = Foretold(catalogue)
            beside.learn(fact, None)
            step = build_step(
                beside,
                self,
                self.kind,
                lambda operations, name: self.create(operations, name, key, concurrently=True),
                concurrently=True,
            )
            assert step is not None  # noqa: S101 - one of these is always left where the index is not there
            return step
        if building.comment != MADE:
            return Step(
                f"wait {STORES_LOOK_SECONDS:.0f} s, until every running store has seen the new index",
                lambda operations: _let_stores_look(operations, building.name, self.schema),
                {building_fact: Index(building.name, self.table, comment=MADE)},
                table=(self.table, self.schema),
                object=table,
                duration=f"{STORES_LOOK_SECONDS:.0f} s",
                place="concurrently",
            )

        def swap(operations: Operations) -> None:
            operations.drop_index(self.name, schema=self.schema)
            rename(operations, building.name, self.name, self.schema)

        return Step(
            f"put the new index {self.name} in place of the old one",
            swap,
            {building_fact: None, fact: Index(self.name, self.table, comment=MADE)},
            table=(self.table, self.schema),
            object=table,
            lock="ACCESS EXCLUSIVE",
            blocks="readers and writers",
            needs=(lambda connection: require_ownership(connection, self.table, self.schema),),
        )

    def _is(self, catalogue: Catalogue, index: Index, key: IndexKey) -> bool:
        """Return whether ``index`` is as wanted; predicates are compared as PostgreSQL writes them."""
        options = {
            **DEFAULT_OPTIONS[self.method],
            **{name: str(value) for name, value in self.options.items() if value},
        }
        same = index.method == self.method and key.is_of(index) and index.effective_options == options
        if not same or self.where is None or index.predicate is None:
            return same and (self.where is None) == (index.predicate is None)
        return catalogue.ask(PredicateFact(self.table, self.schema, self.where), self.where) == index.predicate


@dataclass(frozen=True)
class PredicateFact(Fact[str]):
    """The predicate of a partial index on a table, as PostgreSQL writes it."""

    table: str
    schema: str | None
    where: str

    def find(self, connection: Connection) -> str:
        """Return the predicate; a table like that one is made for that, and rolled back."""
        return predicate_as_written(connection, self.where, self.table, self.schema)


def _let_stores_look(operations: Operations, name: str, schema: str | None) -> None:
    """Wait until every running store has seen an index, and mark it as one that was waited for."""
    if not operations.get_context().as_sql:
        time.sleep(STORES_LOOK_SECONDS)
    execute(operations, f"COMMENT ON INDEX {qualified(name, schema)} IS {literal(MADE)}")


def configured(options: Mapping[str, Any], op: CreateVectorIndexOp) -> CreateVectorIndexOp:
    """Return ``op`` with the method and storage that ``-x index=`` asks for, if it is configurable."""
    asked = configured_index(options) if op.configurable else None
    if asked is None:
        return op
    method, storage = asked
    parameters = op.options if method == op.method else {"lists": 0} if method == "ivfflat" else {}
    return replace(op, method=method, storage=storage or op.storage, options=parameters)
