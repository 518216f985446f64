"""Adding a model to a table: its column beside those that are there, its index deferred, both registered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.config import Settings
from amprenta_vectors.db import migration_lock
from amprenta_vectors.ddl.contexts import open_context
from amprenta_vectors.ddl.model_column import AddModelColumnOp
from amprenta_vectors.embedders.factory import open_embedder
from amprenta_vectors.embedders.registered import embedder_settings
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.moves.models.tables import ModelTable
from amprenta_vectors.pg.types import Storage, parse_sized
from amprenta_vectors.schema.catalogue import columns_of
from amprenta_vectors.schema.models import ModelColumn, RegisteredModel
from amprenta_vectors.schema.registry import CHUNK_EMBEDDINGS

_ASKED_BY = sa.text("""
    UPDATE embedding_models SET provider = :provider, parameters = CAST(:parameters AS jsonb)
    WHERE model_name = :name AND (provider, parameters) IS DISTINCT FROM (:provider, CAST(:parameters AS jsonb))
""")
_OF_RUNS = sa.text("""
    SELECT model FROM migration_run WHERE target = :target AND model IS NOT NULL ORDER BY id DESC LIMIT 1
""")
_REGISTERED = sa.text("SELECT dimension, provider, parameters FROM embedding_models WHERE model_name = :name")


@dataclass(frozen=True)
class NewModel:
    """A model as a person describes it; what is None is found out or has a default."""

    name: str
    provider: str | None = None
    parameters: Mapping[str, str] | None = None
    dimension: int | None = None
    column: str | None = None
    storage: Storage = "vector"
    written: bool = True


def add_model(settings: Settings, table: ModelTable, new: NewModel) -> ModelColumn:
    """Add a model's column, or register the one that its vectors lie in; return what is registered.

    Where no model of the table is registered yet, the one that its vectors are of is registered first, if the settings
    or the last run name it. Raises `ConfigError` if nothing does, `DimensionMismatch`, `SchemaMismatch`.
    """
    engine, base = table.engine, table.base
    with engine.connect() as connection:
        columns = columns_of(connection, base)
        registered = connection.execute(_REGISTERED, {"name": new.name}).first()
    if registered is not None:
        new = replace(
            new,
            provider=new.provider or registered.provider,
            parameters=new.parameters or registered.parameters,
            dimension=new.dimension or registered.dimension,
        )
    there = columns.get(new.column or "")
    found = parse_sized(there.type) if there is not None else None
    storage: Storage = "halfvec" if found is not None and found[0] == "halfvec" else new.storage
    dimension = new.dimension or (found[1] if found is not None else _dimension_of(settings, new))
    column = new.column or f"embedding_{dimension}"
    with migration_lock(engine, settings.migration_lock_timeout):
        if not table.models and column != base.embedding and base.embedding in columns:
            _register_current(settings, table, columns[base.embedding].type)
        _invoke(engine, _operation(table, column, new, dimension, storage))
        with engine.begin() as connection:
            if new.provider is not None:
                parameters = json.dumps(dict(new.parameters or {}))
                values = {"name": new.name, "provider": new.provider, "parameters": parameters}
                connection.execute(_ASKED_BY, values)
    return table.again().named(new.name)


def _operation(table: ModelTable, column: str, new: NewModel, dimension: int, storage: Storage) -> AddModelColumnOp:
    base = table.base
    return AddModelColumnOp(
        base.table,
        column,
        new.name,
        dimension,
        base.embedding,
        new.provider,
        dict(new.parameters or {}),
        storage,
        base.distance,
        f"idx_embeddings_hnsw_{dimension}" if base.name == CHUNK_EMBEDDINGS.name else None,
        new.written,
        base.schema,
    )


def _register_current(settings: Settings, table: ModelTable, type_name: str) -> None:
    """Register the model that a table's vectors are of, by the name that the settings or the last run give it."""
    base = table.base
    found = parse_sized(type_name)
    with table.engine.connect() as connection:
        name = settings.embedding_model or connection.scalar(_OF_RUNS, {"target": base.own_target})
    if name is None or found is None:
        raise ConfigError(
            f"nothing says which model the vectors in {base.own_target} are of",
            hint=f"amprenta-vectors models add NAME --column {base.embedding}, with its name; then this again",
        )
    storage: Storage = "halfvec" if found[0] == "halfvec" else "vector"
    current = NewModel(name, provider_of(settings, name, found[1]))
    _invoke(table.engine, _operation(table, base.embedding, current, found[1], storage))


def provider_of(settings: Settings, name: str, dimension: int) -> str | None:
    """Return the embedder that is known to make the vectors of a model of that name; None if none is."""
    # Only what can be told without asking a service.
    from amprenta_vectors.embedders import gemini, openai, wordllama

    if any(name == model.name and dimension == model.dimension for model in wordllama.MODELS.values()):
        return "wordllama"
    if name.removeprefix("models/") == gemini.MODEL_NAME:
        return "gemini"
    return "openai" if name in openai.DIMENSIONS else None


def _dimension_of(settings: Settings, new: NewModel) -> int:
    """Return the dimension of a model's vectors, as its embedder says."""
    if new.provider is None:
        raise ConfigError(
            f"the dimension of model {new.name} is not known",
            hint="--dimension N; or --provider, which is asked for it",
        )
    if new.provider == "wordllama":
        raise ConfigError("wordllama makes vectors of several dimensions", hint="--dimension 256|128|64")
    asked = RegisteredModel(0, new.name, 1, new.provider, new.parameters)
    own = {**embedder_settings(asked), "vector_dimension": settings.vector_dimension}
    return open_embedder(settings.model_copy(update=own)).model.dimension


def _invoke(engine: Engine, operation: MigrateOperation) -> None:
    """Carry an operation out, as a revision does."""
    with engine.connect() as connection:
        invoke_on(connection, operation)


def invoke_on(connection: Connection, operation: MigrateOperation, **options: object) -> None:
    """Carry an operation out on a connection, in a transaction of its own, with the options of ``-x``."""
    context = open_context(connection=connection, opts={"transactional_ddl": True, "amprenta_options": options})
    with context.begin_transaction(_per_migration=False):
        Operations(context).invoke(operation)
