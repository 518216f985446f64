"""Enable pgvector and make the tables that record backfills."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "core_0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables that every section needs; each section makes them if no other has."""
    op.create_vector_extension()
    op.adopt_table(
        "migration_run",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("vector_table", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("scope", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("source_kind", sa.Text),
        sa.Column("source", sa.Text),
        sa.Column("namespace", sa.Text),
        sa.Column("keys_from", sa.Text),
        sa.Column("key_map", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("dimension", sa.Integer),
        sa.Column("fingerprint", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("desired_state", sa.Text, nullable=False),
        sa.Column("row_limit", sa.BigInteger),
        sa.Column("replaces", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("expected_keys", sa.BigInteger),
        sa.Column("limits", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("read_units", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("plan_token", sa.Text),
        sa.Column("plan_owner", sa.Text),
        sa.Column("plan_lease_expires_at", sa.TIMESTAMP(timezone=True)),
        sa.Column("planned_keys", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("planned_at", sa.TIMESTAMP(timezone=True)),
        sa.Column("throttle_reason", sa.Text),
        sa.Column("last_error", sa.Text),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("started_at", sa.TIMESTAMP(timezone=True)),
        sa.Column("finished_at", sa.TIMESTAMP(timezone=True)),
        sa.Column("verified_at", sa.TIMESTAMP(timezone=True)),
        sa.CheckConstraint(
            "state IN ('planned', 'running', 'paused', 'finished', 'failed', 'cancelled')", name="migration_run_state"
        ),
        sa.CheckConstraint("desired_state IN ('running', 'paused', 'cancelled')", name="migration_run_desired_state"),
        # Two live runs into one column and scope would hide each other's rows; PostgreSQL itself refuses the second.
        sa.Index(
            "migration_run_live",
            "target",
            "scope",
            unique=True,
            postgresql_where=sa.text("state NOT IN ('finished', 'failed', 'cancelled')"),
        ),
    )
    op.adopt_table(
        "migration_progress",
        sa.Column("run_id", sa.BigInteger, sa.ForeignKey("migration_run.id"), primary_key=True),
        sa.Column("batch", sa.BigInteger, primary_key=True),
        sa.Column("first_key", sa.Text, nullable=False),
        sa.Column("last_key", sa.Text, nullable=False),
        sa.Column("keys", ARRAY(sa.Text), nullable=False),
        sa.Column("status", sa.Text, nullable=False, server_default="pending"),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("owner", sa.Text),
        sa.Column("lease_expires_at", sa.TIMESTAMP(timezone=True)),
        sa.Column("keys_done", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("rows_written", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("rows_replaced", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("rows_skipped", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("rows_missing", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("rows_quarantined", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("checksum", sa.BigInteger),
        sa.Column("started_at", sa.TIMESTAMP(timezone=True)),
        sa.Column("finished_at", sa.TIMESTAMP(timezone=True)),
        sa.Column("last_error", sa.Text),
        sa.CheckConstraint("status IN ('pending', 'running', 'done', 'failed')", name="migration_progress_status"),
        sa.Index(
            "migration_progress_unfinished",
            "run_id",
            "batch",
            postgresql_where=sa.text("status IN ('pending', 'running')"),
        ),
    )
    op.adopt_table(
        "migration_quarantine",
        sa.Column("run_id", sa.BigInteger, sa.ForeignKey("migration_run.id"), primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("reason", sa.Text, primary_key=True),
        sa.Column("batch", sa.BigInteger, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="1"),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("resolved_at", sa.TIMESTAMP(timezone=True)),
    )
    op.adopt_table(
        "migration_limit",
        sa.Column("run_id", sa.BigInteger, sa.ForeignKey("migration_run.id"), primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("rate", sa.Double, nullable=False),
        sa.Column("available", sa.Double, nullable=False, server_default="0"),
        sa.Column("filled_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("lowered_at", sa.TIMESTAMP(timezone=True)),
        sa.Column("blocked_until", sa.TIMESTAMP(timezone=True)),
    )
    op.adopt_table(
        "migration_insert",
        sa.Column("run_id", sa.BigInteger, sa.ForeignKey("migration_run.id"), primary_key=True),
        sa.Column("key", ARRAY(sa.Text), primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
    )
    op.adopt_table(
        "migration_text",
        sa.Column("run_id", sa.BigInteger, sa.ForeignKey("migration_run.id"), primary_key=True),
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("owner", sa.Text),
        sa.Column("lease_expires_at", sa.TIMESTAMP(timezone=True)),
        sa.Column("vector", sa.LargeBinary),
    )
    op.adopt_table(
        "migration_event",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("run_id", sa.BigInteger, sa.ForeignKey("migration_run.id"), nullable=False),
        sa.Column("at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("detail", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Index("migration_event_run", "run_id", "id"),
    )
    op.adopt_table(
        "vector_outbox",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("scope", JSONB, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("operation", sa.Text, nullable=False),
        sa.Column("vector", sa.LargeBinary),
        sa.Column("text", sa.Text),
        sa.Column("metadata", JSONB),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("last_error", sa.Text),
        sa.Column("claimed_by", sa.Text),
        sa.Column("claimed_until", sa.TIMESTAMP(timezone=True)),
        sa.Column("cleared_at", sa.TIMESTAMP(timezone=True)),
        sa.CheckConstraint("operation IN ('upsert', 'delete')", name="vector_outbox_operation"),
        sa.Index("vector_outbox_key", "target", "key", "id"),
        sa.Index("vector_outbox_pending", "id", postgresql_where=sa.text("cleared_at IS NULL")),
        sa.Index("vector_outbox_cleared", "cleared_at", postgresql_where=sa.text("cleared_at IS NOT NULL")),
    )
    op.adopt_table(
        "vector_row_mark",
        sa.Column("target", sa.Text, primary_key=True),
        sa.Column("scope", JSONB, primary_key=True),
        sa.Column("key", ARRAY(sa.Text), primary_key=True),
        sa.Column("mark", sa.Text, nullable=False),
        sa.Column("written_by", sa.Text, nullable=False),
        sa.Column("row_at", sa.Text, nullable=False),
        sa.Column("file_node", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("digest_without", ARRAY(sa.Text), nullable=False),
        sa.Column("marked_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.CheckConstraint("mark IN ('inserted', 'emptied')", name="vector_row_mark_mark"),
    )
    op.adopt_table(
        "shadow_query",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
        sa.Column("primary_store", sa.Text, nullable=False),
        sa.Column("secondary_store", sa.Text, nullable=False),
        sa.Column("query", ARRAY(sa.REAL), nullable=False),
        sa.Column("top_k", sa.Integer, nullable=False),
        sa.Column("filter", JSONB),
        sa.Column("hits", sa.Integer, nullable=False),
        sa.Column("primary_ms", sa.Double, nullable=False),
        sa.Column("secondary_ms", sa.Double),
        sa.Column("overlap", sa.Double),
        sa.Column("rank_agreement", sa.Double),
        sa.Column("score_drift", sa.Double),
        sa.Column("missing", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("error", sa.Text),
        sa.Column("dropped", sa.BigInteger, nullable=False, server_default="0"),
        sa.Index("shadow_query_at", "at"),
    )
    op.adopt_table(
        "vector_forgotten",
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.text("clock_timestamp()")),
        sa.Column("by_role", sa.Text, nullable=False, server_default=sa.text("session_user")),
        sa.Column("asked_for", sa.Text, nullable=False),
        sa.Column("removed", JSONB, nullable=False),
        sa.CheckConstraint("asked_for IN ('key', 'user')", name="vector_forgotten_asked_for"),
    )
    op.adopt_table(
        "vector_setting",
        sa.Column("target", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Integer, nullable=False),
        sa.Column("set_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.CheckConstraint("name IN ('ef_search', 'probes', 'oversampling')", name="vector_setting_name"),
    )
    op.adopt_table(
        "embedding_models",
        sa.Column("id", sa.Integer, sa.Identity(), primary_key=True),
        sa.Column("model_name", sa.Text, nullable=False, unique=True),
        sa.Column("dimension", sa.Integer, nullable=False),
        sa.Column("provider", sa.Text),
        sa.Column("parameters", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.CheckConstraint("dimension BETWEEN 1 AND 16000", name="embedding_models_dimension"),
    )
    op.adopt_table(
        "model_column",
        sa.Column("target", sa.Text, primary_key=True),
        sa.Column("model_id", sa.Integer, sa.ForeignKey("embedding_models.id"), primary_key=True),
        sa.Column("column_name", sa.Text, nullable=False),
        sa.Column("written", sa.Boolean, nullable=False, server_default=sa.true()),
        sa.Column("searched", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("written_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("switched_at", sa.TIMESTAMP(timezone=True)),
        sa.CheckConstraint("written OR NOT searched", name="model_column_searched_is_written"),
        sa.Index("model_column_searched", "target", unique=True, postgresql_where=sa.text("searched")),
    )
    op.adopt_table(
        "model_process",
        sa.Column("process", sa.UUID, primary_key=True),
        sa.Column("target", sa.Text, primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("loaded", ARRAY(sa.Text), nullable=False),
        sa.Column("failed", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("searched", sa.Text),
        sa.Column("missed", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("seen_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
    )
    op.adopt_table(
        "migration_index",
        sa.Column("target", sa.Text, primary_key=True),
        sa.Column("index_name", sa.Text, primary_key=True),
        sa.Column("definition", sa.Text, nullable=False),
        sa.Column("comment", sa.Text),
        sa.Column("deferred_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("built_at", sa.TIMESTAMP(timezone=True)),
    )


def downgrade() -> None:
    """Leave the tables while another section needs them; keep the record of runs that happened."""
    for table in (
        "model_process",
        "model_column",
        "embedding_models",
        "migration_index",
        "vector_setting",
        "vector_forgotten",
        "shadow_query",
        "vector_row_mark",
        "vector_outbox",
        "migration_event",
        "migration_text",
        "migration_insert",
        "migration_limit",
        "migration_quarantine",
        "migration_progress",
        "migration_run",
    ):
        op.retire_table(table, shared=True)
    op.drop_vector_extension(shared=True)
