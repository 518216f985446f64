"""Search and compare products in SQL."""

from __future__ import annotations

from alembic import op

revision = "products_0006"
down_revision = "products_0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bodies are parsed as they are made: table and operators are fixed, whatever search path a caller has."""
    op.create_function(
        "find_similar_products",
        """
        query_embedding vector,
        similarity_threshold double precision DEFAULT 0.7,
        max_results integer DEFAULT 10,
        category_filter text DEFAULT NULL,
        brand_filter text DEFAULT NULL,
        min_price numeric DEFAULT NULL,
        max_price numeric DEFAULT NULL,
        in_stock_only boolean DEFAULT false
        """,
        """
        TABLE (
            id uuid, name text, brand text, category text, price numeric, stock integer, similarity double precision
        )
        """,
        # Without an iterative scan, a filter or more than 40 results would leave out products that match.
        """
        LANGUAGE sql STABLE PARALLEL SAFE
        SET search_path = pg_catalog, pg_temp
        SET hnsw.iterative_scan = strict_order
        BEGIN ATOMIC
            SELECT n.id, n.name, n.brand, n.category, n.price, n.stock, n.similarity
            FROM (
                SELECT p.id, p.name::text, p.brand::text, p.category::text, p.price::numeric, p.stock::integer,
                    1 - (p.embedding <=> query_embedding) AS similarity
                FROM products p
                WHERE p.active AND p.embedding IS NOT NULL
                    AND (category_filter IS NULL OR p.category::text = category_filter)
                    AND (brand_filter IS NULL OR p.brand::text = brand_filter)
                    AND (min_price IS NULL OR p.price >= min_price)
                    AND (max_price IS NULL OR p.price <= max_price)
                    AND (NOT in_stock_only OR p.stock > 0)
                ORDER BY p.embedding <=> query_embedding
                LIMIT max_results
            ) AS n
            WHERE n.similarity >= similarity_threshold
            ORDER BY n.similarity DESC;
        END
        """,
    )
    op.create_function(
        "product_similarity",
        "product1 uuid, product2 uuid",
        "double precision",
        """
        LANGUAGE sql STABLE PARALLEL SAFE
        SET search_path = pg_catalog, pg_temp
        RETURN (
            SELECT 1 - (a.embedding <=> b.embedding) FROM products a, products b
            WHERE a.id = product1 AND b.id = product2
        )
        """,
    )


def downgrade() -> None:
    """Drop them if they were made here and nothing uses them."""
    op.drop_function("product_similarity")
    op.drop_function("find_similar_products")
