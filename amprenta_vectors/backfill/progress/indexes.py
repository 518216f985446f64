"""``migration_index``: the indexes that wait to be built after a load."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection


def defer_index(connection: Connection, target: str, name: str, definition: str, comment: str | None) -> None:
    """Record an index that is about to be dropped, to be built after the load."""
    connection.execute(
        sa.text("""
            INSERT INTO migration_index (target, index_name, definition, comment)
            VALUES (:target, :name, :definition, :comment)
            ON CONFLICT (target, index_name) DO UPDATE
            SET definition = excluded.definition, comment = excluded.comment, deferred_at = now(), built_at = NULL
        """),
        {"target": target, "name": name, "definition": definition, "comment": comment},
    )


def deferred_indexes(connection: Connection, target: str) -> list[Any]:
    """Return the indexes of a column that wait to be built: ``index_name``, ``definition``, ``comment``."""
    return list(
        connection.execute(
            sa.text("""
                SELECT index_name, definition, comment FROM migration_index
                WHERE target = :target AND built_at IS NULL ORDER BY index_name
            """),
            {"target": target},
        )
    )


def all_deferred(connection: Connection) -> list[tuple[str, str]]:
    """Return ``(target, index_name)`` of every index that waits to be built."""
    rows = connection.execute(
        sa.text("SELECT target, index_name FROM migration_index WHERE built_at IS NULL ORDER BY target, index_name")
    )
    return [(row.target, row.index_name) for row in rows]


def index_built(connection: Connection, target: str, name: str) -> None:
    """Record that a deferred index has been built."""
    connection.execute(
        sa.text("""
            UPDATE migration_index SET built_at = clock_timestamp() WHERE target = :target AND index_name = :name
        """),
        {"target": target, "name": name},
    )
