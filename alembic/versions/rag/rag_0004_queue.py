"""Queue the backfill of rag_chunks.embedding."""

from __future__ import annotations

from alembic import op

revision = "rag_0004"
down_revision = "rag_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Record that the column waits to be filled; nothing starts and no source is asked."""
    op.queue_backfill("rag_chunks", "embedding")


def downgrade() -> None:
    """Cancel unfinished runs into the column and wait for their workers."""
    op.cancel_backfill("rag_chunks", "embedding")
