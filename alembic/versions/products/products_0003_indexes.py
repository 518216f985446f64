"""Index products by what they are filtered by, and by when they were embedded."""

from __future__ import annotations

from alembic import op

revision = "products_0003"
down_revision = "products_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build the indexes concurrently."""
    # Of inactive products too: a search asks for what is not inactive, and PostgreSQL does not conclude "active".
    op.create_plain_index("idx_products_category_brand_stock", "products", ["category", "brand", "stock"])
    op.create_plain_index(
        "idx_products_embedding_update", "products", ["last_embedding_update"], where="embedding IS NOT NULL"
    )
    # The two moments are not compared in the predicate: of a timestamp without time zone that is not immutable.
    op.create_plain_index(
        "idx_products_stale_embeddings", "products", ["updated_at", "last_embedding_update"], where="active"
    )


def downgrade() -> None:
    """Drop the indexes, if they were made here."""
    op.drop_plain_index("idx_products_stale_embeddings")
    op.drop_plain_index("idx_products_embedding_update")
    op.drop_plain_index("idx_products_category_brand_stock")
