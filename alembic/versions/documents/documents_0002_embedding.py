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
    op.add_vector_column(
        "vector_documents",
        "embedding",
        768,
        configurable=True,
        nullable=False,
        beside=[sa.Column("embedding_hash", sa.BigInteger), sa.Column("embedding_text_hash", sa.BigInteger)],
    )


def downgrade() -> None:
    """Keep the values under retired names."""
    op.drop_vector_column("vector_documents", "embedding", beside=["embedding_hash", "embedding_text_hash"])
