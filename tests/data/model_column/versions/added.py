"""Another model, in a column beside."""

from alembic import op

revision = "added"
down_revision = "own"


def upgrade() -> None:
    """Add it."""
    op.add_model_column("rag_chunks", "embedding_2", "small", 2, provider="wordllama", index="idx_small")


def downgrade() -> None:
    """Take it out of use."""
    op.drop_model_column("rag_chunks", "embedding_2", "small", index="idx_small")
