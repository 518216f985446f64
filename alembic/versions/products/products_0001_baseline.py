"""Adopt products, or make it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import UUID

revision = "products_0001"
down_revision = "core_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adopt a table with a unique id and what products are embedded from, filtered and counted by, or make one."""
    op.adopt_table(
        "products",
        sa.Column("id", UUID, primary_key=True, server_default=sa.func.gen_random_uuid()),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("brand", sa.Text),
        sa.Column("category", sa.Text),
        sa.Column("description", sa.Text),
        sa.Column("price", sa.Numeric(12, 2)),
        sa.Column("stock", sa.Integer, nullable=False, server_default="0"),
        sa.Column("active", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("updated_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        key=["id"],
        relies_on=["name", "brand", "category", "description", "price", "stock", "active", "updated_at"],
        types={"id": "uuid", "active": "boolean"},
    )


def downgrade() -> None:
    """Leave an adopted table; keep one that was made here and has rows."""
    op.retire_table("products")
