"""Date every change of a row of vector_documents."""

from __future__ import annotations

from alembic import op

revision = "documents_0005"
down_revision = "documents_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make a function and a trigger; an application's own of that name are used as they are."""
    op.create_function(
        "update_updated_at_column",
        "",
        "trigger",
        """
        LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
        AS 'BEGIN NEW.updated_at = now(); RETURN NEW; END'
        """,
    )
    op.create_trigger(
        "update_vector_documents_updated_at",
        "vector_documents",
        "BEFORE UPDATE",
        "FOR EACH ROW EXECUTE FUNCTION update_updated_at_column()",
    )


def downgrade() -> None:
    """Drop both if they were made here; the function also only where no other trigger uses it."""
    op.drop_trigger("update_vector_documents_updated_at", "vector_documents")
    op.drop_function("update_updated_at_column")
