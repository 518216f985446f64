"""The tables as the revisions leave them, for ``alembic check`` and autogenerate to compare a database with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.marks import MADE
from amprenta_vectors.schema.section_tables import ADOPTED, SECTION_TABLES, add_section_table


def comparison(connection: Connection, section: str = "alembic") -> dict[str, Any]:
    """What ``context.configure`` needs to compare what ``section`` makes, and nothing else, with the database."""
    metadata = sa.MetaData()
    _add_engine(metadata)
    if section in SECTION_TABLES:
        add_section_table(metadata, connection, SECTION_TABLES[section])

    schemas = {table.schema for table in metadata.tables.values()}

    def is_named(name: str | None, type_: str, parents: Mapping[str, str | None]) -> bool:
        if type_ == "schema":
            return name in schemas
        table = str(parents.get("schema_qualified_table_name"))
        if type_ == "foreign_key_constraint":
            # Where none is ours, none is looked at: Alembic 1.18 fails on one that leads to a table it does not know.
            return bool(metadata.tables[table].foreign_keys)
        return type_ != "table" or table in metadata.tables

    return {
        "target_metadata": metadata,
        "include_schemas": schemas != {None},
        "include_name": is_named,
        "include_object": _is_ours,
    }


def _is_ours(item: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """Whatever the database has beyond our tables, columns and indexes belongs to somebody else."""
    return not (reflected and compare_to is None) and item.info != ADOPTED


def _add_engine(metadata: sa.MetaData) -> None:
    moment = sa.TIMESTAMP(timezone=True)

    def count(name: str) -> sa.Column[int]:
        return sa.Column(name, sa.BigInteger, nullable=False, server_default="0")

    sa.Table(
        "migration_run",
        metadata,
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("vector_table", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("scope", JSONB, nullable=False, server_default=sa.text("'{}'")),
        *(sa.Column(name, sa.Text) for name in ("source_kind", "source", "keys_from", "key_map", "model")),
        sa.Column("dimension", sa.Integer),
        sa.Column("fingerprint", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("desired_state", sa.Text, nullable=False),
        sa.Column("row_limit", sa.BigInteger),
        sa.Column("replaces", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("expected_keys", sa.BigInteger),
        sa.Column("limits", JSONB, nullable=False, server_default=sa.text("'{}'")),
        count("read_units"),
        *(sa.Column(name, sa.Text) for name in ("plan_token", "plan_owner")),
        sa.Column("plan_lease_expires_at", moment),
        count("planned_keys"),
        sa.Column("planned_at", moment),
        *(sa.Column(name, sa.Text) for name in ("throttle_reason", "last_error")),
        sa.Column("created_at", moment, nullable=False, server_default=sa.func.now()),
        *(sa.Column(name, moment) for name in ("started_at", "finished_at")),
        sa.Index("migration_run_live", "target", "scope", unique=True),
        comment=MADE,
    )
    run_id = sa.ForeignKey("migration_run.id")
    sa.Table(
        "migration_progress",
        metadata,
        sa.Column("run_id", sa.BigInteger, run_id, primary_key=True),
        sa.Column("batch", sa.BigInteger, primary_key=True),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("first_key", "last_key")),
        sa.Column("keys", ARRAY(sa.Text), nullable=False),
        sa.Column("status", sa.Text, nullable=False, server_default="pending"),
        sa.Column("attempt", sa.Integer, nullable=False, server_default="0"),
        sa.Column("owner", sa.Text),
        sa.Column("lease_expires_at", moment),
        count("keys_done"),
        *(count(f"rows_{what}") for what in ("written", "replaced", "skipped", "missing", "quarantined")),
        sa.Column("checksum", sa.BigInteger),
        *(sa.Column(name, moment) for name in ("started_at", "finished_at")),
        sa.Column("last_error", sa.Text),
        sa.Index("migration_progress_unfinished", "run_id", "batch"),
        comment=MADE,
    )
    sa.Table(
        "migration_error",
        metadata,
        sa.Column("run_id", sa.BigInteger, run_id._copy(), primary_key=True),
        *(sa.Column(name, sa.Text, primary_key=True) for name in ("key", "reason")),
        sa.Column("batch", sa.BigInteger, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="1"),
        sa.Column("created_at", moment, nullable=False, server_default=sa.func.now()),
        sa.Column("resolved_at", moment),
        comment=MADE,
    )
    sa.Table(
        "migration_quota",
        metadata,
        sa.Column("run_id", sa.BigInteger, run_id._copy(), primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("rate", sa.Double, nullable=False),
        sa.Column("available", sa.Double, nullable=False, server_default="0"),
        sa.Column("filled_at", moment, nullable=False, server_default=sa.func.now()),
        *(sa.Column(name, moment) for name in ("lowered_at", "blocked_until")),
        comment=MADE,
    )
    sa.Table(
        "migration_insert",
        metadata,
        sa.Column("run_id", sa.BigInteger, run_id._copy(), primary_key=True),
        sa.Column("key", ARRAY(sa.Text), primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        comment=MADE,
    )
    sa.Table(
        "migration_event",
        metadata,
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("run_id", sa.BigInteger, run_id._copy(), nullable=False),
        sa.Column("at", moment, nullable=False, server_default=sa.text("clock_timestamp()")),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("detail", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Index("migration_event_run", "run_id", "id"),
        comment=MADE,
    )
    sa.Table(
        "vector_outbox",
        metadata,
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("scope", JSONB, nullable=False),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("key", "operation")),
        sa.Column("vector", sa.LargeBinary),
        sa.Column("text", sa.Text),
        sa.Column("metadata", JSONB),
        sa.Column("created_at", moment, nullable=False, server_default=sa.func.now()),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        *(sa.Column(name, sa.Text) for name in ("last_error", "claimed_by")),
        *(sa.Column(name, moment) for name in ("claimed_until", "cleared_at")),
        sa.Index("vector_outbox_key", "target", "key", "id"),
        sa.Index("vector_outbox_pending", "id"),
        sa.Index("vector_outbox_cleared", "cleared_at"),
        comment=MADE,
    )
    sa.Table(
        "shadow_query",
        metadata,
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("at", moment, nullable=False, server_default=sa.text("clock_timestamp()")),
        *(sa.Column(name, sa.Text, nullable=False) for name in ("primary_store", "secondary_store")),
        sa.Column("query", ARRAY(sa.REAL), nullable=False),
        sa.Column("top_k", sa.Integer, nullable=False),
        sa.Column("filter", JSONB),
        sa.Column("hits", sa.Integer, nullable=False),
        sa.Column("primary_ms", sa.Double, nullable=False),
        *(sa.Column(name, sa.Double) for name in ("secondary_ms", "overlap", "rank_agreement", "score_drift")),
        sa.Column("missing", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("error", sa.Text),
        count("dropped"),
        sa.Index("shadow_query_at", "at"),
        comment=MADE,
    )
    sa.Table(
        "vector_setting",
        metadata,
        *(sa.Column(name, sa.Text, primary_key=True) for name in ("target", "name")),
        sa.Column("value", sa.Integer, nullable=False),
        sa.Column("set_at", moment, nullable=False, server_default=sa.func.now()),
        comment=MADE,
    )
    sa.Table(
        "migration_index",
        metadata,
        *(sa.Column(name, sa.Text, primary_key=True) for name in ("target", "index_name")),
        sa.Column("definition", sa.Text, nullable=False),
        sa.Column("comment", sa.Text),
        sa.Column("deferred_at", moment, nullable=False, server_default=sa.func.now()),
        sa.Column("built_at", moment),
        comment=MADE,
    )
