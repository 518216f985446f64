"""The operations on columns as text for psql; what `offline` says of the others holds for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.operations import Operations

from amprenta_vectors.ddl.catalogue import MADE, commit_step, qualified, retired_name
from amprenta_vectors.ddl.offline_take_back import EMPTYING, dated, empty_changed, unwatch, watch
from amprenta_vectors.ddl.options import configured_dimension
from amprenta_vectors.ddl.psql import (
    comment_of_column,
    comment_on,
    ddl,
    do,
    drop_unless_used,
    emit_do,
    emit_unlimited,
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
from amprenta_vectors.ddl.take_back import ROW_LOCK_TIMEOUT, UPDATED_AT
from amprenta_vectors.ddl.vector_type import PATTERN, VectorType
from amprenta_vectors.errors import ConfigError

if TYPE_CHECKING:
    from amprenta_vectors.ddl.kept_column import AddKeptColumnOp, DropKeptColumnOp
    from amprenta_vectors.ddl.vector_column import AddVectorColumnOp


def add_vector_column(operations: Operations, op: AddVectorColumnOp) -> None:
    """Add an embedding column, take back the one that was kept, or check the one that is there.

    Raises `ConfigError` where the dimension can be set and is not: the text cannot look which one a column has.
    """
    demanded = configured_dimension(operations) if op.configurable else op.dimension
    if demanded is None:
        raise ConfigError(
            f"the dimension of {op.table}.{op.column} is not given, and SQL that is only written cannot look for it",
            hint=f"alembic -x dimension={op.dimension} … --sql, or export VECTOR_DIMENSION={op.dimension}",
        )
    type_ = VectorType(op.storage, demanded)
    _add_column(
        operations,
        op.schema,
        op.table,
        op.column,
        type_,
        check=lambda column: _check_type(op, column, demanded),
        nullable=op.nullable,
    )


def add_kept_column(operations: Operations, op: AddKeptColumnOp) -> None:
    """Add a column, or take back the one that was kept; one that is there is adopted as it is."""
    _add_column(operations, op.schema, op.table, op.column, op.type, check=lambda _: "")


def _add_column(
    operations: Operations,
    schema: str | None,
    table: str,
    column: str,
    type_: sa.types.TypeEngine[Any],
    check: Callable[[str], str],
    *,
    nullable: bool = True,
) -> None:
    """Write the blocks; ``check`` gives the statements that look at ``actual``, the type of the column it is told.

    A column comes back in the steps that `take_back` tells of, each a transaction that finds out where things are.
    """
    relation, kept = regclass(schema, table), retired_name(column)
    shared = {
        "type": type_of(relation, literal(column)),
        "retired": is_retired(comment_of_column(relation, literal(kept))),
        "dated": dated(relation),
    }
    emit_do(
        operations,
        fill(
            """
            actual := {type};
            IF actual IS NOT NULL THEN
                {check}
            ELSIF {retired} THEN
                actual := {kept_type};
                {check_kept}
                IF {dated} THEN
                    {watch}
                END IF;
            ELSE
                {add}
            END IF;
            """,
            **shared,
            check=check(column),
            kept_type=type_of(relation, literal(kept)),
            check_kept=check(kept),
            watch=short_lock(f"watching {table} for changes", watch(schema, table, kept)),
            add=short_lock(
                f"adding {table}.{column}", _add(operations, schema, table, column, type_, nullable=nullable)
            ),
        ),
        actual="text",
    )
    empty = fill(
        """
        PERFORM set_config('amprenta.emptied', '0', false);
        IF {type} IS NULL AND {retired} AND {dated} THEN
            {empty}
        END IF;
        """,
        **shared,
        empty=empty_changed(schema, table, kept),
    )
    emit_unlimited(operations, do(empty, **EMPTYING), lock_timeout=ROW_LOCK_TIMEOUT)
    where = f"{table}.{column}"
    emit_do(
        operations,
        fill(
            """
            IF {type} IS NULL AND {retired} THEN
                {rename}
                IF {dated} THEN
                    {told}
                ELSE
                    {untold}
                END IF;
            END IF;
            """,
            **shared,
            rename=short_lock(
                f"renaming {table}.{kept}",
                unwatch(schema, table, kept)
                + "\n"
                + ddl(
                    operations,
                    lambda alembic: alembic.alter_column(
                        table, kept, comment=MADE, new_column_name=column, schema=schema
                    ),
                ),
            ),
            told=say(
                literal(f"{where}: its values are back; ")
                + " || current_setting('amprenta.emptied') || "
                + literal(" rows changed meanwhile and are NULL again")
            ),
            untold=say(
                literal(f"{where}: its values are back; without {UPDATED_AT}, changed rows cannot be told"),
                level="WARNING",
            ),
        ),
    )
    commit_step(operations)


def _add(
    operations: Operations,
    schema: str | None,
    table: str,
    column: str,
    type_: sa.types.TypeEngine[Any],
    *,
    nullable: bool,
) -> str:
    """Add the column as it may be; not ``nullable``, it is so all the same where the table has rows."""

    def statement(*, nullable: bool) -> str:
        added = sa.Column(column, type_, nullable=nullable, comment=MADE)
        return ddl(operations, lambda alembic: alembic.add_column(table, added, schema=schema))

    if nullable:
        return statement(nullable=True)
    return fill(
        """
        LOCK TABLE {table};
        IF EXISTS (SELECT FROM {table}) THEN
            {may_be_null}
        ELSE
            {not_null}
        END IF;
        """,
        table=qualified(table, schema),
        may_be_null=statement(nullable=True),
        not_null=statement(nullable=False),
    )


def _check_type(op: AddVectorColumnOp, column: str, demanded: int) -> str:
    return fill(
        """
        IF actual !~ {pattern} THEN
            {wrong_type}
        ELSIF (regexp_match(actual, {pattern}))[2]::integer <> {demanded} THEN
            {wrong_dimension}
        END IF;
        """,
        pattern=literal(f"^{PATTERN}$"),
        demanded=str(demanded),
        wrong_type=refuse(
            literal(f"column {op.table}.{column} is of type ")
            + " || actual || "
            + literal(f"; expected {op.storage}({demanded})"),
            literal(
                f"rename it out of the way (ALTER TABLE {qualified(op.table, op.schema)} RENAME COLUMN "
                f"{qualified(column)} TO {qualified(column + '_old')}), then: alembic upgrade head"
            ),
        ),
        wrong_dimension=refuse(
            literal(f"VECTOR_DIMENSION is {demanded}, but {op.table}.{column} is ") + " || actual",
            literal("write the script again with -x dimension=")
            + f" || (regexp_match(actual, {literal(f'^{PATTERN}$')}))[2]",
        ),
    )


def drop_kept_column(operations: Operations, op: DropKeptColumnOp) -> None:
    """Keep a column of ours that has values under its retired name, drop one that has none, leave an adopted one."""
    relation, kept, where = regclass(op.schema, op.table), retired_name(op.column), f"{op.table}.{op.column}"
    retire = fill(
        """
        IF {type} IS NULL THEN
            RETURN;
        END IF;
        IF {comment} IS DISTINCT FROM {made} THEN
            {adopted}
            RETURN;
        END IF;
        IF {kept_type} IS NOT NULL THEN
            {in_the_way}
        END IF;
        SELECT array_agg(conname::text ORDER BY conname) INTO forbid_null FROM pg_constraint c
        JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attname = {column} AND c.conkey = ARRAY[a.attnum]
        WHERE c.conrelid = {relation} AND c.contype = 'c'
            AND pg_get_expr(c.conbin, c.conrelid) = format('(%I IS NOT NULL)', a.attname);
        SELECT least(clock_timestamp(), min(xact_start)),
            bool_or(NOT pg_has_role(usesysid, 'USAGE')) AND NOT pg_has_role('pg_read_all_stats', 'USAGE')
        INTO moment, hidden FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid();
        IF hidden THEN
            {say_hidden}
        END IF;
        {retire}
        FOREACH forbids IN ARRAY coalesce(forbid_null, '{}') LOOP
            {say_dropped}
        END LOOP;
        """,
        column=literal(op.column),
        relation=relation,
        type=type_of(relation, literal(op.column)),
        comment=comment_of_column(relation, literal(op.column)),
        made=literal(MADE),
        adopted=say(literal(f"{where} was adopted, not made here: left as it is")),
        kept_type=type_of(relation, literal(kept)),
        in_the_way=refuse(
            literal(f"column {op.table}.{kept} is in the way: {where} is to be kept under that name"),
            literal(
                f"ALTER TABLE {qualified(op.table, op.schema)} RENAME COLUMN {qualified(kept)} TO …, "
                "then run the downgrade again"
            ),
        ),
        say_hidden=say(
            literal(f"{where}: role ")
            + " || current_user || "
            + literal(
                " does not see when other roles' transactions began; what one of them began before the downgrade and "
                "writes after it will not count as changed (mend: GRANT pg_read_all_stats TO "
            )
            + " || quote_ident(current_user) || ')'",
            level="WARNING",
        ),
        say_dropped=say(
            literal(f"{where}: CHECK constraint ")
            + " || forbids || "
            + literal(", which forbids NULL, is dropped and does not come back"),
            level="WARNING",
        ),
        retire=short_lock(
            f"retiring {where}",
            fill(
                """
                FOREACH forbids IN ARRAY coalesce(forbid_null, '{}') LOOP
                    EXECUTE {drop_constraint} || quote_ident(forbids);
                END LOOP;
                """,
                drop_constraint=literal(f"ALTER TABLE {qualified(op.table, op.schema)} DROP CONSTRAINT "),
            )
            + "\n"
            + ddl(
                operations,
                lambda alembic: alembic.alter_column(
                    op.table, op.column, nullable=True, new_column_name=kept, schema=op.schema
                ),
            )
            + "\n"
            + comment_on("COLUMN", f"{qualified(op.table, op.schema)}.{qualified(kept)}", retired_at("moment")),
        ),
    )
    emit_do(operations, retire, moment="timestamptz", hidden="boolean", forbid_null="text[]", forbids="text")
    commit_step(operations)
    table = sa.table(op.table, schema=op.schema)
    any_value = sa.select(sa.literal(1)).select_from(table).where(sa.column(kept).is_not(None))
    drop = fill(
        """
        IF {type} IS NOT NULL OR NOT {retired} THEN
            RETURN;
        END IF;
        filled := EXISTS ({any_value});
        {keep}
        {drop}
        """,
        type=type_of(relation, literal(op.column)),
        retired=is_retired(comment_of_column(relation, literal(kept))),
        any_value=sql(any_value),
        keep=keep_unless_purging(
            operations,
            f"{where}: its values are kept as {kept}",
            sa.select(sa.func.count(sa.column(kept))).select_from(table),
            (f"{where}: dropping ", " values"),
        ),
        drop=drop_unless_used(
            where,
            unwatch(op.schema, op.table, kept)
            + "\n"
            + ddl(operations, lambda alembic: alembic.drop_column(op.table, kept, schema=op.schema)),
            not_dropped(
                f"{where} cannot be dropped: something of yours depends on it; it is kept as {kept}",
                f"{where}: something of yours depends on it; kept as {kept}, without values",
            ),
        ),
    )
    emit_do(operations, drop, filled="boolean")
