"""Add rag_chunks.embedding and rag_chunks.embedding_model."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "rag_0002"
down_revision = "rag_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add both columns, NULL in every row, or take back what a downgrade kept."""
    op.add_vector_column("rag_chunks", "embedding", 1536, configurable=True)
    op.add_kept_column("rag_chunks", "embedding_model", sa.Text())


def downgrade() -> None:
    """Keep the values under retired names."""
    op.drop_kept_column("rag_chunks", "embedding")
    op.drop_kept_column("rag_chunks", "embedding_model")
