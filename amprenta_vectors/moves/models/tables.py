"""A vector table with the models that are registered for it, as the commands on models open both."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.backfill.engine.observer import Observer, ignore
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError, NotUpgraded, SchemaMismatch
from amprenta_vectors.moves.ends import open_database
from amprenta_vectors.pg.indexes import indexes_of
from amprenta_vectors.pg.names import qualified
from amprenta_vectors.schema.catalogue import columns_of, located, resolve_table
from amprenta_vectors.schema.models import (
    MODEL_COLUMNS,
    MODEL_SCOPE,
    ModelColumn,
    may_read_models,
    model_named,
    models_of,
    table_of_column,
)
from amprenta_vectors.schema.registry import get_table
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.sections import upgrade_command


@dataclass(frozen=True)
class ModelTable:
    """A vector table, found in its schema and otherwise as it is described, and its models."""

    engine: Engine
    base: VectorTable
    models: tuple[ModelColumn, ...]

    @property
    def by_model(self) -> bool:
        """Whether the table has rows for each model, and not a column in the same rows."""
        return MODEL_SCOPE in self.base.scope

    def named(self, name: str) -> ModelColumn:
        """Return the model of that name. Raises `ConfigError` naming those that there are."""
        return model_named(self.models, name, self.base)

    def searched(self) -> ModelColumn:
        """Return the model that is searched. Raises `ConfigError` if none is registered."""
        for each in self.models:
            if each.searched:
                return each
        raise ConfigError(
            f"no model is registered for table {self.base.qualified_name}",
            hint=f"amprenta-vectors models add NAME --column {self.base.embedding}, with the name of the model that "
            "its vectors are of",
        )

    def column_table(self, model: ModelColumn) -> VectorTable:
        """Return the vector table of a model's column, as it is described."""
        return table_of_column(self.base, model.column)

    def resolved(self, connection: Connection, model: ModelColumn) -> VectorTable:
        """Return the vector table of a model's column, from the catalogue."""
        return resolve_table(connection, self.column_table(model))

    def scope_of_model(self, model: ModelColumn) -> dict[str, str]:
        """Return the scope value that tells the rows of a model; none where models have columns of the same rows."""
        return {MODEL_SCOPE: str(model.model.id)} if self.by_model else {}

    def check_rows(self, connection: Connection) -> None:
        """Raise `SchemaMismatch` where a unique index allows a key the row of one model alone."""
        if not self.by_model:
            return
        alone = [
            index
            for index in indexes_of(connection, self.base.table, self.base.schema)
            if index.unique_columns == frozenset(self.base.key)
        ]
        if alone:
            name, index = qualified(self.base.table, self.base.schema), qualified(alone[0].name, self.base.schema)
            listed = ", ".join(self.base.key)
            raise SchemaMismatch(
                f"unique index {index} on ({listed}) alone allows the row of one model for each; another model has "
                "rows of its own",
                hint=f"once no application names it in ON CONFLICT: ALTER TABLE {name} DROP CONSTRAINT "
                f"{qualified(alone[0].name)}; or, if it is no constraint, DROP INDEX CONCURRENTLY {index}",
            )

    def settings_for(self, settings: Settings, model: ModelColumn) -> Settings:
        """Return the settings of runs that fill a model's column from the texts of the rows."""
        return settings.model_copy(
            update={
                "table": self.column_table(model).name,
                "source": "rows",
                "embedder": None,
                "embedding_model": None,
                "vector_dimension": None,
                "namespace": str(model.model.id) if self.by_model else "",
            }
        )

    def again(self) -> ModelTable:
        """Return the table with its models as they are registered now."""
        with self.engine.connect() as connection:
            return ModelTable(self.engine, self.base, models_of(connection, self.base))

    def set_facts(self, connection: Connection, model: ModelColumn, **facts: object) -> None:
        """Change what is registered of a model's column."""
        statement = sa.update(MODEL_COLUMNS).values(facts)
        connection.execute(
            statement.where(MODEL_COLUMNS.c.target == self.base.own_target, MODEL_COLUMNS.c.model_id == model.model.id)
        )


def open_model_table(settings: Settings, connections: int = 2, observer: Observer = ignore) -> ModelTable:
    """Open the table that the settings name, with its models.

    Raises `NotUpgraded` if the table or the registry does not exist, `ConfigError` for the column of one model.
    """
    described = get_table(settings.table, settings.config)
    if described.own_column is not None:
        own = described.name.removesuffix(f".{described.embedding}")
        raise ConfigError(
            f"AMPRENTA_TABLE is {settings.table!r}, the column of one model", hint=f"AMPRENTA_TABLE={own}"
        )
    engine = open_database(settings, connections, observer)
    with engine.connect() as connection:
        base = located(connection, described)
        if not columns_of(connection, base):
            hint = f"amprenta-vectors tables check {base.name}" if base.declared else ""
            raise NotUpgraded(
                f"table {base.qualified_name} does not exist", hint=hint or upgrade_command(connection, base.section)
            )
        if not may_read_models(connection):
            raise NotUpgraded(
                "there are no tables embedding_models and model_column, or this role may not read them",
                hint=f"{upgrade_command(connection, base.section)}; or GRANT SELECT ON embedding_models, model_column",
            )
        return ModelTable(engine, base, models_of(connection, base))
