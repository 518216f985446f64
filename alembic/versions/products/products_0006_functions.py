"""Search and compare products in SQL."""

from __future__ import annotations

from alembic import op

revision = "products_0006"
down_revision = "products_0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make both functions. Bodies parsed now fix table and operators, whatever search path a caller has."""
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
        # An iterative scan of the index gives up where what matches is far from the question; what it cut short is
        # asked again by a distance that no index is ordered by. Of a zero vector it is NaN, which is above all.
        """
        LANGUAGE sql STABLE PARALLEL SAFE
        SET search_path = pg_catalog, pg_temp
        SET hnsw.iterative_scan = strict_order
        BEGIN ATOMIC
            WITH matching AS NOT MATERIALIZED (
                SELECT p.id, p.name::text, p.brand::text, p.category::text, p.price::numeric, p.stock::integer,
                    p.embedding <=> query_embedding AS distance
                FROM products p
                WHERE p.active AND p.embedding IS NOT NULL
                    AND (category_filter IS NULL OR p.category::text = category_filter)
                    AND (brand_filter IS NULL OR p.brand::text = brand_filter)
                    AND (min_price IS NULL OR p.price >= min_price)
                    AND (max_price IS NULL OR p.price <= max_price)
                    AND (NOT in_stock_only OR p.stock > 0)
            ), by_index AS MATERIALIZED (
                SELECT * FROM matching m ORDER BY m.distance LIMIT max_results
            ), enough AS MATERIALIZED (
                SELECT count(*) >= max_results AS found FROM by_index
            ), nearest AS (
                SELECT * FROM by_index WHERE (SELECT e.found FROM enough e)
                UNION ALL (
                    SELECT * FROM matching m WHERE (SELECT e.found FROM enough e) IS NOT TRUE
                    ORDER BY m.distance + 0 LIMIT max_results
                )
            )
            SELECT n.id, n.name, n.brand, n.category, n.price, n.stock, 1 - n.distance AS similarity
            FROM nearest n
            WHERE n.distance <> 'NaN' AND 1 - n.distance >= similarity_threshold
            ORDER BY n.distance;
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
    """Drop both functions if they were made here and nothing uses them."""
    op.drop_function("product_similarity")
    op.drop_function("find_similar_products")
