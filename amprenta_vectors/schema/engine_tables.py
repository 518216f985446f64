"""The tables in which the engine keeps what it has to know, by the names that they have in a database."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.marks import is_retired, retired_name
from amprenta_vectors.pg.tables import table_of

TABLES_OF_A_RUN = (
    "migration_progress",
    "migration_quarantine",
    "migration_limit",
    "migration_insert",
    "migration_text",
    "migration_event",
)
"""The tables whose rows belong to one run each, by their ``run_id``."""
ENGINE_TABLES = (
    "migration_run",
    *TABLES_OF_A_RUN,
    "migration_index",
    "vector_outbox",
    "vector_row_mark",
    "vector_setting",
    "vector_forgotten",
    "shadow_query",
    "embedding_models",
    "model_column",
    "model_process",
)
"""Every table that core's revisions make."""


def kept_name(connection: Connection, name: str) -> str | None:
    """Return the name that a table has now: its own, or the one that a downgrade retired it under; None without one."""
    if table_of(connection, name) is not None:
        return name
    retired = table_of(connection, retired_name(name))
    return retired.name if retired is not None and is_retired(retired.comment) else None


def kept_clause(connection: Connection, name: str, *columns: sa.ColumnClause[Any]) -> sa.TableClause | None:
    """Return an engine table, live or retired, to select from and to delete from; None where there is neither."""
    kept = kept_name(connection, name)
    return None if kept is None else sa.table(kept, *columns)
