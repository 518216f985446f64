"""Queue the backfill of products.embedding."""

from __future__ import annotations

from alembic import op

revision = "products_0008"
down_revision = "products_0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Record that the column waits to be filled; nothing starts and no source is asked."""
    op.queue_backfill("products", "embedding")


def downgrade() -> None:
    """Cancel unfinished runs into the column and wait for their workers."""
    op.cancel_backfill("products", "embedding")
