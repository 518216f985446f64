"""``op.add_model_column()`` and its reverse: a column for another embedding model beside those that are there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alembic.operations import MigrateOperation, Operations

from amprenta_vectors.ddl.backfill import target_of
from amprenta_vectors.ddl.catalogue import Catalogue, ColumnFact, Fact, IndexesFact, IndexFact
from amprenta_vectors.ddl.columns import AddVectorColumnOp, DropColumnOp, model_column
from amprenta_vectors.ddl.index_steps import DeferredFact, defer_statement, drop_index
from amprenta_vectors.ddl.marks import MADE
from amprenta_vectors.ddl.model_facts import ANY_MODEL, SCOPE, ModelColumnsFact, RegisteredFact, SearchedFact, hashes_of
from amprenta_vectors.ddl.steps import Done, Step, SteppedOp, UndoingOp, execute, operation
from amprenta_vectors.ddl.vector_index import DropVectorIndexOp
from amprenta_vectors.errors import DimensionMismatch, SchemaMismatch
from amprenta_vectors.pg.index_keys import index_key
from amprenta_vectors.pg.indexes import DEFAULT_OPTIONS
from amprenta_vectors.pg.names import compose, literal, qualified, suffixed
from amprenta_vectors.pg.tables import Column
from amprenta_vectors.pg.types import Distance, Storage, VectorType

_MODEL = """\
INSERT INTO embedding_models (model_name, dimension, provider, parameters)
VALUES ({name}, {dimension}, {provider}, {parameters})"""
_COLUMN = """\
INSERT INTO model_column (target, model_id, column_name, written, searched)
SELECT {target}, id, {column}, {written}, {searched} FROM embedding_models WHERE model_name = {name}"""
_FORGET = """\
DELETE FROM model_column WHERE target = {target} AND column_name = {column}
AND model_id = (SELECT id FROM embedding_models WHERE model_name = {name})"""


@operation("add_model_column")
@dataclass
class AddModelColumnOp(SteppedOp):
    """Give a table's rows a column for a model, and register it: from then on stores write it too."""

    table: str
    column: str
    model: str
    dimension: int
    own_column: str = "embedding"
    provider: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    storage: Storage = "vector"
    distance: Distance = "cosine"
    index: str | None = None
    written: bool = True
    schema: str | None = None

    @classmethod
    def add_model_column(
        cls,
        operations: Operations,
        table: str,
        column: str,
        model: str,
        dimension: int,
        *,
        own_column: str = "embedding",
        provider: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        storage: Storage = "vector",
        distance: Distance = "cosine",
        index: str | None = None,
        written: bool = True,
        schema: str | None = None,
    ) -> None:
        """Add ``column`` for ``model``, defer its index, and register both; a column that is there is adopted.

        ``own_column`` is the embedding column that the table is known by. The first model of a table is the one that
        is searched, and its column must be there; every later one is ``written`` until its rows are complete and
        ``amprenta-vectors models switch`` has queries search it. ``provider`` is the embedder that makes its vectors,
        ``parameters`` how that is asked (docs/change-the-model.md). ``index`` is the name of the index. Raises
        `DimensionMismatch` for a model that is registered with another dimension, `SchemaMismatch` for a column that
        another model has.
        """
        given = dict(parameters or {})
        operations.invoke(
            cls(table, column, model, dimension, own_column, provider, given, storage, distance, index, written, schema)
        )

    def reverse(self) -> MigrateOperation:
        """Return the operation that undoes this one."""
        return DropModelColumnOp(
            self.table, self.column, self.model, self.own_column, self.index, self.schema, _reverse=self
        )

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step: the column, its index deferred, the model, and its column registered."""
        target = target_of(self.table, self.own_column, self.schema or options.get("schema"))
        registered = catalogue.ask(RegisteredFact(self.model), None)
        if registered is not None and registered != self.dimension:
            raise DimensionMismatch(
                f"model exists with different dimension: {self.model} is registered with {registered}, not "
                f"{self.dimension}",
                hint=f"a model of another dimension has another name, such as {self.model}-{self.dimension}; "
                "amprenta-vectors models list says what is registered",
            )
        # A script is for a table without models, or for one whose own column has a model already.
        own = self.column == self.own_column
        searched = catalogue.ask(SearchedFact(target), not own)
        if own:
            catalogue.ask(ColumnFact(self.table, self.column, self.schema), Column(f"{self.storage}({self.dimension})"))
        columns = catalogue.ask(ModelColumnsFact(target), {} if own else {ANY_MODEL: self.own_column})
        self._check_column(catalogue, columns)
        step = self.vector_column.alone_step(catalogue, options)
        if isinstance(step, Step):
            return step
        name = qualified(self.table, self.schema)
        if (relaxed := self._nullable_step(catalogue)) is not None:
            return relaxed
        if registered is None:
            statement = compose(
                _MODEL,
                name=literal(self.model),
                dimension=str(int(self.dimension)),
                provider="NULL" if self.provider is None else literal(self.provider),
                parameters=literal(json.dumps(dict(self.parameters))),
            )
            return Step(
                f"register model {self.model} of {self.dimension} dimensions",
                lambda operations: execute(operations, statement),
                {RegisteredFact(self.model): self.dimension},
                object=name,
            )
        if self.model in columns:
            return Done(f"model {self.model} has column {columns[self.model]}", name)
        return self._register_step(catalogue, target, columns, first=not searched)

    def _nullable_step(self, catalogue: Catalogue) -> Step | None:
        """Return the step that lets the table's own column be NULL: the rows of another model have no value there."""
        fact = ColumnFact(self.table, self.own_column, self.schema)
        if self.column == self.own_column or not self._is_scoped(catalogue):
            return None
        own, name = catalogue.ask(fact, None), qualified(self.table, self.schema)
        if own is None or not own.not_null:
            return None
        return Step(
            f"let column {self.own_column} be NULL",
            lambda operations: operations.alter_column(self.table, self.own_column, nullable=True, schema=self.schema),
            {fact: Column(own.type, own.comment)},
            table=(self.table, self.schema),
            object=name,
            lock="ACCESS EXCLUSIVE",
            blocks="readers and writers",
            said=f"{name}.{self.own_column} may be NULL from now on: rows of other models have no value there",
        )

    @property
    def vector_column(self) -> AddVectorColumnOp:
        """The column, with those in which the engine keeps what it wrote there."""
        if self.column == self.own_column:
            return AddVectorColumnOp(self.table, self.column, self.dimension, self.storage, self.schema)
        return model_column(self.table, self.column, self.dimension, storage=self.storage, schema=self.schema)

    def _check_column(self, catalogue: Catalogue, columns: Mapping[str, str]) -> None:
        """Raise `SchemaMismatch` if the column is another model's, or there is none yet that is searched."""
        name = qualified(self.table, self.schema)
        others = self._others(columns)
        if self.model in columns and columns[self.model] != self.column:
            raise SchemaMismatch(
                f"model {self.model} has column {columns[self.model]} of {name}, not {self.column}",
                hint=f"name that column, or first: amprenta-vectors models retire {self.model}",
            )
        own = ColumnFact(self.table, self.own_column, self.schema)
        if not columns and self.column != self.own_column and catalogue.ask(own, None) is not None:
            raise SchemaMismatch(
                f"which model the vectors in {name}.{self.own_column} are of is not registered",
                hint=f"amprenta-vectors models add NAME --column {self.own_column}, with the name of that model",
            )
        if others and not self._is_scoped(catalogue):
            raise SchemaMismatch(
                f"column {self.column} of {name} holds the vectors of model {others[0]}; two models in one column "
                "would be searched as one",
                hint=f"another column: --column {suffixed(self.column, '_2')}",
            )

    def _register_step(self, catalogue: Catalogue, target: str, columns: Mapping[str, str], *, first: bool) -> Step:
        name = qualified(self.table, self.schema)
        statements = [
            compose(
                _COLUMN,
                target=literal(target),
                column=literal(self.column),
                written="true" if self.written or first else "false",
                searched="true" if first else "false",
                name=literal(self.model),
            )
        ]
        effects: dict[Fact[Any], Any] = {ModelColumnsFact(target): {**columns, self.model: self.column}}
        if first:
            effects |= {SearchedFact(target): True, SearchedFact(target, self.model): True}
        others, index = len(self._others(columns)), self.index or index_name(self.table, self.column)
        # The first model of a column has the plain name.
        index = suffixed(index, f"_{others + 1}") if others else index
        if self.column != self.own_column and not self._has_index(catalogue, index):
            of_model = self.model if self._is_scoped(catalogue) else None
            into = target_of(self.table, self.column, self.schema)
            statements.append(defer_statement(into, index, self._definition(index), MADE, of_model=of_model))
            effects[DeferredFact(index)] = True

        def register(operations: Operations) -> None:
            for statement in statements:
                execute(operations, statement)

        what = "searched" if first else "written; its index is deferred until its rows are filled"
        return Step(f"register {name}.{self.column} for model {self.model}: {what}", register, effects, object=name)

    def _others(self, columns: Mapping[str, str]) -> list[str]:
        """Return the other models that have the column."""
        return [model for model, column in columns.items() if column == self.column and model != self.model]

    def _is_scoped(self, catalogue: Catalogue) -> bool:
        """Return whether the table has a row for each key and model."""
        return catalogue.ask(ColumnFact(self.table, SCOPE, self.schema), None) is not None

    def _has_index(self, catalogue: Catalogue, name: str) -> bool:
        """Return whether an index of the column is there; of a column that models share, one of that name."""
        if self._is_scoped(catalogue):
            return catalogue.ask(IndexFact(name, self.schema), None) is not None
        indexes = catalogue.ask(IndexesFact(self.table, self.schema), ())
        return any(self.column in index.columns for index in indexes)

    def _definition(self, index: str) -> str:
        """Return the statement that builds the index, as the catalogue would say it."""
        key = index_key(self.column, VectorType(self.storage, self.dimension), self.distance, None)
        options = ", ".join(f"{option}='{value}'" for option, value in DEFAULT_OPTIONS["hnsw"].items())
        return compose(
            "CREATE INDEX {index} ON {table} USING hnsw ({key}) WITH ({options})",
            index=qualified(index),
            table=qualified(self.table, self.schema),
            key=key.typed,
            options=options,
        )


@operation("drop_model_column")
@dataclass
class DropModelColumnOp(UndoingOp[AddModelColumnOp]):
    """Take a model's column out of use; its values are kept under a retired name, without an index."""

    table: str
    column: str
    model: str
    own_column: str = "embedding"
    index: str | None = None
    schema: str | None = None

    @classmethod
    def drop_model_column(
        cls,
        operations: Operations,
        table: str,
        column: str,
        model: str,
        *,
        own_column: str = "embedding",
        index: str | None = None,
        schema: str | None = None,
    ) -> None:
        """Forget that ``model`` has ``column``, drop the indexes made for it, and retire the column or drop it.

        The table's own column stays, and so does one that other models have values in. The arguments are those of
        ``add_model_column``. Raises `SchemaMismatch` for the model that queries search, while the table has another.
        """
        operations.invoke(cls(table, column, model, own_column, index, schema))

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step: forget the model's column, drop its indexes, retire the column. One commit has all."""
        target = target_of(self.table, self.own_column, self.schema or options.get("schema"))
        own, name = self.column == self.own_column, qualified(self.table, self.schema)
        searched = catalogue.ask(SearchedFact(target, self.model), own)
        columns = catalogue.ask(ModelColumnsFact(target), {self.model: self.column})
        left = {model: column for model, column in columns.items() if model != self.model}
        if self.model in columns:
            if searched and left:
                raise SchemaMismatch(
                    f"{self.model} is the model that queries of {name} search",
                    hint=f"amprenta-vectors models switch {next(iter(left))}, then run this again",
                )
            return self._forget_step(target, left, last=searched)
        if own or self.column in left.values():
            return Done(f"column {self.column} stays: it is the table's own, or another model's", name)
        index = DropVectorIndexOp(self.index or index_name(self.table, self.column), self.schema)
        column = catalogue.ask(ColumnFact(self.table, self.column, self.schema), Column("", MADE))
        if column is not None:
            step = index.next_step(catalogue, options)
            if isinstance(step, Step):
                return step
        for other in catalogue.ask(IndexesFact(self.table, self.schema), ()) if column is not None else ():
            ours = self.column in other.columns and other.comment == MADE
            if ours and catalogue.ask(IndexFact(other.name, self.schema), None) is not None:
                return drop_index(other, self.schema)
        return DropColumnOp(self.table, self.column, self.schema, hashes_of(self.column)).alone_step(catalogue, options)

    def _forget_step(self, target: str, left: Mapping[str, str], *, last: bool) -> Step:
        statement = compose(_FORGET, target=literal(target), column=literal(self.column), name=literal(self.model))
        effects: dict[Fact[Any], Any] = {ModelColumnsFact(target): left}
        if last:
            effects |= {SearchedFact(target): False, SearchedFact(target, self.model): False}
        return Step(
            f"forget that model {self.model} has column {self.column}",
            lambda operations: execute(operations, statement),
            effects,
            object=qualified(self.table, self.schema),
        )


def index_name(table: str, column: str) -> str:
    """Return the name of the index of a model's column, where none is given."""
    return suffixed(f"idx_{table}_{column}", "_hnsw")
