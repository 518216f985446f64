"""Give chunk_embeddings the model of each row."""

from __future__ import annotations

from alembic import op

revision = "models_0002"
down_revision = "models_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add model_id; where the rows have an embedding already, register its model, which is their default."""
    op.add_model_scope("chunk_embeddings")


def downgrade() -> None:
    """Keep the column under a retired name, with its default."""
    op.drop_model_scope("chunk_embeddings")
