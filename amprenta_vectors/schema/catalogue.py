"""What the database says of a vector table, checked against what its description relies on."""

from __future__ import annotations

import re
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.errors import DimensionMismatch, NotUpgraded, SchemaMismatch
from amprenta_vectors.schema.vector_table import VectorTable

_COLUMNS = sa.text("""
    SELECT a.attname, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull, a.atthasdef OR a.attidentity <> ''
             OR a.attgenerated <> '' AS has_default, c.oid
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.oid = to_regclass(:relation)
""")

# Indexes that ON CONFLICT can name: an INCLUDEd column is no part of the key, a deferrable one arbitrates nothing.
_UNIQUE = sa.text("""
    SELECT array_agg(a.attname::text ORDER BY a.attname) AS columns
    FROM pg_index i
    CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k (attnum, position)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
    WHERE i.indrelid = CAST(:oid AS oid) AND i.indisunique AND i.indisvalid AND i.indimmediate
      AND i.indpred IS NULL AND i.indexprs IS NULL AND k.position <= i.indnkeyatts
    GROUP BY i.indexrelid
""")

_VECTOR_TYPE = re.compile(r"^(?:.+\.)?(vector|halfvec)\((\d+)\)$")


def relation(table: VectorTable) -> str:
    """The table's name as ``to_regclass`` reads it, quoted."""
    quote = '"{}"'.format
    parts = [part.replace('"', '""') for part in (table.schema, table.table) if part]
    return ".".join(map(quote, parts))


def columns_of(connection: Connection, table: VectorTable) -> dict[str, Any]:
    """The table's columns by name, with ``type``, ``attnotnull`` and ``has_default``; empty where it does not exist."""
    rows = connection.execute(_COLUMNS, {"relation": relation(table)})
    return {row.attname: row for row in rows}


def resolve_table(connection: Connection, table: VectorTable, *, dimension: int | None = None) -> VectorTable:
    """``table`` as it really is: its dimension and storage, without the optional and scope columns it lacks.

    ``dimension`` is what the settings demand, where they do. Raises `NotUpgraded` where table or embedding column is
    not there, `SchemaMismatch` for a wrong type or a missing unique index, `DimensionMismatch`.
    """
    columns = columns_of(connection, table)
    upgrade = "alembic upgrade head"
    if not columns:
        raise NotUpgraded(f"table {table.qualified_name} does not exist", hint=upgrade)
    missing = [name for name in table.key if name not in columns]
    if missing:
        raise SchemaMismatch(
            f"table {table.qualified_name} has no column {', '.join(missing)}; expected key {', '.join(table.key)}",
            hint="describe the table's own key, or rename the column",
        )
    if table.embedding not in columns:
        raise NotUpgraded(f"table {table.qualified_name} has no column {table.embedding}", hint=upgrade)
    storage, actual = _embedding_type(table, columns[table.embedding].type)
    if dimension is not None and dimension != actual:
        raise DimensionMismatch(
            f"VECTOR_DIMENSION is {dimension}, but {table.target} is {storage}({actual})",
            hint=f"export VECTOR_DIMENSION={actual}, or unset it",
        )
    resolved = table.with_columns(
        dimension=actual,
        storage=storage,
        scope=tuple(name for name in table.scope if name in columns),
        column_types={name: columns[name].type for name in table.unique_columns if name in columns},
        **{
            role: name if name in columns else None
            for role in ("text", "metadata", "model")
            if (name := getattr(table, role)) is not None
        },
    )
    oid = next(iter(columns.values())).oid
    wanted = sorted(resolved.unique_columns)
    if wanted not in [row.columns for row in connection.execute(_UNIQUE, {"oid": oid})]:
        listed = ", ".join(resolved.unique_columns)
        raise SchemaMismatch(
            f"table {table.qualified_name} has no unique index on exactly ({listed})",
            hint=f"CREATE UNIQUE INDEX CONCURRENTLY ON {table.qualified_name} ({listed})",
        )
    return resolved


def columns_to_fill(connection: Connection, table: VectorTable) -> list[str]:
    """Columns that an INSERT must give a value, and that a backfill has none for."""
    known = {*table.unique_columns, table.embedding, table.text, table.metadata, table.model}
    columns = columns_of(connection, table).values()
    return [c.attname for c in columns if c.attnotnull and not c.has_default and c.attname not in known]


def _embedding_type(table: VectorTable, type_name: str) -> tuple[str, int]:
    found = _VECTOR_TYPE.match(type_name)
    if found is None:
        raise SchemaMismatch(
            f"column {table.target} is of type {type_name}; expected vector(n) or halfvec(n)",
            hint=f"rename it out of the way (ALTER TABLE {table.qualified_name} RENAME COLUMN {table.embedding} TO "
            f"{table.embedding}_old) and run: alembic upgrade head",
        )
    return found[1], int(found[2])
