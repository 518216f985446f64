"""Add products.embedding, and what is kept of where it came from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "products_0002"
down_revision = "products_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, NULL in every row, or take back what a downgrade kept."""
    op.add_vector_column("products", "embedding", 768, configurable=True)
    op.add_kept_column("products", "last_embedding_update", sa.TIMESTAMP(timezone=True))
    op.add_kept_column("products", "embedding_model", sa.Text())
    op.add_kept_column("products", "embedding_version", sa.Integer())
    op.add_kept_column("products", "embedding_hash", sa.BigInteger())
    op.add_kept_column("products", "embedding_text_hash", sa.BigInteger())


def downgrade() -> None:
    """Keep the values under retired names."""
    # Of an upgrade that failed at the next revision.
    op.drop_plain_index("idx_products_stale_embeddings")
    op.drop_plain_index("idx_products_embedding_update")
    op.drop_plain_index("idx_products_category_brand_stock")
    op.drop_kept_column("products", "embedding_text_hash")
    op.drop_kept_column("products", "embedding_hash")
    op.drop_kept_column("products", "embedding_version")
    op.drop_kept_column("products", "embedding_model")
    op.drop_kept_column("products", "last_embedding_update")
    op.drop_kept_column("products", "embedding")
