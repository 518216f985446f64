"""Adopt documents, chunks and chunk_embeddings, or make them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, UUID

revision = "models_0001"
down_revision = "core_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adopt the tables with the columns that texts are found and embedded by, or make those that are absent."""
    op.adopt_table(
        "documents",
        sa.Column("id", UUID, primary_key=True, server_default=sa.func.gen_random_uuid()),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("content", sa.Text),
        sa.Column("metadata", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("updated_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        key=["id"],
        relies_on=["title"],
    )
    op.adopt_table(
        "chunks",
        sa.Column("id", UUID, primary_key=True, server_default=sa.func.gen_random_uuid()),
        sa.Column("document_id", UUID, sa.ForeignKey("documents.id", ondelete="CASCADE"), nullable=False),
        sa.Column("chunk_index", sa.Integer, nullable=False),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.UniqueConstraint("document_id", "chunk_index", name="chunks_document_id_chunk_index_key"),
        key=["id"],
        relies_on=["document_id", "chunk_index", "content"],
    )
    op.adopt_table(
        "chunk_embeddings",
        sa.Column("id", UUID, primary_key=True, server_default=sa.func.gen_random_uuid()),
        sa.Column("chunk_id", UUID, sa.ForeignKey("chunks.id", ondelete="CASCADE"), nullable=False),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        relies_on=["id", "chunk_id"],
    )


def downgrade() -> None:
    """Leave adopted tables; keep those that were made here and have rows."""
    op.retire_table("chunk_embeddings")
    op.retire_table("chunks")
    op.retire_table("documents")
