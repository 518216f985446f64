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
    op.add_vector_column(
        "rag_chunks",
        "embedding",
        1536,
        configurable=True,
        beside=[
            sa.Column("embedding_model", sa.Text),
            sa.Column("embedding_hash", sa.BigInteger),
            sa.Column("embedding_text_hash", sa.BigInteger),
        ],
    )


def downgrade() -> None:
    """Keep the values under retired names."""
    op.drop_vector_column(
        "rag_chunks", "embedding", beside=["embedding_model", "embedding_hash", "embedding_text_hash"]
    )
