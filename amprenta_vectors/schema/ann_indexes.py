"""The vector indexes of a column as the catalogue has them, and which of them searches use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.schema.catalogue import relations_of
from amprenta_vectors.schema.vector_table import VectorTable

IndexMethod = Literal["hnsw", "ivfflat"]
IndexStorage = Literal["vector", "halfvec", "bit"]
"""What an index holds of a vector: four bytes, two bytes or one bit, its sign, a dimension."""

DEFAULT_LISTS = 100
"""Of an ivfflat index that says nothing of it (pgvector's README)."""

# pg_get_expr writes the schema of the extension only where it is not on the search path, as format_type does.
_INDEXES = sa.text("""
    SELECT i.indexrelid::bigint AS oid, i.indrelid::bigint AS leaf, n.nspname AS schema, c.relname AS name,
           am.amname AS method, o.opcname AS opclass, i.indisvalid AS valid, i.indpred IS NOT NULL AS partial,
           coalesce((SELECT option_value::int FROM pg_options_to_table(c.reloptions) WHERE option_name = 'lists'),
                    CASE am.amname WHEN 'ivfflat' THEN CAST(:lists AS integer) END) AS lists,
           coalesce(s.idx_scan, 0) AS scans, pg_size_pretty(pg_relation_size(c.oid)) AS size,
           CASE WHEN i.indkey[0] = a.attnum THEN split_part(o.opcname, '_', 1)
                WHEN pg_get_expr(i.indexprs, i.indrelid)
                     = format('(%I)::%s', a.attname, format_type(o.opcintype, a.atttypmod)) THEN 'halfvec'
                WHEN starts_with(
                    reverse(pg_get_expr(i.indexprs, i.indrelid)),
                    reverse(format('binary_quantize(%I))::bit(%s)', a.attname, a.atttypmod))
                ) THEN 'bit' END AS storage
    FROM pg_index i
    JOIN pg_class c ON c.oid = i.indexrelid AND c.relkind = 'i'
    JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_am am ON am.oid = c.relam AND am.amname IN ('hnsw', 'ivfflat')
    JOIN pg_opclass o ON o.oid = i.indclass[0]
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname = :column
    LEFT JOIN pg_stat_all_indexes s ON s.indexrelid = c.oid
    WHERE i.indrelid = ANY(CAST(:relations AS oid[])) AND EXISTS (
        SELECT FROM pg_depend d
        WHERE d.objid = i.indexrelid AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum
    )
    ORDER BY c.relname
""")


@dataclass(frozen=True)
class AnnIndex:
    """A vector index of the embedding column on one relation that holds rows.

    ``storage`` is None for an expression that no search asks for; ``lists`` is None for one that is not ivfflat.
    ``oid`` grows from each index to the next one built.
    """

    oid: int
    leaf: int
    schema: str
    name: str
    method: IndexMethod
    opclass: str
    valid: bool
    partial: bool
    lists: int | None
    scans: int
    size: str
    storage: IndexStorage | None

    def fits(self, table: VectorTable) -> bool:
        """Whether searches by the table's distance can be asked of its key and operator class."""
        wanted = "bit_hamming_ops" if self.storage == "bit" else f"{self.storage}_{table.distance}_ops"
        return self.opclass == wanted

    def serves(self, table: VectorTable) -> bool:
        """Whether searches can use it as it is."""
        return self.valid and not self.partial and self.fits(table)


@dataclass(frozen=True)
class Serving:
    """The index that searches are written for, and those beside it that PostgreSQL may take for the same search."""

    storage: IndexStorage
    methods: frozenset[IndexMethod]
    lists: int | None


def ann_indexes(connection: Connection, table: VectorTable) -> list[AnnIndex]:
    """Every vector index of the column, those of partitions among them, by name."""
    values = {"relations": relations_of(connection, table), "column": table.embedding, "lists": DEFAULT_LISTS}
    return [AnnIndex(**row._mapping) for row in connection.execute(_INDEXES, values)]


def serving(table: VectorTable, indexes: Sequence[AnnIndex]) -> Serving | None:
    """What searches of ``table`` use of ``indexes``; None where none serves.

    Of several kinds the one that was built last: so that a second index is used before the first one is dropped.
    """
    able = [index for index in indexes if index.serves(table)]
    if not able:
        return None
    chosen = max(able, key=lambda index: index.oid).storage
    alike = [index for index in able if index.storage == chosen]
    lists = [index.lists for index in alike if index.lists is not None]
    assert chosen is not None  # noqa: S101 - one that serves has a storage
    return Serving(chosen, frozenset(index.method for index in alike), max(lists, default=None))
