"""An ANN index as PostgreSQL itself writes it down, so that two can be compared by what they are, not by their text."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection
from sqlalchemy.schema import CreateIndex

from amprenta_vectors.ddl.catalogue import quoted

ANN_METHODS = frozenset({"hnsw", "ivfflat"})

_DEFAULTS = {"hnsw": {"m": "16", "ef_construction": "64"}, "ivfflat": {"lists": "100"}}
"""What an option is where none is given (pgvector's README)."""

_NAME = r'(?:"(?:[^"]|"")+"|\w+)'
_KEY = re.compile(
    rf"\(*(?P<signs>(?:{_NAME}\.)?binary_quantize\()?(?P<name>{_NAME})\)*"
    rf"(?:::(?:{_NAME}\.)?(?P<cast>halfvec|bit)\(\d+\))?\)*"
)

_DEFINITION = sa.text("""
    SELECT am.amname AS method, pg_get_expr(i.indpred, i.indrelid, true) AS predicate,
           array_to_json(c.reloptions) AS options, i.indnatts = i.indnkeyatts AND NOT i.indisunique AS plain,
           (SELECT json_agg(pg_get_indexdef(i.indexrelid, n, true) ORDER BY n)
            FROM generate_series(1, i.indnkeyatts) AS n) AS keys,
           (SELECT json_agg(o.opcname ORDER BY u.n) FROM unnest(i.indclass::oid[]) WITH ORDINALITY AS u (oid, n)
            JOIN pg_opclass o ON o.oid = u.oid) AS opclasses
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am am ON am.oid = c.relam
    WHERE i.indexrelid = to_regclass(:name)
""")


@dataclass(frozen=True)
class IndexDefinition:
    """All of an index but its name; ``predicate`` and ``keys`` are as PostgreSQL writes them."""

    method: str
    keys: tuple[str, ...]
    opclasses: tuple[str, ...]
    options: tuple[tuple[str, str], ...]
    predicate: str | None
    plain: bool
    """Neither unique nor with included columns."""

    def differences(self, wanted: IndexDefinition) -> list[str]:
        """What turns this index into ``wanted``, in words; an option that merely states its default is none."""
        return [
            f"{name} {ours!r} to {theirs!r}"
            for name in (each.name for each in fields(self))
            if (ours := self._effective(name)) != (theirs := wanted._effective(name))
        ]

    def _effective(self, name: str) -> Any:
        if name == "options":
            return {**_DEFAULTS.get(self.method, {}), **dict(self.options)}
        return getattr(self, name)

    @property
    def column(self) -> tuple[str, Literal["halfvec", "bit"] | None] | None:
        """The one column that is indexed, and as what, None as it is; None for any other key."""
        match = _KEY.fullmatch(self.keys[0]) if len(self.keys) == 1 else None
        if match is None or (match["signs"] is not None) != (match["cast"] == "bit"):
            return None
        name = match["name"]
        return name[1:-1].replace('""', '"') if name.startswith('"') else name, cast(Any, match["cast"])


def definition_of(connection: Connection, name: str, schema: str | None = None) -> IndexDefinition | None:
    """The definition of an index in the database; None where there is none of that name."""
    row = connection.execute(_DEFINITION, {"name": quoted(schema, name)}).mappings().first()
    if row is None:
        return None
    options = (tuple(option.split("=", 1)) for option in row["options"] or ())
    return IndexDefinition(
        **{**row, "keys": tuple(row["keys"]), "opclasses": tuple(row["opclasses"]), "options": tuple(options)}
    )


def definition_if_built(connection: Connection, index: sa.Index) -> IndexDefinition:
    """How PostgreSQL would write down ``index`` of a model, had it been built on the table that exists.

    It is: on an empty temporary copy of the table, within a savepoint that is rolled back. Nothing else knows that
    ``state IN ('a', 'b')`` is the same predicate as ``state = ANY (ARRAY['a'::text, 'b'::text])``. Raises SQLAlchemy's
    `DBAPIError` where it cannot be built.
    """
    table = index.table
    assert table is not None and index.name is not None  # noqa: S101, PT018 - an index of a table in a model has both
    # Parameters of this style leave percent signs alone, as does a statement without any.
    dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
    create = CreateIndex(index).compile(
        dialect=dialect, schema_translate_map={table.schema: "pg_temp"}, render_schema_translate=True
    )
    options = {"no_parameters": True}
    savepoint = connection.begin_nested()
    try:
        connection.exec_driver_sql(
            f"CREATE TEMPORARY TABLE {quoted(table.name)} (LIKE {quoted(table.schema, table.name)})",
            execution_options=options,
        )
        connection.exec_driver_sql(create.string.replace("INDEX CONCURRENTLY", "INDEX", 1), execution_options=options)
        built = definition_of(connection, index.name, "pg_temp")
    finally:
        savepoint.rollback()
    assert built is not None  # noqa: S101 - it was just made
    return built
