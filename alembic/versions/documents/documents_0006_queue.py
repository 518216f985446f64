"""Queue the backfill of vector_documents.embedding."""

from __future__ import annotations

from alembic import op

revision = "documents_0006"
down_revision = "documents_0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Record that the column waits to be filled; nothing starts and no source is asked."""
    op.queue_backfill("vector_documents", "embedding")


def downgrade() -> None:
    """Cancel unfinished runs into the column and wait for their workers."""
    op.cancel_backfill("vector_documents", "embedding")
