"""Adopt vector_documents, or make it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, UUID

revision = "documents_0001"
down_revision = "core_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adopt a table with a unique id and the columns that tell one user's documents from another's, or make one."""
    op.adopt_table(
        "vector_documents",
        sa.Column("id", UUID, primary_key=True, server_default=sa.func.gen_random_uuid()),
        sa.Column("user_id", sa.String(255), nullable=False),
        sa.Column("collection_name", sa.String(255), nullable=False, server_default="personal_assistant"),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("metadata", JSONB, server_default=sa.text("'{}'")),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), server_default=sa.func.now()),
        sa.Column("updated_at", sa.TIMESTAMP(timezone=True), server_default=sa.func.now()),
        key=["id"],
        relies_on=["user_id", "collection_name", "text", "metadata", "updated_at"],
        types={"id": "uuid"},
    )


def downgrade() -> None:
    """Leave an adopted table; keep one that was made here and has rows."""
    op.retire_table("vector_documents")
