"""Index vector_documents by user and collection, and uniquely with the id."""

from __future__ import annotations

from alembic import op

revision = "documents_0003"
down_revision = "documents_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build both indexes concurrently; by the unique one a row is found when it is written again."""
    op.create_plain_index("idx_vector_documents_user_collection", "vector_documents", ["user_id", "collection_name"])
    op.create_plain_index(
        "uq_vector_documents_user_collection_id", "vector_documents", ["user_id", "collection_name", "id"], unique=True
    )


def downgrade() -> None:
    """Drop both indexes, if they were made here."""
    op.drop_plain_index("uq_vector_documents_user_collection_id")
    op.drop_plain_index("idx_vector_documents_user_collection")
