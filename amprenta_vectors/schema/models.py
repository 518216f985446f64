"""The models of a vector table: what is registered of each, and the column that holds its vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection

from amprenta_vectors.errors import UnknownModel
from amprenta_vectors.schema.vector_table import VectorTable

MODEL_SCOPE = "model_id"
"""The scope column of a table that has one row for each key and model: there, models may share a column."""

MODELS = sa.table(
    "embedding_models",
    sa.column("id", sa.Integer),
    sa.column("model_name", sa.Text),
    sa.column("dimension", sa.Integer),
    sa.column("provider", sa.Text),
    sa.column("parameters", JSONB),
)
MODEL_COLUMNS = sa.table(
    "model_column",
    sa.column("target", sa.Text),
    sa.column("model_id", sa.Integer),
    sa.column("column_name", sa.Text),
    sa.column("written", sa.Boolean),
    sa.column("searched", sa.Boolean),
    sa.column("written_at", sa.TIMESTAMP(timezone=True)),
    sa.column("switched_at", sa.TIMESTAMP(timezone=True)),
)
_MAY_READ = sa.text("""
    SELECT coalesce(
        has_table_privilege(to_regclass('model_column'), 'SELECT')
        AND has_table_privilege(to_regclass('embedding_models'), 'SELECT'), false)
""")
_OF_TARGET = (
    sa.select(
        MODELS,
        MODEL_COLUMNS.c.column_name,
        MODEL_COLUMNS.c.written,
        MODEL_COLUMNS.c.searched,
        MODEL_COLUMNS.c.switched_at.is_not(None).label("switched"),
    )
    .select_from(MODEL_COLUMNS.join(MODELS, MODELS.c.id == MODEL_COLUMNS.c.model_id))
    .where(MODEL_COLUMNS.c.target == sa.bindparam("target"))
    .order_by(MODELS.c.id)
)


@dataclass(frozen=True)
class RegisteredModel:
    """A row of ``embedding_models``. ``provider`` is the embedder that makes its vectors, None if only others do.

    ``parameters`` are how that embedder is asked: ``model``, its name for the model; ``query_prefix`` and
    ``text_prefix``, which are put before a query and before a text.
    """

    id: int
    name: str
    dimension: int
    provider: str | None = None
    parameters: Mapping[str, Any] | None = None

    def parameter(self, name: str) -> str | None:
        """Return a parameter; None if it is not given."""
        value = (self.parameters or {}).get(name)
        return None if value is None else str(value)


@dataclass(frozen=True)
class ModelColumn:
    """A model of a vector table, the column of its vectors, and whether that is written and searched.

    ``switched`` tells whether queries were ever switched to the model, so that another was searched before.
    """

    model: RegisteredModel
    column: str
    written: bool
    searched: bool
    switched: bool = False


def has_registry(connection: Connection) -> bool:
    """Return whether the registry is there, whoever may read it."""
    return connection.scalar(sa.text("SELECT to_regclass('model_column')")) is not None


def may_read_models(connection: Connection) -> bool:
    """Return whether the registry is there, and this role may read it."""
    return bool(connection.scalar(_MAY_READ))


def models_of(connection: Connection, table: VectorTable) -> tuple[ModelColumn, ...]:
    """Return the models of a vector table in the order in which they were registered.

    Empty where the registry does not exist, or this role may not read it.
    """
    if not may_read_models(connection):
        return ()
    return tuple(
        ModelColumn(
            RegisteredModel(row.id, row.model_name, row.dimension, row.provider, row.parameters),
            row.column_name,
            row.written,
            row.searched,
            row.switched,
        )
        for row in connection.execute(_OF_TARGET, {"target": table.own_target})
    )


def searched_of(models: Sequence[ModelColumn]) -> ModelColumn | None:
    """Return the model that is searched; None if none is registered."""
    return next((each for each in models if each.searched), None)


def model_named(models: Sequence[ModelColumn], name: str, table: VectorTable) -> ModelColumn:
    """Return the model of that name. Raises `UnknownModel` naming those that there are."""
    for each in models:
        if each.model.name == name:
            return each
    raise UnknownModel(
        f"{name!r} is no model of table {table.qualified_name}; its models: "
        f"{', '.join(each.model.name for each in models) or 'none'}",
        hint=f"one of those, or amprenta-vectors models add {name}",
    )


def hash_columns(column: str) -> tuple[str, str]:
    """Return the columns in which the engine keeps what it wrote into the column of a model that was added."""
    return f"hash_{column}", f"text_hash_{column}"


def table_of_column(base: VectorTable, column: str) -> VectorTable:
    """Return the vector table of another embedding column in the rows of ``base``."""
    if column == base.embedding:
        return base
    kept_hash, kept_text_hash = hash_columns(column)
    own = (base.embedding, base.sparse, base.model, base.hash, base.text_hash)
    return base.with_columns(
        name=f"{base.name}.{column}",
        embedding=column,
        own_column=base.embedding,
        hash=kept_hash,
        text_hash=kept_text_hash,
        model=None,
        sparse=None,
        sparse_dimension=None,
        stats_view=None,
        source="rows",
        beside=() if MODEL_SCOPE in base.scope else tuple(name for name in own if name is not None),
        old=None,
        declared=False,
        overridden=frozenset(),
    )


def beside_columns(models: Sequence[ModelColumn], table: VectorTable) -> tuple[str, ...]:
    """Return the columns that hold what other models have in the rows of ``table``, their hashes included."""
    if MODEL_SCOPE in table.scope:
        return ()
    names = list(table.beside)
    for each in models:
        if each.column not in (table.embedding, table.own_column):
            names += [each.column, *hash_columns(each.column)]
    return tuple(names)
