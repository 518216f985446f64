"""The end of an adoption: the table's own column gets the name of its dimension, and no row a default model."""

from __future__ import annotations

import sqlalchemy as sa

from amprenta_vectors.config import Settings
from amprenta_vectors.db import migration_lock
from amprenta_vectors.ddl.marks import MADE
from amprenta_vectors.ddl.steps import execute_on
from amprenta_vectors.errors import ConfigError, SchemaMismatch
from amprenta_vectors.moves.models.tables import ModelTable
from amprenta_vectors.pg.names import compose, literal, qualified
from amprenta_vectors.pg.sessions import with_short_lock
from amprenta_vectors.schema.catalogue import columns_of
from amprenta_vectors.schema.models import MODEL_COLUMNS, MODEL_SCOPE, ModelColumn, hash_columns

_RENAME = "ALTER TABLE {table} RENAME COLUMN {old} TO {new}"
_KEEP = "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {name} bigint"
_MARK = "COMMENT ON COLUMN {table}.{name} IS {made}"
_NO_DEFAULT = "ALTER TABLE {table} ALTER COLUMN {scope} DROP DEFAULT"


def contract(settings: Settings, table: ModelTable) -> str:
    """Rename the column that an adopted table had to ``embedding_DIMENSION``; return that name.

    One transaction under a short lock; the application that wrote the table before must be gone. Running stores find
    the column again by themselves. Raises `ConfigError` where there is nothing to contract, `SchemaMismatch` for a
    column that is in the way, or while a unique index still allows a key the row of one model alone.
    """
    base = table.base
    if not table.by_model:
        raise ConfigError(
            f"table {base.qualified_name} has its models in columns of the same rows: nothing is to be renamed",
            hint="AMPRENTA_TABLE=chunk_embeddings, or another table with model_id in its scope",
        )
    own = next((each for each in table.models if each.column == base.embedding), None)
    if own is None:
        raise ConfigError(
            f"no model of table {base.qualified_name} lies in column {base.embedding}: nothing is left to rename",
            hint="amprenta-vectors models list",
        )
    name = f"{base.embedding}_{own.model.dimension}"
    with migration_lock(table.engine, settings.migration_lock_timeout), table.engine.begin() as connection:
        table.check_rows(connection)
        if name in columns_of(connection, base):
            raise SchemaMismatch(
                f"column {base.qualified_name}.{name} is there already",
                hint=f"rename it out of the way: ALTER TABLE {qualified(base.table, base.schema)} RENAME COLUMN "
                f"{qualified(name)} TO …",
            )
        with_short_lock(
            connection,
            f"{base.qualified_name}: rename column {base.embedding}",
            lambda: _rename(connection, table, own, name),
        )
    return name


def _rename(connection: sa.Connection, table: ModelTable, own: ModelColumn, name: str) -> None:
    base, relation = table.base, qualified(table.base.table, table.base.schema)
    execute_on(connection, compose(_RENAME, table=relation, old=qualified(base.embedding), new=qualified(name)))
    for each in hash_columns(name):
        execute_on(connection, compose(_KEEP, table=relation, name=qualified(each)))
        execute_on(connection, compose(_MARK, table=relation, name=qualified(each), made=literal(MADE)))
    execute_on(connection, compose(_NO_DEFAULT, table=relation, scope=MODEL_SCOPE))
    of_column = MODEL_COLUMNS.c.target == base.own_target, MODEL_COLUMNS.c.column_name == own.column
    connection.execute(sa.update(MODEL_COLUMNS).where(*of_column).values(column_name=name))
