"""The operations on ordinary indexes as text for psql; what `offline` says of the others holds for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic.operations import Operations

from amprenta_vectors.ddl.catalogue import MADE, building_name, qualified
from amprenta_vectors.ddl.offline_concurrent import build_concurrently, drop_unfinished
from amprenta_vectors.ddl.psql import comment_of, ddl, emit_unlimited, fill, literal, regclass, say

if TYPE_CHECKING:
    from amprenta_vectors.ddl.plain_index import CreatePlainIndexOp, DropPlainIndexOp


def create_plain_index(operations: Operations, op: CreatePlainIndexOp) -> None:
    """Build the index unless it is there or is being built; repair what a killed build left."""
    statement = ddl(
        operations,
        lambda alembic: alembic.create_index(
            building_name(op.name),
            op.table,
            list(op.columns),
            unique=op.unique,
            schema=op.schema,
            postgresql_concurrently=True,
            postgresql_where=None if op.where is None else sa.literal_column(op.where),
        ),
    )
    build_concurrently(
        operations,
        op.name,
        op.schema,
        use_another=_use_another(op) if op.unique and op.where is None else "",
        statement=literal(statement.rstrip(";")),
        variables={},
    )


def _use_another(op: CreatePlainIndexOp) -> str:
    """Build nothing where another unique index is on the same columns, as `serves_already` says."""
    return fill(
        """
        IF EXISTS (
            SELECT FROM pg_index i
            CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k (attnum, position)
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
            WHERE i.indrelid = {relation} AND i.indisunique AND i.indisvalid AND i.indimmediate
                AND i.indpred IS NULL AND i.indexprs IS NULL AND k.position <= i.indnkeyatts
                AND i.indexrelid IS DISTINCT FROM {unfinished}
            GROUP BY i.indexrelid
            HAVING array_agg(a.attname::text) @> {columns} AND array_agg(a.attname::text) <@ {columns}
        ) THEN
            {say}
            RETURN;
        END IF;
        """,
        relation=regclass(op.schema, op.table),
        unfinished=regclass(op.schema, building_name(op.name)),
        columns=literal(list(op.columns)),
        say=say(literal(f"{op.name}: another unique index does the same and is used instead; a downgrade leaves it")),
    )


def drop_plain_index(operations: Operations, op: DropPlainIndexOp) -> None:
    """Drop the index if it was made here."""
    drop = literal(f"DROP INDEX CONCURRENTLY {qualified(op.name, op.schema)}")
    ours = f"{comment_of(regclass(op.schema, op.name))} = {literal(MADE)}"
    emit_unlimited(operations, fill("SELECT {drop} WHERE {ours} \\gexec", drop=drop, ours=ours))
    drop_unfinished(operations, op.name, op.schema)
