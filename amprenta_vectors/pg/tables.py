"""Tables as the catalogue has them: one query, one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.pg.names import quoted


@dataclass(frozen=True)
class Column:
    """A column: its type as SQL writes it (``vector(1536)``), and what else is known of it."""

    type: str
    comment: str = ""
    not_null: bool = False
    default: bool = field(default=False, compare=False)
    """Whether an INSERT may leave the column out although it is NOT NULL: it has a default, or is generated."""
    base: str = field(default="", compare=False)
    """The type that the values are of: that of the column, or what its domain is based on."""
    enum: bool = field(default=False, compare=False)
    """Whether that type is an enumeration."""
    domain_not_null: bool = field(default=False, compare=False)
    """Whether the column's domain refuses NULL."""

    @property
    def refuses_null(self) -> bool:
        """Return whether the column or its domain is NOT NULL."""
        return self.not_null or self.domain_not_null


@dataclass(frozen=True)
class Table:
    """A relation with its columns by name; ``kind`` is pg_class's relkind: r a table, p a partitioned one, v a view."""

    name: str
    schema: str | None = None
    kind: str = "r"
    comment: str = ""
    columns: Mapping[str, Column] = field(default_factory=dict)
    oid: int = field(default=0, compare=False)

    @property
    def partitioned(self) -> bool:
        """Return whether its rows lie in partitions, so that no index of it can be built concurrently."""
        return self.kind == "p"


_TABLE = sa.text("""
    SELECT c.oid::bigint AS oid, c.relkind::text AS kind, coalesce(own.description, '') AS comment,
           a.attname AS column, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS not_null,
           a.atthasdef OR a.attidentity <> '' OR a.attgenerated <> '' AS has_default,
           t.typtype::text AS kind_of_type, a.atttypid::bigint AS type_oid,
           coalesce(d.description, '') AS column_comment
    FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_description own ON own.objoid = c.oid AND own.classoid = 'pg_class'::regclass AND own.objsubid = 0
    LEFT JOIN pg_description d ON d.objoid = c.oid AND d.classoid = 'pg_class'::regclass AND d.objsubid = a.attnum
    LEFT JOIN pg_type t ON t.oid = a.atttypid
    WHERE c.oid = to_regclass(:name) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    ORDER BY a.attnum
""")

_DOMAINS = sa.text("""
    WITH RECURSIVE chain (domain, oid, modifier, step) AS (
        SELECT oid, oid, -1, 0 FROM pg_type WHERE oid = ANY(CAST(:oids AS bigint[]))
        UNION ALL SELECT chain.domain, t.typbasetype, t.typtypmod, chain.step + 1
        FROM chain JOIN pg_type t ON t.oid = chain.oid AND t.typtype = 'd'
    )
    SELECT chain.domain::bigint,
           (array_agg(format_type(chain.oid, chain.modifier) ORDER BY chain.step DESC))[1] AS base,
           bool_or(t.typtype = 'e') AS enum, bool_or(t.typtype = 'd' AND t.typnotnull) AS not_null,
           bool_or(t.typtype = 'd' AND t.typdefault IS NOT NULL) AS has_default
    FROM chain JOIN pg_type t ON t.oid = chain.oid GROUP BY chain.domain
""")

_TREE = sa.text("""
    WITH RECURSIVE tree (oid) AS (
        SELECT to_regclass(:name)::oid
        UNION ALL SELECT i.inhrelid FROM pg_inherits i JOIN tree ON tree.oid = i.inhparent
    )
    SELECT oid::bigint FROM tree WHERE oid IS NOT NULL
""")

# The pages of the longest of the relations that hold rows.
_PAGES = sa.text("""
    SELECT coalesce(max(pg_relation_size(CAST(oid AS oid))) / current_setting('block_size')::bigint, 0)
    FROM unnest(CAST(:oids AS bigint[])) AS tree (oid)
""")

_ELSEWHERE = sa.text("""
    SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = :name AND c.relkind IN ('r', 'p') AND n.nspname !~ '^(pg_|information_schema$)'
      AND NOT pg_table_is_visible(c.oid)
    ORDER BY 1
""")

_NAMES = sa.text("""
    SELECT c.relname FROM pg_class c
    WHERE c.relkind IN ('r', 'p') AND c.relnamespace = coalesce(to_regnamespace(:schema), to_regnamespace('public'))
    ORDER BY 1
""").bindparams(sa.bindparam("schema", type_=sa.Text))


def table_of(connection: Connection, name: str, schema: str | None = None) -> Table | None:
    """Return the table, view or foreign table of that name; None where none can be seen."""
    rows = connection.execute(_TABLE, {"name": quoted(schema, name)}).all()
    if not rows:
        return None
    domains = _domains(connection, [row.type_oid for row in rows if row.kind_of_type == "d"])
    columns = {row.column: _column(row, domains.get(row.type_oid)) for row in rows if row.column is not None}
    return Table(name, schema, rows[0].kind, rows[0].comment, columns, rows[0].oid)


def _domains(connection: Connection, oids: Sequence[int]) -> dict[int, sa.Row[Any]]:
    """Return by oid what each domain is based on, and whether it refuses NULL and has a default."""
    return {row.domain: row for row in connection.execute(_DOMAINS, {"oids": list(oids)})} if oids else {}


def _column(row: sa.Row[Any], domain: sa.Row[Any] | None) -> Column:
    default = row.has_default or (domain is not None and domain.has_default)
    column = Column(row.type, row.column_comment, row.not_null, default, row.type, row.kind_of_type == "e")
    if domain is None:
        return column
    return replace(column, base=domain.base, enum=domain.enum, domain_not_null=domain.not_null)


def relations_of(connection: Connection, name: str, schema: str | None = None) -> list[int]:
    """Return the oids of a table and of its partitions; empty where there is no such table."""
    return list(connection.execute(_TREE, {"name": quoted(schema, name)}).scalars())


def pages_of(connection: Connection, name: str, schema: str | None = None) -> int:
    """Return the length of a table in pages, or that of its longest partition."""
    pages: int = connection.execute(_PAGES, {"oids": relations_of(connection, name, schema)}).scalar_one()
    return pages


def has_value(connection: Connection, table: str, column: str | None = None, schema: str | None = None) -> bool:
    """Return whether ``table`` has a row, or a row whose ``column`` is not NULL; reads until it finds one."""
    rows = sa.select(sa.literal(1)).select_from(sa.table(table, schema=schema)).limit(1)
    if column is not None:
        rows = rows.where(sa.column(column).is_not(None))
    return connection.execute(rows).first() is not None


def count_rows(
    connection: Connection, table: str, schema: str | None = None, where: sa.ColumnElement[bool] | None = None
) -> int:
    """Return how many rows ``table`` has, or how many of them meet a condition."""
    rows = sa.select(sa.func.count()).select_from(sa.table(table, schema=schema))
    counted: int = connection.execute(rows if where is None else rows.where(where)).scalar_one()
    return counted


def schemas_with(connection: Connection, name: str) -> list[str]:
    """Return the schemas off the search path that have a table of that name."""
    return list(connection.execute(_ELSEWHERE, {"name": name}).scalars())


def table_names(connection: Connection, schema: str | None = None) -> list[str]:
    """Return the names of the tables in ``schema``, or in ``public``."""
    return list(connection.execute(_NAMES, {"schema": schema and quoted(schema)}).scalars())
