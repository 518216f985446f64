"""The operations on indexes as text for psql; what `offline` says of the others holds for them.

A concurrent build can stand neither in a block nor in a transaction. So a block looks at the database, waits where it
must, and leaves what there is to do in settings of the session; psql's ``\\gexec`` then executes that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic.operations import Operations

from amprenta_vectors.ddl.catalogue import MADE, building_name, qualified, quoted
from amprenta_vectors.ddl.psql import (
    comment_of,
    ddl,
    do,
    emit_do,
    emit_unlimited,
    fill,
    literal,
    refuse,
    regclass,
    say,
    type_of,
)
from amprenta_vectors.ddl.vector_type import PATTERN

if TYPE_CHECKING:
    from amprenta_vectors.ddl.vector_index import CreateVectorIndexOp, DropVectorIndexOp

_HOLE = "\0"
"""What no name can have: where the indexed expression goes, known only when the column's type is."""

_VARIABLES = {
    "actual": "text",
    "parts": "text[]",
    "opclass": "text",
    "expression": "text",
    "through_cast": "boolean",
    "other": "oid",
    "builder": "integer",
    "said": "integer",
}


def create_vector_index(operations: Operations, op: CreateVectorIndexOp, limit: int) -> None:
    """Build the index unless it is there, is being built, or is deferred; repair what a killed build left.

    ``limit`` is the number of dimensions beyond which a vector is indexed as a halfvec.
    """
    if not op.concurrently:
        _create_at_once(operations, op, limit)
        return
    building = building_name(op.name)
    own, unfinished = regclass(op.schema, op.name), regclass(op.schema, building)
    look = fill(
        """
        PERFORM set_config('amprenta.create', '', false), set_config('amprenta.invalid', '', false);
        {find_expression}
        {stop_if_deferred}
        {wait_for_own}
        IF {own_is_valid} THEN
            RETURN;
        ELSIF {own} IS NOT NULL THEN
            {drop_own}
        END IF;
        {use_another}
        {wait_for_unfinished}
        IF {unfinished} IS NOT NULL AND NOT {unfinished_is_valid} THEN
            {drop_unfinished}
        END IF;
        PERFORM set_config('amprenta.create', {statement}, false);
        """,
        find_expression=_find_expression(op, limit),
        stop_if_deferred=_stop_if_deferred(op),
        wait_for_own=_wait(own, literal(op.name)),
        own_is_valid=_valid(own),
        own=own,
        drop_own=_drop_first(own, literal(op.name)),
        use_another=_use_another(op, building) if op.where is None else "",
        wait_for_unfinished=_wait(unfinished, literal(building)),
        unfinished=unfinished,
        unfinished_is_valid=_valid(unfinished),
        drop_unfinished=_drop_first(unfinished, literal(building)),
        statement=_statement(operations, op, building),
    )
    drop_invalid = fill(
        r"""
        SELECT format('DROP INDEX CONCURRENTLY %s', invalid::regclass)
        FROM unnest(string_to_array(current_setting('amprenta.invalid'), ',')::oid[]) AS invalid \gexec
        """
    )
    build = fill(
        r"""
        SELECT current_setting('amprenta.create')
        WHERE current_setting('amprenta.create') <> '' AND {unfinished} IS NULL \gexec
        """,
        unfinished=unfinished,
    )
    finish = fill(
        """
        IF current_setting('amprenta.create') <> '' THEN
            COMMENT ON INDEX {name} IS {made};
            {rename}
        END IF;
        """,
        name=qualified(building, op.schema),
        made=literal(MADE),
        rename=ddl(operations, lambda alembic: alembic.rename_table(building, op.name, schema=op.schema)),
    )
    emit_unlimited(operations, do(look, **_VARIABLES), drop_invalid, build, do(finish))


def _create_at_once(operations: Operations, op: CreateVectorIndexOp, limit: int) -> None:
    body = fill(
        """
        {find_expression}
        {stop_if_deferred}
        IF {own} IS NULL THEN
            EXECUTE {statement};
            COMMENT ON INDEX {name} IS {made};
        END IF;
        """,
        find_expression=_find_expression(op, limit),
        stop_if_deferred=_stop_if_deferred(op),
        own=regclass(op.schema, op.name),
        statement=_statement(operations, op, op.name),
        name=qualified(op.name, op.schema),
        made=literal(MADE),
    )
    emit_do(operations, body, **_VARIABLES)


def drop_vector_index(operations: Operations, op: DropVectorIndexOp) -> None:
    """Drop the index if it was made here, or may have been adopted; forget it where its building is deferred."""
    relation = regclass(op.schema, op.name)
    condition = f"{relation} IS NOT NULL" if op.adopted else f"{comment_of(relation)} = {literal(MADE)}"
    forget = fill(
        """
        IF to_regclass('migration_index') IS NOT NULL THEN
            IF EXISTS (SELECT FROM migration_index WHERE index_name = {name} AND built_at IS NULL) THEN
                DELETE FROM migration_index WHERE index_name = {name};
            END IF;
        END IF;
        """,
        name=literal(op.name),
    )
    drop = "DROP INDEX " + qualified(op.name, op.schema)
    if not op.concurrently:
        emit_do(operations, f"{forget}\nIF {condition} THEN\n    {drop};\nEND IF;")
        return
    emit_do(operations, forget)
    concurrently = literal(drop.replace("INDEX", "INDEX CONCURRENTLY", 1))
    emit_unlimited(operations, fill("SELECT {drop} WHERE {condition} \\gexec", drop=concurrently, condition=condition))


def _find_expression(op: CreateVectorIndexOp, limit: int) -> str:
    """Find out what to index: the column, or its cast to halfvec, and the operator class."""
    return fill(
        """
        actual := coalesce({type}, 'no column');
        parts := regexp_match(actual, {pattern});
        IF parts IS NULL THEN
            {no_vector}
        END IF;
        through_cast := parts[1] = 'vector' AND {demanded};
        IF through_cast THEN
            opclass := {cast_opclass};
            expression := format('(%I::halfvec(%s))', {column}, parts[2]);
        ELSE
            opclass := parts[1] || {opclass};
            expression := quote_ident({column});
        END IF;
        """,
        type=type_of(regclass(op.schema, op.table), literal(op.column)),
        pattern=literal(f"^{PATTERN}$"),
        no_vector=refuse(
            literal(f"cannot index {op.table}.{op.column}: it is ")
            + " || actual || "
            + literal("; expected vector(n) or halfvec(n)"),
            literal("alembic upgrade head"),
        ),
        demanded="true" if op.storage == "halfvec" else f"parts[2]::integer > {limit}",
        cast_opclass=literal(f"halfvec_{op.distance}_ops"),
        column=literal(op.column),
        opclass=literal(f"_{op.distance}_ops"),
    )


def _stop_if_deferred(op: CreateVectorIndexOp) -> str:
    return fill(
        """
        IF to_regclass('migration_index') IS NOT NULL THEN
            IF EXISTS (SELECT FROM migration_index WHERE index_name = {name} AND built_at IS NULL) THEN
                {say}
                RETURN;
            END IF;
        END IF;
        """,
        name=literal(op.name),
        say=say(literal(f"{op.name}: a backfill deferred it and will build it")),
    )


def _statement(operations: Operations, op: CreateVectorIndexOp, name: str) -> str:
    """What Alembic writes to build the index under ``name``, as an expression of `_find_expression`'s variables."""
    statement = ddl(
        operations,
        lambda alembic: alembic.create_index(
            name,
            op.table,
            [sa.literal_column(_HOLE)],
            schema=op.schema,
            postgresql_concurrently=op.concurrently,
            postgresql_using=op.method,
            postgresql_with=op.options,
            postgresql_where=None if op.where is None else sa.literal_column(op.where),
        ),
    )
    before, after = statement.rstrip(";").split(_HOLE)
    parts = [literal(part) for part in after.split("lists = 0")]
    if len(parts) > 1:
        parts[0] = literal(after.split("lists = 0")[0] + "lists = ")
    return f"{literal(before)} || expression || ' ' || opclass || {f' || {_lists(op)} || '.join(parts)}"


def _lists(op: CreateVectorIndexOp) -> str:
    """What `suitable_lists` says of the rows that there are when the script runs."""
    return fill(
        """
        (SELECT greatest(1, CASE WHEN n > 1000000 THEN floor(sqrt(n)) ELSE n / 1000 END)::integer
        FROM (SELECT count({column}) AS n FROM {table}) AS counted)
        """,
        column=quoted(op.column),
        table=quoted(op.schema, op.table),
    )


def _valid(index: str) -> str:
    return fill("EXISTS (SELECT FROM pg_index WHERE indexrelid = {index} AND indisvalid)", index=index)


def _wait(index: str, name: str) -> str:
    """Wait while another session builds an index, which it does under a lock that pg_locks tells everybody.

    It would wait for the snapshot that this block holds; the block lets go of it with each COMMIT.
    """
    return fill(
        """
        LOOP
            builder := (
                SELECT min(l.pid) FROM pg_index i JOIN pg_locks l ON l.relation = i.indrelid
                WHERE i.indexrelid = {index} AND NOT i.indisvalid AND l.locktype = 'relation' AND l.granted
                    AND l.mode = 'ShareUpdateExclusiveLock' AND l.pid <> pg_backend_pid()
                    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            );
            EXIT WHEN builder IS NULL;
            IF builder IS DISTINCT FROM said THEN
                {say}
                said := builder;
            END IF;
            COMMIT;
            PERFORM pg_sleep(0.5);
        END LOOP;
        """,
        index=index,
        say=say(f"{name} || ' is being built by pid ' || builder || ': waiting for it'"),
    )


def _drop_first(index: str, name: str) -> str:
    return fill(
        """
        {say}
        PERFORM set_config(
            'amprenta.invalid', concat_ws(',', nullif(current_setting('amprenta.invalid'), ''), {index}::oid), false
        );
        """,
        say=say(f"{name} || ' is invalid, left by an interrupted build: rebuilding it'", level="WARNING"),
        index=index,
    )


def _use_another(op: CreateVectorIndexOp, building: str) -> str:
    """Build nothing where an index under another name answers the same queries, as `equivalent_indexes` says."""
    return fill(
        """
        FOR other IN
            SELECT c.oid FROM pg_index i
            JOIN pg_class c ON c.oid = i.indexrelid
            JOIN pg_am am ON am.oid = c.relam AND am.amname = {method}
            JOIN pg_opclass o ON o.oid = i.indclass[0] AND o.opcname = opclass
            JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname = {column}
            WHERE i.indrelid = {relation} AND i.indnatts = 1 AND i.indpred IS NULL
                AND c.relname NOT IN ({name}, {building})
                AND CASE WHEN through_cast THEN pg_get_expr(i.indexprs, i.indrelid)
                        = format('(%I)::%s', a.attname, format_type(o.opcintype, a.atttypmod))
                    ELSE i.indkey[0] = a.attnum END
            ORDER BY i.indisvalid DESC, c.relname
        LOOP
            {wait}
            IF {valid} THEN
                {say}
                RETURN;
            END IF;
        END LOOP;
        """,
        method=literal(op.method),
        column=literal(op.column),
        relation=regclass(op.schema, op.table),
        name=literal(op.name),
        building=literal(building),
        wait=_wait("other", "other::regclass"),
        valid=_valid("other"),
        say=say(
            literal(f"{op.name}: index ")
            + " || other::regclass || "
            + literal(" does the same and is used instead; a downgrade leaves it")
        ),
    )
