"""The rows of a vector table, live or retired: which of them a person's are, and taking them out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.backfill.progress.inserted import still_as_inserted
from amprenta_vectors.batch import Key
from amprenta_vectors.ddl.marks import is_ours, is_retired, retired_name
from amprenta_vectors.errors import SchemaMismatch
from amprenta_vectors.pg.names import compose, literal, qualified
from amprenta_vectors.pg.tables import Table, table_of
from amprenta_vectors.schema.catalogue import check_visible, located
from amprenta_vectors.schema.engine_tables import kept_name
from amprenta_vectors.schema.expressions import in_scope, to_column_value
from amprenta_vectors.schema.key_values import canonical
from amprenta_vectors.schema.keymaps import OwnKeys, look_up
from amprenta_vectors.schema.slice import Slice, given_keys, open_slice
from amprenta_vectors.schema.vector_table import VectorTable

MOST_TYPED = 20
"""Keys that a statement to type names; beyond, it would be no statement that a person reads."""


@dataclass(frozen=True)
class KeptTable:
    """A vector table under the name that it has now, with the scope and key columns that are there, and their types.

    ``known`` is the table under the name by which runs and intents know it, also where a downgrade has retired it.
    """

    table: VectorTable
    known: VectorTable
    found: Table

    @property
    def name(self) -> str:
        """The table's name as a person types it."""
        return qualified(self.table.table, self.table.schema)

    @property
    def target(self) -> str:
        """The name by which runs and intents know it."""
        return self.known.target

    @property
    def whole_rows(self) -> bool:
        """Return whether its rows are ours, and go whole; of an application's row only our columns are emptied."""
        made_here = is_ours(self.found.comment)
        return made_here or self.table.rows == "ours"

    @property
    def our_columns(self) -> list[str]:
        """The columns that hold what we wrote, live and retired."""
        table = self.table
        named = (table.embedding, table.sparse, table.model, table.hash, table.text_hash)
        return [
            name
            for name, column in self.found.columns.items()
            if name not in table.unique_columns
            and (name in named or is_ours(column.comment))
            and (name == table.embedding or not column.refuses_null)
        ]

    def slice(self, engine: Engine, scope: Mapping[str, str]) -> Slice:
        """Return one scope of it."""
        return open_slice(engine, self.table, scope)

    def spelled(self, column: str, value: str) -> str | None:
        """Return a value as ``column`` spells it; None if it cannot hold it."""
        return canonical(value, self.table.column_types[column])

    def typed(self, scope: Mapping[str, str], keys: Sequence[Key] = ()) -> str:
        """Return the statement by which an application deletes rows of its own."""
        parts = [f"{qualified(name)} = {literal(value)}" for name, value in scope.items()]
        columns = ", ".join(map(qualified, self.table.key))
        if len(self.table.key) > 1:
            columns = f"({columns})"
        if keys:
            listed = [", ".join(map(literal, key)) for key in keys[:MOST_TYPED]]
            values = ", ".join(listed if len(self.table.key) == 1 else [f"({each})" for each in listed])
            parts.append(f"{columns} IN ({values}{', …' if len(keys) > MOST_TYPED else ''})")
        return compose("DELETE FROM {table} WHERE {conditions}", table=self.name, conditions=" AND ".join(parts))


@dataclass(frozen=True)
class Rows:
    """Rows of one scope: the keys they have, the keys by which a source and a store know them, and how many they are.

    ``emptied`` are those of the application, which stay without what was ours.
    """

    keys: Sequence[Key]
    known_as: Sequence[str]
    deleted: int = 0
    emptied: Sequence[Key] = ()


def find_kept(connection: Connection, declared: VectorTable) -> KeptTable | None:
    """Return the table, live or as a downgrade retired it; None where there is neither.

    Raises `SchemaMismatch` if it lacks a key column, and `ServerUnsuitable` if row security hides rows of it.
    """
    declared = located(connection, declared)
    found = table_of(connection, declared.table, declared.schema)
    if found is None:
        found = table_of(connection, retired_name(declared.table), declared.schema)
        if found is None or not is_retired(found.comment):
            return None
    missing = [name for name in declared.key if name not in found.columns]
    if missing:
        raise SchemaMismatch(
            f"table {found.name} has no column {', '.join(missing)}; expected key {', '.join(declared.key)}",
            hint="describe the table's own key in amprenta.toml, or rename the column",
        )
    scope = tuple(name for name in declared.scope if name in found.columns)
    lookup = declared.key_rule.lookup
    named = [*scope, *declared.key, *([lookup] if lookup in found.columns else [])]
    table = declared.with_columns(
        table=found.name,
        scope=scope,
        column_types={str(name): found.columns[str(name)].base for name in named},
        not_null=frozenset(name for name, column in found.columns.items() if column.refuses_null),
    )
    check_visible(connection, table)
    return KeptTable(table, declared.with_columns(scope=scope), found)


def scopes_of(connection: Connection, kept: KeptTable, column: str, value: str) -> list[dict[str, str]]:
    """Return every scope with rows whose scope column ``column`` is ``value``."""
    rows = sa.table(kept.table.table, *map(sa.column, kept.table.scope), schema=kept.table.schema)
    columns = [sa.cast(rows.c[name], sa.Text).label(name) for name in kept.table.scope]
    is_theirs = rows.c[column] == to_column_value(kept.table, column, value)
    statement = sa.select(*columns).distinct().where(is_theirs).order_by(*columns)
    return [dict(row._mapping) for row in connection.execute(statement)]


def named_by(slice_: Slice, given: Sequence[str]) -> list[Key]:
    """Return the keys that rows may have for ``given``: keys of the source, or the rows' own."""
    table, found = slice_.table, set[Key]()
    if table.key_rule.lookup is None or table.key_rule.lookup in table.column_types:
        for keys in look_up(slice_.key_map, given).values():
            found.update(keys)
    own = OwnKeys([table.column_types[name] for name in table.key])
    found.update(key for each in given if (key := own.to_key(each)) is not None)
    return sorted(found)


def take_out(connection: Connection, kept: KeptTable, slice_: Slice, keys: Sequence[Key] | None) -> Rows:
    """Take rows of a scope out, those with ``keys`` or all: delete them, or empty our columns of an application's.

    Raises `SchemaMismatch` if a column that is to be emptied is NOT NULL.
    """
    found = _locked(connection, slice_, keys)
    known_as = sorted({name for key, looked_up in found for name in _known_as(slice_, key, looked_up)})
    rows = [key for key, _ in found]
    if kept.whole_rows:
        return Rows(rows, known_as, deleted=_delete(connection, slice_, rows))
    inserted = _inserted(connection, kept, slice_, rows)
    deleted = _delete(connection, slice_, sorted(inserted))
    emptied = [key for key in rows if key not in inserted]
    _empty(connection, kept, slice_, emptied)
    return Rows(rows, known_as, deleted, emptied)


def _locked(connection: Connection, slice_: Slice, keys: Sequence[Key] | None) -> list[tuple[Key, str | None]]:
    """Return the key of each row with the value of its look-up column; the rows are locked."""
    table, rows = slice_.table, slice_.rows
    lookup = table.key_rule.lookup
    looked_up = sa.cast(rows.c[lookup], sa.Text) if lookup and lookup in table.column_types else sa.null()
    statement = sa.select(*slice_.key_texts(), looked_up).where(*slice_.in_scope()).with_for_update(of=rows)
    if keys is not None:
        given = given_keys(keys, width=len(table.key))
        is_named = sa.and_(*slice_.has_key(connection, given))
        if table.key_rule.kind == "numbered":
            # Every row of a source key, whatever its number.
            is_named = sa.cast(rows.c[table.key[0]], sa.Text) == given.c.key_0
        statement = statement.where(sa.exists().select_from(given).where(is_named).correlate(rows))
    return [(tuple(key), value) for *key, value in connection.execute(statement)]


def _known_as(slice_: Slice, key: Key, looked_up: str | None) -> Iterator[str]:
    """Yield the names by which runs and stores know a row."""
    yield OwnKeys([""] * len(key)).to_source(key)
    if slice_.table.key_rule.kind == "uuid5":
        return
    if slice_.key_map.source_columns is None:
        yield slice_.key_map.to_source(key)
    elif looked_up is not None:
        yield looked_up


def _delete(connection: Connection, slice_: Slice, keys: Sequence[Key]) -> int:
    return connection.execute(sa.delete(slice_.rows).where(slice_.among(keys))).rowcount if keys else 0


def _inserted(connection: Connection, kept: KeptTable, slice_: Slice, keys: Sequence[Key]) -> set[Key]:
    """Return the rows that a run or a store inserted into the application's table and nobody changed since."""
    table = kept.table
    there = {*filter(None, (table.embedding, table.sparse, table.text, table.metadata, table.model))}
    if not keys or not there <= kept.found.columns.keys():
        return set()
    found = set[Key]()
    if kept_name(connection, "migration_insert") == "migration_insert":
        found.update(key for _, key in still_as_inserted(connection, slice_, keys))
    if kept_name(connection, "vector_row_mark") == "vector_row_mark":
        marked = slice_.marks.is_marked("inserted", slice_.rows)
        rows = sa.select(*slice_.key_texts()).where(slice_.among(keys), marked)
        found.update(tuple(row) for row in connection.execute(rows))
    return found


def _empty(connection: Connection, kept: KeptTable, slice_: Slice, keys: Sequence[Key]) -> None:
    names = kept.our_columns
    if not keys or not names:
        return
    embedding = kept.found.columns.get(kept.table.embedding)
    if embedding is not None and embedding.refuses_null:
        raise SchemaMismatch(
            f"{len(keys):,} rows of {kept.name} are the application's, and {kept.target} is NOT NULL: it cannot be "
            "emptied",
            hint=f"{kept.typed(slice_.scope, keys)}, then the same command again",
        )
    rows = sa.table(kept.table.table, *map(sa.column, {*slice_.rows.c.keys(), *names}), schema=kept.table.schema)
    values: dict[str, Any] = dict.fromkeys(names, sa.null())
    given = given_keys(keys)
    own = sa.tuple_(*(rows.c[name] for name in kept.table.key))
    among = own.in_(sa.select(*slice_.key_values(given).values()))
    holds = sa.or_(*(rows.c[name].is_not(None) for name in names))
    connection.execute(sa.update(rows).values(values).where(among, holds, *in_scope(kept.table, rows, slice_.scope)))
