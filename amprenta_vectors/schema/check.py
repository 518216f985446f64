"""Checks a declared vector table against the database: what was expected, what was found, and the SQL that mends it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.pg.index_keys import index_key
from amprenta_vectors.pg.indexes import indexes_of
from amprenta_vectors.pg.names import qualified
from amprenta_vectors.pg.types import DOCUMENTS, TEXTS, VectorType, bare_type, parse_sized
from amprenta_vectors.schema.ann_indexes import ann_indexes
from amprenta_vectors.schema.catalogue import (
    columns_of,
    columns_to_fill,
    relation,
    unique_index_sql,
    unique_sets,
)
from amprenta_vectors.schema.vector_table import VectorTable

_INTEGERS = ("smallint", "integer", "bigint")

_KIND = sa.text("""
    SELECT relkind::text, EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'vector') AS extension
    FROM (SELECT 1) one LEFT JOIN pg_class ON oid = to_regclass(:relation)
""")

_DEFERRED = sa.text("SELECT index_name FROM migration_index WHERE target = :target AND built_at IS NULL")


@dataclass(frozen=True)
class Finding:
    """One difference from the declaration. A finding that is not ``blocking`` only stands in the way of some uses."""

    expected: str
    found: str
    sql: str
    blocking: bool = True


def check_table(connection: Connection, table: VectorTable) -> list[Finding]:
    """Return every finding on ``table`` as it is declared, not resolved. Nothing is changed, no row is read."""
    kind, extension = connection.execute(_KIND, {"relation": relation(table)}).one()
    missing: list[Finding] = []
    if not extension:
        missing.append(Finding("extension vector in this database", "none", "CREATE EXTENSION vector"))
    if kind is None:
        return [*missing, Finding(f"table {_name(table)}", "none", _create_sql(table))]
    if kind not in ("r", "p"):
        return [*missing, Finding(f"table {_name(table)}", "a view or foreign table", _create_sql(table))]
    columns = columns_of(connection, table)
    found = [*missing, *_of_columns(table, columns)]
    if all(name in columns for name in table.unique_columns):
        found += _of_key(connection, table, columns)
    if table.embedding in columns:
        found += _of_index(connection, table)
    found += _of_inserts(connection, table)
    return found


def _name(table: VectorTable) -> str:
    return qualified(table.table, table.schema)


def _alter(table: VectorTable, change: str) -> str:
    return f"ALTER TABLE {_name(table)} {change}"


def _wanted(table: VectorTable) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield every column with the types it may have, the first to create it with; no types mean any type."""
    last = table.key[-1]
    for name in table.key:
        match table.key_rule.kind:
            case "uuid5":
                yield name, ("uuid", *TEXTS)
            case "numbered" if name == last:
                yield name, _INTEGERS
            case _:
                yield name, ()
    for other in table.scope:
        yield other, ()
    if table.key_rule.lookup is not None and table.key_rule.lookup not in table.unique_columns:
        yield table.key_rule.lookup, (*TEXTS, "uuid", *_INTEGERS)
    yield table.embedding, (f"{table.storage}({table.dimension})",)
    if table.sparse is not None:
        yield table.sparse, (f"sparsevec({table.sparse_dimension})",)
    for beside in filter(None, (table.text, table.model)):
        yield beside, TEXTS
    for kept in filter(None, (table.hash, table.text_hash)):
        yield kept, ("bigint",)
    if table.metadata is not None:
        yield table.metadata, (*DOCUMENTS, "text")


def _of_columns(table: VectorTable, columns: Mapping[str, Any]) -> Iterator[Finding]:
    for name, types in _wanted(table):
        column, to_make = qualified(name), types[0] if types else "text"
        expected = f"column {column} {' or '.join(types[:3])}".rstrip()
        if name not in columns:
            yield Finding(expected, "none", _alter(table, f"ADD COLUMN {column} {to_make}"))
        elif types and not _is_any(columns[name].base, types):
            # Not ALTER TYPE: it rewrites the table under a lock, and fails on values that cannot be cast.
            rename = _alter(table, f"RENAME COLUMN {column} TO {qualified(f'{name}_old')}")
            add = _alter(table, f"ADD COLUMN {column} {to_make}")
            yield Finding(expected, columns[name].type, f"{rename}; {add}")
        elif name in table.unique_columns and not columns[name].refuses_null:
            yield Finding(
                f"column {column} NOT NULL", "NULL is allowed", _alter(table, f"ALTER COLUMN {column} SET NOT NULL")
            )


def _is_any(actual: str, types: tuple[str, ...]) -> bool:
    """Return whether a type is one of ``types``, whatever its length; for a vector type, whatever its schema."""
    vector, wanted = parse_sized(actual), parse_sized(types[0])
    if vector is not None or wanted is not None:
        return vector == wanted
    return bare_type(actual) in types


def _of_key(connection: Connection, table: VectorTable, columns: Mapping[str, Any]) -> Iterator[Finding]:
    sets = unique_sets(connection, table)
    if sorted(table.unique_columns) not in sets:
        listed = ", ".join(map(qualified, table.unique_columns))
        there = "; ".join(f"one on ({', '.join(map(qualified, names))})" for names in sets)
        yield Finding(f"a unique index on exactly ({listed})", there or "none", unique_index_sql(table))
    lookup = table.key_rule.lookup
    if lookup is None or lookup not in columns:
        return
    leading = {lookup, *table.scope}
    if not any(
        not index.is_ann
        and index.valid
        and not index.partial
        and lookup in index.columns
        and index.key_columns[0] in leading
        for index in indexes_of(connection, table.table, table.schema)
    ):
        listed = ", ".join(map(qualified, (*table.scope, lookup)))
        sql = f"CREATE INDEX CONCURRENTLY ON {_name(table)} ({listed})"
        yield Finding(f"an index on ({listed}), to look rows up by", "none", sql)


def _of_index(connection: Connection, table: VectorTable) -> Iterator[Finding]:
    """Yield a finding unless a valid, whole index with the operator class for storage and distance serves queries."""
    wanted = index_key(table.embedding, VectorType(table.storage, table.dimension), table.distance)
    rows = ann_indexes(connection, table)
    if any(row.serves(table.distance) for row in rows):
        return
    expected = f"an hnsw or ivfflat index on {qualified(table.embedding)} with {wanted.opclass}"
    broken = next((row for row in rows if row.fits(table.distance) and not row.partial), None)
    if broken is not None:
        name = qualified(broken.name, broken.schema)
        yield Finding(expected, f"{name}, which is not valid", f"REINDEX INDEX CONCURRENTLY {name}")
        return
    deferred = connection.execute(sa.select(sa.func.to_regclass("migration_index"))).scalar() is not None
    waiting = connection.execute(_DEFERRED, {"target": table.target}).scalars().all() if deferred else []
    there = "; ".join(f"{row.name} with {row.opclass}{', partial' if row.partial else ''}" for row in rows)
    yield Finding(
        expected,
        f"{', '.join(waiting)}, deferred until the load is done" if waiting else there or "none",
        f"CREATE INDEX CONCURRENTLY ON {_name(table)} USING hnsw ({wanted.typed})",
        blocking=not waiting,
    )


def _of_inserts(connection: Connection, table: VectorTable) -> Iterator[Finding]:
    """Yield a finding for each column that would need a value when a row missing from the table is inserted."""
    if table.key_rule.kind == "lookup":
        return
    for name in columns_to_fill(connection, table):
        column = qualified(name)
        yield Finding(
            f"a default for {column} NOT NULL, for --keys-from source to insert rows",
            "none",
            _alter(table, f"ALTER COLUMN {column} SET DEFAULT …"),
            blocking=False,
        )


def _create_sql(table: VectorTable) -> str:
    columns = [f"{qualified(name)} {types[0] if types else 'text'}" for name, types in _wanted(table)]
    key = ", ".join(map(qualified, table.unique_columns))
    return f"CREATE TABLE {_name(table)} ({', '.join(columns)}, PRIMARY KEY ({key}))"
