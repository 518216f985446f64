"""Reads a vector table from the database's catalogue, and checks it against what its description relies on."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.sections import adopted_schema
from amprenta_vectors.errors import DimensionMismatch, NotUpgraded, SchemaMismatch, ServerUnsuitable
from amprenta_vectors.pg import tables
from amprenta_vectors.pg.indexes import unique_column_sets
from amprenta_vectors.pg.names import qualified, quoted
from amprenta_vectors.pg.tables import Column
from amprenta_vectors.pg.types import parse_sized
from amprenta_vectors.schema.models import MODEL_SCOPE, beside_columns, models_of
from amprenta_vectors.schema.vector_table import UPDATED_AT, VectorTable
from amprenta_vectors.sections import upgrade_command


def relation(table: VectorTable) -> str:
    """Return the table's name as ``to_regclass`` reads it, quoted."""
    return quoted(table.schema, table.table)


def relations_of(connection: Connection, table: VectorTable) -> list[int]:
    """Return the oids of the table and its partitions."""
    return tables.relations_of(connection, table.table, table.schema)


def unique_sets(connection: Connection, table: VectorTable) -> list[list[str]]:
    """Return the columns, sorted, of every unique index that an upsert can name."""
    return [sorted(columns) for columns in unique_column_sets(connection, table.table, table.schema)]


def unique_index_sql(table: VectorTable) -> str:
    """Return the statement that makes the unique index on exactly scope and key."""
    listed = ", ".join(map(qualified, table.unique_columns))
    return f"CREATE UNIQUE INDEX CONCURRENTLY ON {qualified(table.table, table.schema)} ({listed})"


def columns_of(connection: Connection, table: VectorTable) -> Mapping[str, Column]:
    """Return the table's columns by name; empty if the table does not exist."""
    found = tables.table_of(connection, table.table, table.schema)
    return {} if found is None else found.columns


def located(connection: Connection, table: VectorTable) -> VectorTable:
    """Return ``table`` with the schema in which ``-x schema=`` adopted it, if the search path does not find it."""
    if table.schema is not None or table.declared:
        return table
    return table.with_columns(schema=adopted_schema(connection, table.table))


def resolve_table(connection: Connection, table: VectorTable, *, dimension: int | None = None) -> VectorTable:
    """Return ``table`` as it really is: its dimension and storage, without the optional and scope columns it lacks.

    ``dimension`` is what the settings demand, None if they demand none. A declared table must be as it is declared.
    Raises `NotUpgraded` if the table or its embedding column does not exist, `SchemaMismatch` for a missing column, a
    wrong type or a missing unique index, `DimensionMismatch`.
    """
    table = located(connection, table)
    columns = columns_of(connection, table)
    if not columns:
        raise NotUpgraded(f"table {table.qualified_name} does not exist", hint=_to_make(connection, table))
    named = (*table.column_names, *table.text_columns)
    needed = [name for name in named if name != table.embedding] if table.declared else table.key
    missing = [name for name in needed if name not in columns]
    if missing:
        raise SchemaMismatch(
            f"table {table.qualified_name} has no column {', '.join(missing)}; expected key {', '.join(table.key)}",
            hint=_to_make(connection, table)
            if table.declared
            else "describe the table's own key, or rename the column",
        )
    _check_overridden(table, columns)
    check_scope(table, columns)
    if table.embedding not in columns:
        raise _lacks_embedding(connection, table)
    storage, actual = _embedding_type(connection, table, columns[table.embedding].type)
    if dimension is not None and dimension != actual:
        raise DimensionMismatch(
            f"VECTOR_DIMENSION is {dimension}, but {table.target} is {storage}({actual})",
            hint=f"export VECTOR_DIMENSION={actual}, or unset it",
        )
    resolved = table.with_columns(
        dimension=actual,
        storage=storage,
        scope=tuple(name for name in table.scope if name in columns),
        sparse_dimension=_sparse_dimension(table, columns),
        text_columns=tuple(name for name in table.text_columns if name in columns),
        filter_columns={field: name for field, name in table.filter_columns.items() if name in columns},
        beside=tuple(name for name in beside_columns(models_of(connection, table), table) if name in columns),
        **{
            role: name if name in columns else None
            for role in ("text", "metadata", "model")
            if (name := getattr(table, role)) is not None
        },
        **{role: _hash_column(table, getattr(table, role), columns) for role in ("hash", "text_hash")},
    )
    if table.declared and (storage, actual) != (table.storage, table.dimension):
        raise DimensionMismatch(
            f"amprenta.toml says {table.target} is {table.storage}({table.dimension}); it is {storage}({actual})",
            hint=f'under [tables.{table.name}]: dimension = {actual}, storage = "{storage}"; or '
            f"{_to_make(connection, table)}",
        )
    if sorted(resolved.unique_columns) not in unique_sets(connection, table):
        listed = ", ".join(resolved.unique_columns)
        raise SchemaMismatch(
            f"table {table.qualified_name} has no unique index on exactly ({listed})", hint=unique_index_sql(resolved)
        )
    typed = [
        *resolved.unique_columns,
        *({UPDATED_AT} & set(columns)),
        *filter(None, [table.key_rule.lookup]),
    ]
    filtered = {name: columns[name] for name in resolved.filter_columns.values()}
    return resolved.with_columns(
        column_types={
            **{name: "text" if each.enum else each.base for name, each in filtered.items()},
            **{name: columns[name].base for name in typed},
        },
        not_null=frozenset(name for name, each in columns.items() if each.refuses_null),
        to_fill=tuple(_to_fill(resolved, columns)),
    )


def _check_overridden(table: VectorTable, columns: Mapping[str, Column]) -> None:
    """Raise `SchemaMismatch` if a column that a person named for a shipped table does not exist."""
    for role in sorted(table.overridden):
        if (name := getattr(table, role)) is not None and name not in columns:
            raise SchemaMismatch(
                f"amprenta.toml says that {role} of {table.name} is {name}; {table.qualified_name} has the columns "
                f"{', '.join(columns)}",
                hint=f'under [tables.{table.name}]: {role} = "…", one of those columns',
            )


def check_scope(table: VectorTable, columns: Mapping[str, Column]) -> None:
    """Raise `SchemaMismatch` for a missing column of several: whose rows these are is never implied."""
    lost = [name for name in table.scope if name not in columns]
    if lost and len(table.scope) > 1:
        name = qualified(table.table, table.schema)
        raise SchemaMismatch(
            f"table {table.qualified_name} has no column {', '.join(lost)}, which every read and write binds",
            hint=f"ALTER TABLE {name} {', '.join(f'ADD COLUMN {qualified(each)} text' for each in lost)}; then give "
            "the rows their values, and make it NOT NULL and part of the unique index",
        )


def _to_make(connection: Connection, table: VectorTable) -> str:
    """Return what to type where a table lacks something."""
    if table.declared:
        return f"amprenta-vectors tables check {table.name}"
    return upgrade_command(connection, table.section)


def _lacks_embedding(connection: Connection, table: VectorTable) -> NotUpgraded:
    """Return the error of a table without its embedding column: a revision makes its own, a command those of models."""
    if table.own_column is None and MODEL_SCOPE not in table.scope:
        hint = _to_make(connection, table)
        return NotUpgraded(f"table {table.qualified_name} has no column {table.embedding}", hint=hint)
    own = table.name.removesuffix(f".{table.embedding}") if table.own_column else table.name
    return NotUpgraded(
        f"column {table.target} does not exist",
        hint=f"AMPRENTA_TABLE={own} amprenta-vectors models list says which models have columns; models add NAME "
        "--provider … adds one",
    )


def columns_to_fill(connection: Connection, table: VectorTable) -> list[str]:
    """Return the columns that an INSERT must give a value, and for which a backfill has none."""
    return list(_to_fill(table, columns_of(connection, table)))


def _to_fill(table: VectorTable, columns: Mapping[str, Column]) -> list[str]:
    known = table.column_names
    return [name for name, each in columns.items() if each.refuses_null and not each.default and name not in known]


def check_visible(connection: Connection, table: VectorTable) -> None:
    """Raise `ServerUnsuitable` if row security applies to this role, so that it may not see every row.

    The answer also holds for earlier statements of the same transaction: row security cannot be enabled on a table that
    the transaction has used.
    """
    check_relation_visible(connection, relation(table), table.qualified_name)


def check_relation_visible(connection: Connection, quoted_name: str, name: str) -> None:
    """Raise `ServerUnsuitable`, which says ``name``, if row security applies to this role on that relation."""
    if connection.execute(sa.select(sa.func.row_security_active(quoted_name))).scalar_one():
        raise ServerUnsuitable(
            f"row security hides rows of {name} from this role",
            hint="connect as a role with BYPASSRLS, or as the table's owner where it is not forced upon that one",
        )


def _embedding_type(connection: Connection, table: VectorTable, type_name: str) -> tuple[str, int]:
    found = parse_sized(type_name)
    if found is None or found[0] == "sparsevec":
        raise SchemaMismatch(
            f"column {table.target} is of type {type_name}; expected vector(n) or halfvec(n)",
            hint=f"rename it out of the way (ALTER TABLE {qualified(table.table, table.schema)} RENAME COLUMN "
            f"{qualified(table.embedding)} TO {qualified(f'{table.embedding}_old')}) and run: "
            f"{_to_make(connection, table)}",
        )
    return found


def _hash_column(table: VectorTable, name: str | None, columns: Mapping[str, Column]) -> str | None:
    """Return ``name`` if it can hold a hash, else None; a declared table's column of another type is an error.

    A table that ships may have a column of that name for something else. Raises `SchemaMismatch`.
    """
    if name is None or name not in columns or columns[name].base == "bigint":
        return name if name in columns else None
    if not table.declared:
        return None
    raise SchemaMismatch(
        f"column {table.qualified_name}.{name} is of type {columns[name].type}; expected bigint",
        hint=f"amprenta-vectors tables check {table.name}",
    )


def _sparse_dimension(table: VectorTable, columns: Mapping[str, Column]) -> int | None:
    if table.sparse is None:
        return None
    type_name = columns[table.sparse].type
    if parse_sized(type_name) != ("sparsevec", table.sparse_dimension):
        raise SchemaMismatch(
            f"column {table.qualified_name}.{table.sparse} is of type {type_name}; "
            f"expected sparsevec({table.sparse_dimension})",
            hint=f"amprenta-vectors tables check {table.name}",
        )
    return table.sparse_dimension
