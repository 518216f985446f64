"""Build the HNSW index on products.embedding."""

from __future__ import annotations

from alembic import op

revision = "products_0004"
down_revision = "products_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build the index concurrently; on a column without values a backfill defers it and builds it after the load."""
    op.create_vector_index(
        "idx_products_embedding_hnsw",
        "products",
        "embedding",
        options={"m": 16, "ef_construction": 64},
        configurable=True,
    )


def downgrade() -> None:
    """Drop the index, if it was made here."""
    op.drop_vector_index("idx_products_embedding_hnsw")
