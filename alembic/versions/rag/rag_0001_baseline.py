"""Adopt rag_chunks, or make it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "rag_0001"
down_revision = "core_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adopt a table with a unique index on chunk_id, with namespace if it has that column, or make one."""
    op.adopt_table(
        "rag_chunks",
        sa.Column("namespace", sa.Text, nullable=False, server_default=""),
        sa.Column("chunk_id", sa.Text, nullable=False),
        sa.Column("content", sa.Text),
        sa.Column("metadata", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("updated_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("namespace", "chunk_id"),
        key=["chunk_id"],
        scope=["namespace"],
    )


def downgrade() -> None:
    """Leave an adopted table; keep one that was made here and has rows."""
    op.retire_table("rag_chunks")
