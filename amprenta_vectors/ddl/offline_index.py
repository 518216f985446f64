"""The operations on indexes of vectors as text for psql; what `offline` says of the others holds for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic.operations import Operations

from amprenta_vectors.ddl.catalogue import MADE, building_name, qualified, quoted
from amprenta_vectors.ddl.index_key import BIT_OPCLASS, INDEX_LIMITS
from amprenta_vectors.ddl.offline_concurrent import build_concurrently, drop_unfinished, valid, wait
from amprenta_vectors.ddl.psql import (
    comment_of,
    ddl,
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
    "storage": "text",
    "other": "oid",
}


def create_vector_index(operations: Operations, op: CreateVectorIndexOp) -> None:
    """Build the index unless it is there, is being built, or is deferred; repair what a killed build left."""
    if not op.concurrently:
        _create_at_once(operations, op)
        return
    building = building_name(op.name)
    build_concurrently(
        operations,
        op.name,
        op.schema,
        first=f"{_find_expression(op)}\n{_stop_if_deferred(op)}",
        use_another=_use_another(op, building) if op.where is None else "",
        statement=_statement(operations, op, building),
        variables=_VARIABLES,
    )


def _create_at_once(operations: Operations, op: CreateVectorIndexOp) -> None:
    body = fill(
        """
        {find_expression}
        {stop_if_deferred}
        IF {own} IS NULL THEN
            EXECUTE {statement};
            COMMENT ON INDEX {name} IS {made};
        END IF;
        """,
        find_expression=_find_expression(op),
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
    drop_unfinished(operations, op.name, op.schema)


def _find_expression(op: CreateVectorIndexOp) -> str:
    """Find out what to index, as `index_key` says, and the operator class."""
    limits = INDEX_LIMITS
    return fill(
        """
        actual := coalesce({type}, 'no column');
        parts := regexp_match(actual, {pattern});
        IF parts IS NULL THEN
            {no_vector}
        END IF;
        storage := {storage};
        IF storage = 'halfvec' AND parts[2]::integer > {halfvec_limit} THEN
            {too_long}
        END IF;
        opclass := CASE storage WHEN 'bit' THEN {bit_opclass} ELSE storage || {opclass} END;
        expression := CASE storage WHEN parts[1] THEN quote_ident({column})
            WHEN 'halfvec' THEN format('(%I::halfvec(%s))', {column}, parts[2])
            ELSE format('(binary_quantize(%I)::bit(%s))', {column}, parts[2]) END;
        """,
        type=type_of(regclass(op.schema, op.table), literal(op.column)),
        pattern=literal(f"^{PATTERN}$"),
        no_vector=refuse(
            literal(f"cannot index {op.table}.{op.column}: it is ")
            + " || actual || "
            + literal("; expected vector(n) or halfvec(n)"),
            literal("alembic upgrade head"),
        ),
        storage=literal(op.storage)
        if op.storage
        else fill(
            """
            CASE WHEN parts[2]::integer > {halfvec_limit} THEN 'bit'
                WHEN parts[2]::integer > {vector_limit} THEN 'halfvec' ELSE parts[1] END
            """,
            halfvec_limit=str(limits["halfvec"]),
            vector_limit=str(limits["vector"]),
        ),
        halfvec_limit=str(limits["halfvec"]),
        too_long=refuse(
            literal("pgvector cannot index ") + " || actual || " + literal(" as halfvec; it can as bit"),
            literal('storage="bit", or none, which takes that'),
        ),
        bit_opclass=literal(BIT_OPCLASS),
        opclass=literal(f"_{op.distance}_ops"),
        column=literal(op.column),
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
                AND CASE storage WHEN parts[1] THEN i.indkey[0] = a.attnum
                    WHEN 'halfvec' THEN pg_get_expr(i.indexprs, i.indrelid)
                        = format('(%I)::%s', a.attname, format_type(o.opcintype, a.atttypmod))
                    ELSE starts_with(
                        reverse(pg_get_expr(i.indexprs, i.indrelid)),
                        reverse(format('binary_quantize(%I))::bit(%s)', a.attname, a.atttypmod))
                    ) END
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
        wait=wait("other", "other::regclass"),
        valid=valid("other"),
        say=say(
            literal(f"{op.name}: index ")
            + " || other::regclass || "
            + literal(" does the same and is used instead; a downgrade leaves it")
        ),
    )
