"""Functions, triggers and views as text for psql; what `offline` says of the other operations holds for these."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alembic.operations import Operations

from amprenta_vectors.ddl.catalogue import MADE, qualified, quoted
from amprenta_vectors.ddl.psql import (
    comment_of,
    drop_unless_used,
    emit_do,
    fill,
    literal,
    refuse,
    regclass,
    say,
    short_lock,
)

if TYPE_CHECKING:
    from amprenta_vectors.ddl.function import CreateFunctionOp, DropFunctionOp
    from amprenta_vectors.ddl.materialized_view import CreateMaterializedViewOp, DropMaterializedViewOp
    from amprenta_vectors.ddl.trigger import CreateTriggerOp, DropTriggerOp


def create_function(operations: Operations, op: CreateFunctionOp, load: str) -> None:
    """Make or renew a function unless one of that name was not made here; ``load`` loads pgvector's library."""
    body = fill(
        """
        SELECT p.oid::regprocedure, p.prorettype::regtype INTO foreign_one, returned FROM {foreign}
        ORDER BY p.prorettype = 'trigger'::regtype DESC, p.oid LIMIT 1;
        IF foreign_one IS NOT NULL THEN
            {check_trigger}
            {used}
            RETURN;
        END IF;
        IF to_regtype('vector') IS NOT NULL THEN
            EXECUTE {load};
        END IF;
        EXECUTE {statement};
        FOR made IN SELECT p.oid::regprocedure FROM {named} LOOP
            EXECUTE format('COMMENT ON FUNCTION %s IS %L', made, {mark});
        END LOOP;
        """,
        foreign=_functions(op, "IS DISTINCT FROM"),
        check_trigger=_check_trigger() if op.returns == "trigger" else "",
        used=say("'function ' || foreign_one || ' was there, not made here: used as it is'"),
        load=literal(load),
        statement=literal(op.statement),
        named=_functions(op),
        mark=literal(MADE),
    )
    emit_do(operations, body, foreign_one="regprocedure", returned="regtype", made="regprocedure")


def _check_trigger() -> str:
    return fill(
        """
        IF returned <> 'trigger'::regtype THEN
            {refuse}
        END IF;
        """,
        refuse=refuse(
            "'function ' || foreign_one || ' exists and returns ' || returned || '; expected one for a trigger'",
            "'ALTER FUNCTION ' || foreign_one || ' RENAME TO …, then run the upgrade again'",
        ),
    )


def drop_function(operations: Operations, op: DropFunctionOp) -> None:
    """Drop what was made here and nothing uses."""
    body = fill(
        """
        FOR found, ours IN
            SELECT p.oid::regprocedure::text, obj_description(p.oid, 'pg_proc') IS NOT DISTINCT FROM {mark} FROM {named}
        LOOP
            IF NOT ours THEN
                {adopted}
                CONTINUE;
            END IF;
            {drop}
        END LOOP;
        """,
        mark=literal(MADE),
        named=_functions(op),
        adopted=say("'function ' || found || ' was there before, not made here: left as it is'"),
        drop=drop_unless_used(
            f"function {op.name}",
            "EXECUTE 'DROP FUNCTION ' || found || ' RESTRICT';",
            say("'function ' || found || ': something of yours depends on it; left as it is'"),
        ),
    )
    emit_do(operations, body, found="text", ours="boolean")


def _functions(op: CreateFunctionOp | DropFunctionOp, marked: str = "") -> str:
    """Functions of that name as ``p``; all, or those whose comment is ``marked`` the one on what was made here."""
    where = f"p.pronamespace = to_regnamespace({literal(quoted(op.schema))})" if op.schema else ""
    return fill(
        "pg_proc p WHERE p.proname = {name} AND p.prokind = 'f' AND {where}{marked}",
        name=literal(op.name),
        where=where or "pg_function_is_visible(p.oid)",
        marked=f" AND obj_description(p.oid, 'pg_proc') {marked} {literal(MADE)}" if marked else "",
    )


def create_trigger(operations: Operations, op: CreateTriggerOp) -> None:
    """Make a trigger where the table has none of that name."""
    on_table = f"{qualified(op.name)} ON {qualified(op.table, op.schema)}"
    body = fill(
        """
        IF NOT EXISTS ({found}) THEN
            {create}
        ELSIF EXISTS ({foreign}) THEN
            {adopted}
        END IF;
        """,
        found=_trigger(op),
        create=short_lock(
            f"creating trigger {op.name}",
            f"{op.statement};\nCOMMENT ON TRIGGER {on_table} IS {literal(MADE)};",
        ),
        foreign=_trigger(op, "IS DISTINCT FROM"),
        adopted=say(literal(f"trigger {op.name} on {op.table} was there, not made here: left as it is")),
    )
    emit_do(operations, body)


def drop_trigger(operations: Operations, op: DropTriggerOp) -> None:
    """Drop a trigger of ours."""
    body = fill(
        """
        IF EXISTS ({ours}) THEN
            {drop}
        ELSIF EXISTS ({found}) THEN
            {adopted}
        END IF;
        """,
        ours=_trigger(op, "="),
        drop=short_lock(
            f"dropping trigger {op.name}",
            f"DROP TRIGGER {qualified(op.name)} ON {qualified(op.table, op.schema)};",
        ),
        found=_trigger(op),
        adopted=say(literal(f"trigger {op.name} on {op.table} was there before, not made here: left as it is")),
    )
    emit_do(operations, body)


def _trigger(op: CreateTriggerOp | DropTriggerOp, marked: str = "") -> str:
    return fill(
        "SELECT FROM pg_trigger WHERE tgrelid = {table} AND tgname = {name} AND NOT tgisinternal{marked}",
        table=regclass(op.schema, op.table),
        name=literal(op.name),
        marked=f" AND obj_description(oid, 'pg_trigger') {marked} {literal(MADE)}" if marked else "",
    )


def create_materialized_view(operations: Operations, op: CreateMaterializedViewOp) -> None:
    """Make a view with its index where there is none of that name."""
    relation, name = regclass(op.schema, op.name), qualified(op.name, op.schema)
    body = fill(
        """
        kind := {kind};
        IF kind IS NULL THEN
            {create}
            COMMENT ON MATERIALIZED VIEW {name} IS {mark};
        ELSIF kind <> 'm' THEN
            {no_view}
        ELSIF {comment} IS DISTINCT FROM {mark} THEN
            {adopted}
        END IF;
        """,
        kind=_kind(relation),
        create=";\n".join(op.statements) + ";",
        name=name,
        mark=literal(MADE),
        no_view=refuse(
            literal(f"{name} exists and is no materialised view"),
            literal(f"rename it out of the way (ALTER TABLE {name} RENAME TO …), then run the upgrade again"),
        ),
        comment=comment_of(relation),
        adopted=say(literal(f"materialised view {op.name} was there, not made here: left as it is")),
    )
    emit_do(operations, body, kind='"char"')


def drop_materialized_view(operations: Operations, op: DropMaterializedViewOp) -> None:
    """Drop a view of ours that nothing uses."""
    relation, name = regclass(op.schema, op.name), qualified(op.name, op.schema)
    body = fill(
        """
        IF {kind} IS DISTINCT FROM 'm' THEN
            RETURN;
        ELSIF {comment} IS DISTINCT FROM {mark} THEN
            {adopted}
            RETURN;
        END IF;
        {drop}
        """,
        kind=_kind(relation),
        comment=comment_of(relation),
        mark=literal(MADE),
        adopted=say(literal(f"materialised view {op.name} was there before, not made here: left as it is")),
        drop=drop_unless_used(
            f"view {op.name}",
            f"DROP MATERIALIZED VIEW {name} RESTRICT;",
            say(literal(f"materialised view {op.name}: something of yours depends on it; left as it is")),
        ),
    )
    emit_do(operations, body)


def _kind(relation: str) -> str:
    return fill("(SELECT relkind FROM pg_class WHERE oid = {relation})", relation=relation)
