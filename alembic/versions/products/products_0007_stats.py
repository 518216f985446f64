"""Keep count of the products that have an embedding."""

from __future__ import annotations

from alembic import op

revision = "products_0007"
down_revision = "products_0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Count active products by category: how many have an embedding, and of how many it is older than the product."""
    op.create_materialized_view(
        "product_embedding_stats",
        """
        SELECT coalesce(category::text, '') AS category,
            count(*) AS total_products,
            count(embedding) AS products_with_embeddings,
            count(*) - count(embedding) AS missing_embeddings,
            count(*) FILTER (WHERE embedding IS NOT NULL AND last_embedding_update < updated_at) AS stale_embeddings,
            round(100.0 * count(embedding) / count(*), 2) AS coverage_percent,
            max(last_embedding_update) AS last_embedding_update
        FROM products WHERE active GROUP BY 1
        """,
        ["category"],
    )


def downgrade() -> None:
    """Drop the view if it was made here and nothing uses it."""
    op.drop_materialized_view("product_embedding_stats")
