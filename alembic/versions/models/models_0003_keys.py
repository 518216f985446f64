"""Index chunk_embeddings uniquely by chunk and model."""

from __future__ import annotations

from alembic import op

revision = "models_0003"
down_revision = "models_0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Build the index concurrently; by it a row is found when it is written again."""
    op.create_plain_index(
        "uq_chunk_embeddings_chunk_id_model_id", "chunk_embeddings", ["chunk_id", "model_id"], unique=True
    )


def downgrade() -> None:
    """Drop the index, if it was made here."""
    op.drop_plain_index("uq_chunk_embeddings_chunk_id_model_id")
