"""Build the HNSW index on rag_chunks.embedding."""

from __future__ import annotations

from alembic import op

revision = "rag_0003"
down_revision = "rag_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build the index concurrently; on a column without values a backfill defers it and builds it after the load."""
    op.create_vector_index(
        "idx_rag_chunks_embedding",
        "rag_chunks",
        "embedding",
        options={"m": 16, "ef_construction": 64},
        configurable=True,
    )


def downgrade() -> None:
    """Drop the index, if it was made here."""
    op.drop_vector_index("idx_rag_chunks_embedding")
