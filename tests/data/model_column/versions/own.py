"""The model that the table's vectors are of."""

from alembic import op

revision = "own"
down_revision = None


def upgrade() -> None:
    """Register it."""
    op.add_model_column("rag_chunks", "embedding", "large", 4)


def downgrade() -> None:
    """Forget it."""
    op.drop_model_column("rag_chunks", "embedding", "large")
