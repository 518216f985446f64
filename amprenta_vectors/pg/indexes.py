"""Indexes as the catalogue has them: one query, one value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.pg.names import quoted
from amprenta_vectors.pg.tables import relations_of
from amprenta_vectors.pg.types import CoarserStorage, IndexStorage

ANN_METHODS = frozenset({"hnsw", "ivfflat"})
BIT_OPCLASS = "bit_hamming_ops"
"""The operator class of signs, whatever the distance: the hits are re-ranked by the distance itself."""

DEFAULT_OPTIONS = {"hnsw": {"m": "16", "ef_construction": "64"}, "ivfflat": {"lists": "100"}}
"""The options of an index that does not state them (pgvector's README)."""

STORES_LOOK_SECONDS = 60.0
"""How often a running store looks at the indexes again: an index that was replaced may go no sooner."""

_NAME = r'(?:"(?:[^"]|"")+"|\w+)'
_KEY = re.compile(
    rf"\(*(?P<signs>(?:{_NAME}\.)?binary_quantize\()?(?P<name>{_NAME})\)*"
    rf"(?:::(?:{_NAME}\.)?(?P<cast>halfvec|bit)\((?P<dimension>\d+)\))?\)*"
)

# What is looked up in the list is not joined: PostgreSQL plans this anew each time, which takes longer than running it.
# pg_get_indexdef of a key writes the schema of the extension only where that is not on the search path.
_INDEXES = """
    SELECT i.indexrelid::bigint AS oid, (SELECT nspname FROM pg_namespace WHERE oid = c.relnamespace) AS schema,
           c.relname AS name, i.indrelid::bigint AS table_oid,
           (SELECT nspname FROM pg_namespace WHERE oid = t.relnamespace) AS table_schema, t.relname AS table,
           (SELECT amname FROM pg_am WHERE oid = c.relam) AS method, i.indisvalid AS valid,
           i.indisunique AS "unique", i.indimmediate AS immediate, c.relkind = 'I' AS partitioned,
           (SELECT inhparent::bigint FROM pg_inherits WHERE inhrelid = c.oid) AS parent_oid,
           coalesce((
               SELECT description FROM pg_description
               WHERE objoid = c.oid AND classoid = 'pg_class'::regclass AND objsubid = 0
           ), '') AS comment,
           pg_get_indexdef(c.oid) AS definition, pg_get_expr(i.indpred, i.indrelid, true) AS predicate,
           array_to_json(c.reloptions) AS options,
           i.indnatts > i.indnkeyatts AS includes,
           (SELECT json_agg(pg_get_indexdef(c.oid, k, true) ORDER BY k)
            FROM generate_series(1, i.indnkeyatts) AS k) AS keys,
           (SELECT json_agg(a.attname ORDER BY k.position)
            FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS k (attnum, position)
            LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND k.attnum > 0
            WHERE k.position <= i.indnkeyatts) AS key_columns,
           (SELECT json_agg(DISTINCT a.attname) FROM pg_attribute a
            WHERE a.attrelid = i.indrelid AND a.attnum > 0 AND (a.attnum = ANY(i.indkey) OR EXISTS (
                SELECT FROM pg_depend d
                WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
                  AND d.refclassid = 'pg_class'::regclass AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum
            ))) AS columns,
           (SELECT json_agg((SELECT opcname FROM pg_opclass WHERE oid = u.oid) ORDER BY u.position)
            FROM unnest(i.indclass::oid[]) WITH ORDINALITY AS u (oid, position)) AS opclasses,
           coalesce(pg_stat_get_numscans(c.oid), 0) AS scans, pg_size_pretty(pg_relation_size(c.oid)) AS size
    FROM pg_index i
    JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_class t ON t.oid = i.indrelid
"""
_OF_RELATIONS = sa.text(
    f"{_INDEXES} WHERE i.indrelid = ANY(CAST(CAST(:relations AS bigint[]) AS oid[])) ORDER BY c.relname"
)
_NAMED = sa.text(f"{_INDEXES} WHERE i.indexrelid = to_regclass(:name)")

# A concurrent build holds its table in SHARE UPDATE EXCLUSIVE mode from beginning to end, which pg_locks tells
# everybody; pg_stat_progress_create_index hides what other roles build. VACUUM takes that lock as well, and is waited
# for without need: a build would have to wait for it anyway.
_BUILDER = sa.text("""
    SELECT min(l.pid) FROM pg_locks l
    WHERE l.locktype = 'relation' AND l.relation = CAST(CAST(:table_oid AS bigint) AS oid) AND l.granted
      AND l.mode = 'ShareUpdateExclusiveLock' AND l.pid <> pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
""")


class Indexed(NamedTuple):
    """The column that an index is on, and to what the index casts it, of which dimension; None for no cast."""

    column: str
    cast: CoarserStorage | None
    dimension: int | None


@dataclass(frozen=True)
class Index:
    """An index on one relation; two are equal if name, table, validity and comment are."""

    name: str
    table: str
    valid: bool = True
    comment: str = ""
    schema: str = field(default="", compare=False)
    table_schema: str = field(default="", compare=False)
    method: str = field(default="btree", compare=False)
    keys: tuple[str, ...] = field(default=(), compare=False)
    """Each key as PostgreSQL writes it."""
    key_columns: tuple[str | None, ...] = field(default=(), compare=False)
    """The column that each key is; None for an expression."""
    columns: frozenset[str] = field(default=frozenset(), compare=False)
    """Every column that the index depends on: in a key, in the predicate or included."""
    opclasses: tuple[str, ...] = field(default=(), compare=False)
    options: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    predicate: str | None = field(default=None, compare=False)
    unique: bool = field(default=False, compare=False)
    immediate: bool = field(default=True, compare=False)
    includes: bool = field(default=False, compare=False)
    """Whether the index has columns beside its keys."""
    partitioned: bool = field(default=False, compare=False)
    parent_oid: int | None = field(default=None, compare=False)
    """The index of a partitioned table that this one is attached to."""
    definition: str = field(default="", compare=False)
    scans: int = field(default=0, compare=False)
    size: str = field(default="", compare=False)
    oid: int = field(default=0, compare=False)
    """Grows from each index to the next one built."""
    table_oid: int = field(default=0, compare=False)

    @property
    def is_ann(self) -> bool:
        """Return whether it is an index of pgvector's."""
        return self.method in ANN_METHODS

    @property
    def partial(self) -> bool:
        """Return whether it has a predicate."""
        return self.predicate is not None

    @property
    def indexed(self) -> Indexed | None:
        """Return the one column that is indexed; None for several keys, or an expression that no search asks for."""
        found = _KEY.fullmatch(self.keys[0]) if len(self.keys) == 1 else None
        if found is None or (found["signs"] is not None) != (found["cast"] == "bit"):
            return None
        name = found["name"]
        column = name[1:-1].replace('""', '"') if name.startswith('"') else name
        return Indexed(column, cast(Any, found["cast"]), int(found["dimension"]) if found["dimension"] else None)

    @property
    def storage(self) -> IndexStorage | None:
        """Return what the index holds of a dimension; None for an expression that no search asks for."""
        indexed = self.indexed
        if indexed is None:
            return None
        return indexed.cast or cast(Any, self.opclasses[0].partition("_")[0])

    @property
    def lists(self) -> int | None:
        """Return the lists of an ivfflat index; None for any other."""
        return int(self.effective_options["lists"]) if self.method == "ivfflat" else None

    @property
    def effective_options(self) -> dict[str, str]:
        """The index's storage parameters, those that it leaves to pgvector's defaults included."""
        return {**DEFAULT_OPTIONS.get(self.method, {}), **dict(self.options)}

    @property
    def opclass(self) -> str:
        """Return the operator class of its first key."""
        return self.opclasses[0]

    def fits(self, distance: str) -> bool:
        """Return whether searches by ``distance`` can be asked of its key and operator class."""
        return self.opclass == (BIT_OPCLASS if self.storage == "bit" else f"{self.storage}_{distance}_ops")

    def serves(self, distance: str) -> bool:
        """Return whether searches by ``distance`` over all rows of its relation can use it as it is."""
        return self.valid and not self.partial and self.fits(distance)

    @property
    def unique_columns(self) -> frozenset[str] | None:
        """Return the columns that ON CONFLICT can name it by; None where it cannot: invalid, partial, deferrable."""
        arbitrates = self.unique and self.valid and self.immediate and not self.partial
        return frozenset(map(str, self.key_columns)) if arbitrates and None not in self.key_columns else None

    def differences(self, wanted: Index) -> list[str]:
        """Return in words what differs in ``wanted``, whatever its name; a stated default is no difference."""
        pairs = {
            "method": (self.method, wanted.method),
            "keys": (self.keys, wanted.keys),
            "opclasses": (self.opclasses, wanted.opclasses),
            "options": (self.effective_options, wanted.effective_options),
            "predicate": (self.predicate, wanted.predicate),
            "unique": (self.unique, wanted.unique),
            "includes": (self.includes, wanted.includes),
        }
        return [f"{name} {ours!r} to {theirs!r}" for name, (ours, theirs) in pairs.items() if ours != theirs]


def indexes_of(connection: Connection, table: str, schema: str | None = None) -> list[Index]:
    """Return every index of a table and of its partitions, by name; empty where there is no such table."""
    return indexes_on(connection, relations_of(connection, table, schema))


def indexes_on(connection: Connection, relations: Sequence[int]) -> list[Index]:
    """Return every index of the relations with these oids, by name."""
    return [_index(row) for row in connection.execute(_OF_RELATIONS, {"relations": list(relations)})]


def index_of(connection: Connection, name: str, schema: str | None = None) -> Index | None:
    """Return the index of that name; None where none can be seen."""
    row = connection.execute(_NAMED, {"name": quoted(schema, name)}).first()
    return None if row is None else _index(row)


def builder_of(connection: Connection, index: Index) -> int | None:
    """Return the process that may be building an invalid index; None if no session can be building it."""
    pid: int | None = connection.execute(_BUILDER, {"table_oid": index.table_oid}).scalar()
    return pid


def unique_column_sets(connection: Connection, table: str, schema: str | None = None) -> list[frozenset[str]]:
    """Return the columns of every unique index of ``table`` that ON CONFLICT can name."""
    own = relations_of(connection, table, schema)[:1]
    found = (index.unique_columns for index in indexes_on(connection, own))
    return [columns for columns in found if columns is not None]


def predicate_as_written(connection: Connection, where: str, table: str, schema: str | None = None) -> str:
    """Return the predicate of a partial index on ``table`` as PostgreSQL writes it down.

    Nothing else knows that ``state IN ('a', 'b')`` is ``state = ANY (ARRAY['a'::text, 'b'::text])``: it is built on an
    empty table like that one, within a savepoint that is rolled back. Raises `DBAPIError` where it cannot be built.
    """
    statements = (
        f"CREATE TEMPORARY TABLE amprenta_like (LIKE {quoted(schema, table)})",
        f"CREATE INDEX amprenta_predicate ON pg_temp.amprenta_like ((1)) WHERE {where}",
    )
    savepoint = connection.begin_nested()
    try:
        for statement in statements:
            connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
        found = index_of(connection, "amprenta_predicate", "pg_temp")
    finally:
        savepoint.rollback()
    assert found is not None  # noqa: S101 - it was just made
    return found.predicate or ""


def _index(row: Any) -> Index:
    values = dict(row._mapping)
    values["keys"] = tuple(values["keys"])
    values["key_columns"] = tuple(values["key_columns"])
    values["columns"] = frozenset(values["columns"] or ())
    values["opclasses"] = tuple(values["opclasses"])
    values["options"] = tuple(tuple(option.split("=", 1)) for option in values["options"] or ())
    return Index(**values)
