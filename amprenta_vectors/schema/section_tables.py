"""The vector table of each section as its revisions leave it: made by them, or adopted with columns added to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl import CreatePlainIndexOp, VectorType
from amprenta_vectors.ddl.marks import MADE
from amprenta_vectors.pg.index_keys import index_key
from amprenta_vectors.pg.indexes import Index, index_of, indexes_of
from amprenta_vectors.pg.names import quoted
from amprenta_vectors.pg.tables import Table, table_of
from amprenta_vectors.schema.registry import PRODUCTS, RAG_CHUNKS, VECTOR_DOCUMENTS
from amprenta_vectors.schema.vector_table import VectorTable

ADOPTED = {"adopted": True}
"""The ``info`` of a column that was there before: its owner's affair."""

_SCHEMA = sa.text("""
    SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = to_regclass(:table) AND n.nspname <> current_schema()
""")

_MOMENT = sa.TIMESTAMP(timezone=True)


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
    """Add to ``metadata`` all of a table that was made here; of an adopted one, what was added to it.

    Its schema is named where the search path does not put new tables there.
    """
    name = section.table.table
    found = table_of(connection, name)
    made = found is None or found.comment == MADE
    table = sa.Table(
        name,
        metadata,
        *(section.own() if made else ()),
        *_added(found, section, made),
        comment=MADE if found is None else found.comment or None,
        schema=connection.execute(_SCHEMA, {"table": quoted(name)}).scalar(),
    )
    indexes = indexes_of(connection, name)
    _add_vector_index(indexes, section, table)
    for index in section.others:
        there = index_of(connection, index.name)
        # Of a column that the table lacks there is nothing to compare.
        if (there is None and not index.is_served(indexes)) or (there is not None and there.comment == MADE):
            sa.Index(index.name, *(_column(table, column) for column in index.columns), unique=index.unique)


def _added(found: Table | None, section: SectionTable, made: bool) -> Sequence[sa.Column[Any]]:
    there = {} if found is None else found.columns
    present = there.get("embedding")
    vector = VectorType.parse(present.type if present else "") or VectorType("vector", section.table.dimension)
    # Where it was taken back it may be NULL, as rows that changed meanwhile have none.
    nullable = section.nullable or not made if present is None else not present.not_null
    added = [sa.Column("embedding", vector, nullable=nullable), *section.added()]
    for column in added:
        column.comment = MADE
        if column.name in there and there[column.name].comment != MADE:
            column.info = dict(ADOPTED)
    return added


def _add_vector_index(indexes: Sequence[Index], section: SectionTable, table: sa.Table) -> None:
    """Which index serves is the operator's choice, as the dimension is; that there is one is ours."""
    column: Any = table.c.embedding
    wanted = index_key("embedding", column.type, "cosine")
    if any(index.is_ann and "embedding" in index.columns and index.serves("cosine") for index in indexes):
        return
    sa.Index(
        section.index,
        wanted.of(column),
        postgresql_using="hnsw",
        postgresql_with={"m": 16, "ef_construction": 64},
        postgresql_ops={"embedding": wanted.opclass},
    )


def _column(table: sa.Table, name: str) -> sa.Column[Any]:
    """A column of ``table``; of an adopted one's own, which are not compared, a stand-in."""
    if name not in table.c:
        table.append_column(sa.Column(name, sa.Text, info=dict(ADOPTED)))
    return table.c[name]
