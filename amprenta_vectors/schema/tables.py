"""The tables as the revisions leave them, for ``alembic check`` and autogenerate to compare a database with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl import VectorType
from amprenta_vectors.ddl.catalogue import MADE, column_types, comment_of, table_exists
from amprenta_vectors.ddl.vector_index import VECTOR_INDEX_LIMIT
from amprenta_vectors.schema.registry import RAG_CHUNKS

_ADOPTED = {"adopted": True}
"""The ``info`` of a column that was there before: its owner's affair."""

_SERVED = sa.text("""
    SELECT 1 FROM pg_index i
    JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_am am ON am.oid = c.relam AND am.amname IN ('hnsw', 'ivfflat')
    JOIN pg_opclass o ON o.oid = i.indclass[0] AND o.opcname = :opclass
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname = :column
    JOIN pg_depend d ON d.objid = i.indexrelid AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum
    WHERE i.indrelid = to_regclass(:table) AND i.indisvalid AND i.indpred IS NULL
""")


def comparison(connection: Connection) -> dict[str, Any]:
    """What ``context.configure`` needs to compare what is ours, and nothing else, with what the revisions make."""
    metadata = sa.MetaData()
    _add_engine(metadata)
    _add_rag_chunks(metadata, connection)

    def is_named(name: str | None, type_: str, parents: Mapping[str, str | None]) -> bool:
        if type_ == "foreign_key_constraint":
            # Where none is ours, none is looked at: Alembic 1.18 fails on one that leads to a table it does not know.
            return bool(metadata.tables[str(parents["table_name"])].foreign_keys)
        return type_ != "table" or name in metadata.tables

    return {
        "target_metadata": metadata,
        "include_name": is_named,
        "include_object": _is_ours,
    }


def _is_ours(item: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """Whatever the database has beyond our tables, columns and indexes belongs to somebody else."""
    return not (reflected and compare_to is None) and "adopted" not in item.info


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
        *(sa.Column(name, sa.BigInteger) for name in ("row_limit", "expected_keys")),
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
        *(count(f"rows_{what}") for what in ("written", "skipped", "missing", "quarantined")),
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


def _add_rag_chunks(metadata: sa.MetaData, connection: Connection) -> None:
    """All of a table that was made here; of an adopted one, the columns that were added to it."""
    name, types = RAG_CHUNKS.table, column_types(connection, RAG_CHUNKS.table)
    made = not table_exists(connection, name) or comment_of(connection, name) == MADE
    moment = sa.TIMESTAMP(timezone=True)
    own = (
        sa.Column("namespace", sa.Text, primary_key=True, server_default=""),
        sa.Column("chunk_id", sa.Text, primary_key=True),
        sa.Column("content", sa.Text),
        sa.Column("metadata", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("created_at", moment, nullable=False, server_default=sa.func.now()),
        sa.Column("updated_at", moment, nullable=False, server_default=sa.func.now()),
    )
    vector = VectorType.parse(types.get("embedding", "")) or VectorType("vector", RAG_CHUNKS.dimension)

    def added(column: str, type_: sa.types.TypeEngine[Any]) -> sa.Column[Any]:
        there_before = column in types and comment_of(connection, name, column) != MADE
        return sa.Column(column, type_, comment=MADE, info=_ADOPTED if there_before else None)

    table = sa.Table(
        name,
        metadata,
        *(own if made else ()),
        added("embedding", vector),
        added("embedding_model", sa.Text()),
        comment=MADE if made else comment_of(connection, name) or None,
    )
    # Which index serves is the operator's choice, as the dimension is; that there is one is ours.
    opclass = f"{_indexed_as(vector).storage}_cosine_ops"
    if not connection.execute(_SERVED, {"table": name, "column": "embedding", "opclass": opclass}).first():
        key = table.c.embedding
        sa.Index(
            "idx_rag_chunks_embedding",
            key if _indexed_as(vector) is vector else sa.cast(key, _indexed_as(vector)).label("embedding"),
            postgresql_using="hnsw",
            postgresql_with={"m": 16, "ef_construction": 64},
            postgresql_ops={"embedding": opclass},
        )


def _indexed_as(vector: VectorType) -> VectorType:
    """The type whose values the index holds: past 2000 dimensions, those of a cast."""
    return VectorType("halfvec", vector.dimension) if vector.dimension > VECTOR_INDEX_LIMIT else vector
