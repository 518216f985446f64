"""Add rag_chunks.embedding, embedding_model, and the hashes by which the engine knows again what it wrote."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "rag_0002"
down_revision = "rag_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, NULL in every row, or take back what a downgrade kept."""
    op.add_vector_column("rag_chunks", "embedding", 1536, configurable=True)
    op.add_kept_column("rag_chunks", "embedding_model", sa.Text())
    op.add_kept_column("rag_chunks", "embedding_hash", sa.BigInteger())
    op.add_kept_column("rag_chunks", "embedding_text_hash", sa.BigInteger())


def downgrade() -> None:
    """Keep the values under retired names."""
    # Of an upgrade that failed at the next revision.
    op.drop_vector_index("idx_rag_chunks_embedding")
    op.drop_kept_column("rag_chunks", "embedding")
    op.drop_kept_column("rag_chunks", "embedding_model")
    op.drop_kept_column("rag_chunks", "embedding_hash")
    op.drop_kept_column("rag_chunks", "embedding_text_hash")
