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
    op.add_vector_column(
        "products",
        "embedding",
        768,
        configurable=True,
        beside=[
            sa.Column("last_embedding_update", sa.TIMESTAMP(timezone=True)),
            sa.Column("embedding_model", sa.Text),
            sa.Column("embedding_version", sa.Integer),
            sa.Column("embedding_hash", sa.BigInteger),
            sa.Column("embedding_text_hash", sa.BigInteger),
        ],
    )


def downgrade() -> None:
    """Keep the values under retired names."""
    op.drop_vector_column(
        "products",
        "embedding",
        beside=[
            "last_embedding_update",
            "embedding_model",
            "embedding_version",
            "embedding_hash",
            "embedding_text_hash",
        ],
    )
