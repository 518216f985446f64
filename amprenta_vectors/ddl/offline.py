"""The operations as text for psql, but for those on columns.

Each does to a database in any state what its online form does there, and says the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic.operations import Operations

from amprenta_vectors.ddl.catalogue import MADE, qualified, retired_name
from amprenta_vectors.ddl.psql import (
    comment_of,
    comment_on,
    ddl,
    drop_unless_used,
    emit_do,
    fill,
    is_retired,
    keep_unless_purging,
    literal,
    not_dropped,
    refuse,
    regclass,
    retired_at,
    say,
    short_lock,
    sql,
    type_of,
)

if TYPE_CHECKING:
    from amprenta_vectors.ddl.extension import DropVectorExtensionOp
    from amprenta_vectors.ddl.table import AdoptTableOp, RetireTableOp


def create_vector_extension(operations: Operations) -> None:
    """Enable pgvector where it is not yet."""
    body = fill(
        """
        IF EXISTS (SELECT FROM pg_extension WHERE extname = 'vector') THEN
            RETURN;
        END IF;
        BEGIN
            CREATE EXTENSION vector;
        EXCEPTION
            WHEN feature_not_supported OR undefined_file THEN
                {not_available}
            WHEN insufficient_privilege THEN
                {not_allowed}
        END;
        COMMENT ON EXTENSION vector IS {made};
        """,
        not_available=refuse(
            literal('extension "vector" is not available on this server'),
            literal(
                "install pgvector for this server (Debian: apt-get install postgresql-NN-pgvector; Docker: "
                "pgvector/pgvector; Amazon RDS: PostgreSQL 15.2 or newer carries it), then: alembic upgrade head"
            ),
        ),
        not_allowed=refuse(
            literal('this role may not enable extension "vector"'),
            literal("let a superuser (on Amazon RDS: a member of rds_superuser) run: CREATE EXTENSION vector"),
        ),
        made=literal(MADE),
    )
    emit_do(operations, body)


def drop_vector_extension(operations: Operations, op: DropVectorExtensionOp) -> None:
    """Remove pgvector where it was enabled here and nothing uses it."""
    body = fill(
        """
        {keep_shared}
        IF EXISTS (
            SELECT FROM pg_extension WHERE extname = 'vector' AND obj_description(oid, 'pg_extension') = {made}
        ) THEN
            {drop}
        END IF;
        """,
        keep_shared=_keep_shared(operations) if op.shared else "",
        made=literal(MADE),
        drop=drop_unless_used("extension vector", "DROP EXTENSION vector RESTRICT;", "NULL;"),
    )
    emit_do(operations, body)


def adopt_table(operations: Operations, op: AdoptTableOp) -> None:
    """Check a table that exists, take back one that was retired, make one that is absent."""
    kept = retired_name(op.table)
    relation, kept_relation = regclass(op.schema, op.table), regclass(op.schema, kept)

    def take_back(alembic: Operations) -> None:
        alembic.rename_table(kept, op.table, schema=op.schema)
        alembic.create_table_comment(op.table, MADE, schema=op.schema)

    def create(alembic: Operations) -> None:
        alembic.create_table(op.table, *op.elements, schema=op.schema, comment=MADE)

    body = fill(
        """
        IF {relation} IS NOT NULL THEN
            {check}
        ELSIF {retired} THEN
            {take_back}
            {taken_back}
        ELSE
            {create}
        END IF;
        """,
        relation=relation,
        check=_check_table(op, relation),
        retired=is_retired(comment_of(kept_relation)),
        take_back=short_lock(f"renaming {kept}", ddl(operations, take_back)),
        taken_back=say(literal(f"{op.table}: taken back from {kept}")),
        create=ddl(operations, create),
    )
    emit_do(operations, body, missing="text", wanted="text[]", listed="text")


def _check_table(op: AdoptTableOp, relation: str) -> str:
    """Name what is missing of what is relied on."""
    if not op.relied_on:
        return ""
    table = qualified(op.table, op.schema)
    return fill(
        """
        SELECT string_agg(item, ', ' ORDER BY position) INTO missing
        FROM unnest({names}) WITH ORDINALITY AS relied_on (item, position)
        WHERE {type} IS NULL;
        IF missing IS NOT NULL THEN
            {without_columns}
        END IF;
        {check_types}
        {check_index}
        """,
        names=literal(op.relied_on),
        type=type_of(relation, "item"),
        without_columns=refuse(
            literal(f"table {table} exists without the columns relied on: ") + " || missing",
            literal(f"add them (ALTER TABLE {table} ADD COLUMN …), or rename the table out of the way"),
        ),
        check_types="\n".join(_check_type(table, relation, name, type_) for name, type_ in op.types.items()),
        check_index=_check_unique_index(op, relation) if op.key else "",
    )


def _check_type(table: str, relation: str, name: str, type_: str) -> str:
    found, column = type_of(relation, literal(name)), qualified(name)
    return fill(
        """
        IF {found} <> {type} THEN
            {refuse}
        END IF;
        """,
        found=found,
        type=literal(type_),
        refuse=refuse(
            literal(f"column {table}.{column} is of type ") + f" || {found} || " + literal(f"; expected {type_}"),
            literal(
                f"rename the table out of the way, or ALTER TABLE {table} ALTER COLUMN {column} TYPE {type_} USING …, "
                "then run the upgrade again"
            ),
        ),
    )


def _check_unique_index(op: AdoptTableOp, relation: str) -> str:
    table = qualified(op.table, op.schema)
    return fill(
        """
        SELECT array_agg(item ORDER BY position), string_agg(quote_ident(item), ', ' ORDER BY position)
        INTO wanted, listed
        FROM unnest({names}) WITH ORDINALITY AS relied_on (item, position)
        WHERE {type} IS NOT NULL;
        IF NOT EXISTS (
            SELECT FROM pg_index i
            CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k (attnum, position)
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
            WHERE i.indrelid = {relation} AND i.indisunique AND i.indisvalid AND i.indimmediate
                AND i.indpred IS NULL AND i.indexprs IS NULL AND k.position <= i.indnkeyatts
            GROUP BY i.indexrelid
            HAVING array_agg(a.attname::text) @> wanted AND array_agg(a.attname::text) <@ wanted
        ) THEN
            {refuse}
        END IF;
        """,
        names=literal([*op.scope, *op.key]),
        type=type_of(relation, "item"),
        relation=relation,
        refuse=refuse(
            literal(f"table {table} exists without a unique index on exactly (") + " || listed || ')'",
            literal(f"CREATE UNIQUE INDEX CONCURRENTLY ON {table} (") + " || listed || ')'",
        ),
    )


def retire_table(operations: Operations, op: RetireTableOp) -> None:
    """Keep a table of ours that has rows under its retired name, drop one that has none, leave an adopted one."""
    kept = retired_name(op.table)
    relation = regclass(op.schema, op.table)
    kept_name = qualified(kept, op.schema)
    any_row = sa.select(sa.literal(1)).select_from(sa.table(kept, schema=op.schema))
    counted = sa.select(sa.func.count()).select_from(sa.table(kept, schema=op.schema))
    body = fill(
        """
        {keep_shared}
        IF {relation} IS NULL THEN
            RETURN;
        END IF;
        IF {comment} IS DISTINCT FROM {made} THEN
            {adopted}
            RETURN;
        END IF;
        IF {kept_relation} IS NOT NULL THEN
            {in_the_way}
        END IF;
        {retire}
        filled := EXISTS ({any_row});
        {keep}
        {drop}
        """,
        keep_shared=_keep_shared(operations) if op.shared else "",
        relation=relation,
        comment=comment_of(relation),
        made=literal(MADE),
        adopted=say(literal(f"{op.table} was adopted, not made here: left as it is")),
        kept_relation=regclass(op.schema, kept),
        in_the_way=refuse(
            literal(f"table {kept} is in the way: {op.table} is to be kept under that name"),
            literal(f"ALTER TABLE {kept_name} RENAME TO …, then run the downgrade again"),
        ),
        retire=short_lock(
            f"retiring {op.table}",
            ddl(operations, lambda alembic: alembic.rename_table(op.table, kept, schema=op.schema))
            + "\n"
            + comment_on("TABLE", kept_name, retired_at("clock_timestamp()")),
        ),
        any_row=sql(any_row),
        keep=keep_unless_purging(
            operations, f"{op.table}: kept as {kept}", counted, (f"{op.table}: dropping ", " rows")
        ),
        drop=drop_unless_used(
            op.table,
            ddl(operations, lambda alembic: alembic.drop_table(kept, schema=op.schema)),
            not_dropped(
                f"{op.table} cannot be dropped: something of yours depends on it",
                f"{op.table}: something of yours depends on it; kept as {kept}, without rows",
            ),
        ),
    )
    emit_do(operations, body, filled="boolean")


def _keep_shared(operations: Operations) -> str:
    """Go no further while another section has revisions in this database."""
    return fill(
        """
        DECLARE
            section text;
            in_use boolean;
        BEGIN
            FOR section IN
                SELECT relname FROM pg_class
                WHERE relkind = 'r' AND relname ~ '^amprenta_version_' AND relname <> {own}
                    AND pg_table_is_visible(oid)
            LOOP
                EXECUTE format('SELECT EXISTS (SELECT FROM %I)', section) INTO in_use;
                IF in_use THEN
                    RETURN;
                END IF;
            END LOOP;
        END;
        """,
        own=literal(operations.get_context().version_table),
    )
