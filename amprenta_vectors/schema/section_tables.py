"""The vector table of each section as its revisions leave it: made by them, or adopted with columns added to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl import CreatePlainIndexOp, VectorType
from amprenta_vectors.ddl.catalogue import MADE, column_types, comment_of, quoted, table_exists
from amprenta_vectors.ddl.index_key import BIT_OPCLASS, index_key
from amprenta_vectors.ddl.plain_index import serves_already
from amprenta_vectors.schema.registry import PRODUCTS, RAG_CHUNKS, VECTOR_DOCUMENTS
from amprenta_vectors.schema.vector_table import VectorTable

ADOPTED = {"adopted": True}
"""The ``info`` of a column that was there before: its owner's affair."""

_MOMENT = sa.TIMESTAMP(timezone=True)

_SERVED = sa.text("""
    SELECT 1 FROM pg_index i
    JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_am am ON am.oid = c.relam AND am.amname IN ('hnsw', 'ivfflat')
    JOIN pg_opclass o ON o.oid = i.indclass[0] AND o.opcname = ANY(:opclasses)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname = :column
    JOIN pg_depend d ON d.objid = i.indexrelid AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum
    WHERE i.indrelid = to_regclass(:table) AND i.indisvalid AND i.indpred IS NULL
""")

_FORBIDS_NULL = sa.text("""
    SELECT attnotnull FROM pg_attribute WHERE attrelid = to_regclass(:table) AND attname = :column AND NOT attisdropped
""")


@dataclass(frozen=True)
class SectionTable:
    """What a section's revisions make of one vector table."""

    table: VectorTable
    own: Callable[[], Sequence[sa.Column[Any]]]
    """The columns that the table has where it is made here."""
    added: Callable[[], Sequence[sa.Column[Any]]]
    """The columns beside the embedding that are added to it."""
    index: str
    """The name of the index on the embedding."""
    others: Sequence[CreatePlainIndexOp] = ()
    nullable: bool = True
    """Whether the embedding may be NULL in a table that is made here."""


def _rag_chunks() -> Sequence[sa.Column[Any]]:
    return (
        sa.Column("namespace", sa.Text, primary_key=True, server_default=""),
        sa.Column("chunk_id", sa.Text, primary_key=True),
        sa.Column("content", sa.Text),
        sa.Column("metadata", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("created_at", _MOMENT, nullable=False, server_default=sa.func.now()),
        sa.Column("updated_at", _MOMENT, nullable=False, server_default=sa.func.now()),
    )


def _rag_chunks_added() -> Sequence[sa.Column[Any]]:
    return (
        sa.Column("embedding_model", sa.Text),
        sa.Column("embedding_hash", sa.BigInteger),
        sa.Column("embedding_text_hash", sa.BigInteger),
    )


def _vector_documents() -> Sequence[sa.Column[Any]]:
    return (
        sa.Column("id", UUID, primary_key=True, server_default=sa.func.gen_random_uuid()),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("collection_name", sa.String(255), nullable=False, server_default="personal_assistant"),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("metadata", JSONB, server_default=sa.text("'{}'")),
        sa.Column("created_at", _MOMENT, server_default=sa.func.now()),
        sa.Column("updated_at", _MOMENT, server_default=sa.func.now()),
    )


def _vector_documents_added() -> Sequence[sa.Column[Any]]:
    return tuple(sa.Column(name, sa.BigInteger) for name in ("embedding_hash", "embedding_text_hash"))


def _products() -> Sequence[sa.Column[Any]]:
    return (
        sa.Column("id", UUID, primary_key=True, server_default=sa.func.gen_random_uuid()),
        sa.Column("name", sa.Text, nullable=False),
        *(sa.Column(name, sa.Text) for name in ("brand", "category", "description")),
        sa.Column("price", sa.Numeric(12, 2)),
        sa.Column("stock", sa.Integer, nullable=False, server_default="0"),
        sa.Column("active", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("created_at", _MOMENT, nullable=False, server_default=sa.func.now()),
        sa.Column("updated_at", _MOMENT, nullable=False, server_default=sa.func.now()),
    )


def _products_added() -> Sequence[sa.Column[Any]]:
    return (
        sa.Column("last_embedding_update", _MOMENT),
        sa.Column("embedding_model", sa.Text),
        sa.Column("embedding_version", sa.Integer),
        sa.Column("embedding_hash", sa.BigInteger),
        sa.Column("embedding_text_hash", sa.BigInteger),
    )


SECTION_TABLES = {
    "alembic": SectionTable(RAG_CHUNKS, _rag_chunks, _rag_chunks_added, "idx_rag_chunks_embedding"),
    "documents": SectionTable(
        VECTOR_DOCUMENTS,
        _vector_documents,
        _vector_documents_added,
        "idx_vector_documents_embedding_hnsw",
        (
            CreatePlainIndexOp(
                "idx_vector_documents_user_collection", "vector_documents", ["user_id", "collection_name"]
            ),
            CreatePlainIndexOp(
                "uq_vector_documents_user_collection_id",
                "vector_documents",
                ["user_id", "collection_name", "id"],
                unique=True,
            ),
        ),
        nullable=False,
    ),
    "products": SectionTable(
        PRODUCTS,
        _products,
        _products_added,
        "idx_products_embedding_hnsw",
        (
            CreatePlainIndexOp("idx_products_category_brand_stock", "products", ["category", "brand", "stock"]),
            CreatePlainIndexOp("idx_products_embedding_update", "products", ["last_embedding_update"]),
            CreatePlainIndexOp("idx_products_stale_embeddings", "products", ["updated_at", "last_embedding_update"]),
        ),
    ),
}
"""By section; predicates of indexes are left out, as Alembic does not compare them."""


def add_section_table(metadata: sa.MetaData, connection: Connection, section: SectionTable) -> None:
    """Add to ``metadata`` all of a table that was made here; of an adopted one, what was added to it."""
    name = section.table.table
    made = not table_exists(connection, name) or comment_of(connection, name) == MADE
    table = sa.Table(
        name,
        metadata,
        *(section.own() if made else ()),
        *_added(connection, section, made),
        comment=MADE if made else comment_of(connection, name) or None,
    )
    _add_vector_index(connection, section, table)
    for index in section.others:
        there_before = table_exists(connection, index.name) and comment_of(connection, index.name) != MADE
        # Of a column that the table lacks there is nothing to compare.
        if not there_before and not _serves_otherwise(connection, index):
            sa.Index(index.name, *(_column(table, column) for column in index.columns), unique=index.unique)


def _added(connection: Connection, section: SectionTable, made: bool) -> Sequence[sa.Column[Any]]:
    name = section.table.table
    types = column_types(connection, name)
    vector = VectorType.parse(types.get("embedding", "")) or VectorType("vector", section.table.dimension)
    forbids_null = connection.execute(_FORBIDS_NULL, {"table": quoted(name), "column": "embedding"}).scalar()
    # Where it was taken back it may be NULL, as rows that changed meanwhile have none.
    nullable = section.nullable or not made if forbids_null is None else not forbids_null
    added = [sa.Column("embedding", vector, nullable=nullable), *section.added()]
    for column in added:
        column.comment = MADE
        if column.name in types and comment_of(connection, name, column.name) != MADE:
            column.info = dict(ADOPTED)
    return added


def _add_vector_index(connection: Connection, section: SectionTable, table: sa.Table) -> None:
    """Which index serves is the operator's choice, as the dimension is; that there is one is ours."""
    column: Any = table.c.embedding
    wanted = index_key("embedding", column.type, "cosine")
    opclasses = ["vector_cosine_ops", "halfvec_cosine_ops", BIT_OPCLASS]
    served = {"table": quoted(table.name), "column": "embedding", "opclasses": opclasses}
    if connection.execute(_SERVED, served).first():
        return
    sa.Index(
        section.index,
        wanted.of(column),
        postgresql_using="hnsw",
        postgresql_with={"m": 16, "ef_construction": 64},
        postgresql_ops={"embedding": wanted.opclass},
    )


def _serves_otherwise(connection: Connection, index: CreatePlainIndexOp) -> bool:
    return not table_exists(connection, index.name) and serves_already(connection, index)


def _column(table: sa.Table, name: str) -> sa.Column[Any]:
    """A column of ``table``; of an adopted one's own, which are not compared, a stand-in."""
    if name not in table.c:
        table.append_column(sa.Column(name, sa.Text, info=dict(ADOPTED)))
    return table.c[name]
