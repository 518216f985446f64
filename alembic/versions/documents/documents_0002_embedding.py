"""Add vector_documents.embedding, and the hashes by which the engine knows again what it wrote."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "documents_0002"
down_revision = "documents_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, or take back what a downgrade kept; rows that there are have no embedding yet."""
    op.add_vector_column("vector_documents", "embedding", 768, configurable=True, nullable=False)
    op.add_kept_column("vector_documents", "embedding_hash", sa.BigInteger())
    op.add_kept_column("vector_documents", "embedding_text_hash", sa.BigInteger())


def downgrade() -> None:
    """Keep the values under retired names."""
    # Of an upgrade that failed at the next revision.
    op.drop_plain_index("uq_vector_documents_user_collection_id")
    op.drop_plain_index("idx_vector_documents_user_collection")
    op.drop_kept_column("vector_documents", "embedding_text_hash")
    op.drop_kept_column("vector_documents", "embedding_hash")
    op.drop_kept_column("vector_documents", "embedding")
