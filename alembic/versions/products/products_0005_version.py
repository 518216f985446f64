"""Count and date the changes of a product's embedding."""

from __future__ import annotations

from alembic import op

revision = "products_0005"
down_revision = "products_0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make a trigger that moves version and date only if the embedding differs."""
    op.create_function(
        "update_embedding_version",
        "",
        "trigger",
        # Compared by their bytes: IS DISTINCT FROM would need vector's operators on the search path of whoever writes.
        """
        LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS '
        BEGIN
            IF TG_OP = ''INSERT'' AND NEW.embedding IS NULL
                OR TG_OP = ''UPDATE'' AND record_image_eq(ROW(NEW.embedding), ROW(OLD.embedding))
            THEN
                RETURN NEW;
            END IF;
            NEW.embedding_version := coalesce(OLD.embedding_version, 0) + 1;
            NEW.last_embedding_update := now();
            RETURN NEW;
        END'
        """,
    )
    op.create_trigger(
        "trigger_update_embedding_version",
        "products",
        "BEFORE INSERT OR UPDATE",
        "FOR EACH ROW EXECUTE FUNCTION update_embedding_version()",
    )


def downgrade() -> None:
    """Drop both if they were made here; the function also only where no other trigger uses it."""
    op.drop_trigger("trigger_update_embedding_version", "products")
    op.drop_function("update_embedding_version")
