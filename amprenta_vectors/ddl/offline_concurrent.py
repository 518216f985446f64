"""An index built concurrently by a script for psql, whatever an interrupted build or another session left.

A concurrent build can stand neither in a block nor in a transaction. So a block looks at the database, waits where it
must, and leaves what there is to do in settings of the session; psql's ``\\gexec`` then executes that.
"""

from __future__ import annotations

from collections.abc import Mapping

from alembic.operations import Operations

from amprenta_vectors.ddl.catalogue import MADE, building_name, qualified
from amprenta_vectors.ddl.psql import ddl, do, emit_unlimited, fill, literal, regclass, say


def build_concurrently(
    operations: Operations,
    name: str,
    schema: str | None,
    *,
    first: str = "",
    use_another: str,
    statement: str,
    variables: Mapping[str, str],
) -> None:
    """Build index ``name`` unless it is there or is being built; repair what a killed build left.

    ``statement``, an expression, builds it under its `building_name`. ``first`` and ``use_another`` are statements that
    return where nothing is to be built; ``variables`` are theirs.
    """
    building = building_name(name)
    own, unfinished = regclass(schema, name), regclass(schema, building)
    look = fill(
        """
        PERFORM set_config('amprenta.create', '', false), set_config('amprenta.invalid', '', false);
        {first}
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
        first=first,
        wait_for_own=wait(own, literal(name)),
        own_is_valid=valid(own),
        own=own,
        drop_own=_drop_first(own, literal(name)),
        use_another=use_another,
        wait_for_unfinished=wait(unfinished, literal(building)),
        unfinished=unfinished,
        unfinished_is_valid=valid(unfinished),
        drop_unfinished=_drop_first(unfinished, literal(building)),
        statement=statement,
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
        name=qualified(building, schema),
        made=literal(MADE),
        rename=ddl(operations, lambda alembic: alembic.rename_table(building, name, schema=schema)),
    )
    emit_unlimited(
        operations, do(look, **variables, builder="integer", said="integer"), drop_invalid, build, do(finish)
    )


def drop_unfinished(operations: Operations, name: str, schema: str | None) -> None:
    """Drop what an interrupted build of index ``name`` left."""
    building = building_name(name)
    unfinished = regclass(schema, building)
    drop = fill(
        r"SELECT {drop} WHERE {unfinished} IS NOT NULL AND NOT {valid} \gexec",
        drop=literal(f"DROP INDEX CONCURRENTLY {qualified(building, schema)}"),
        unfinished=unfinished,
        valid=valid(unfinished),
    )
    waiting = do(wait(unfinished, literal(building)), builder="integer", said="integer")
    emit_unlimited(operations, waiting, drop)


def valid(index: str) -> str:
    """Whether queries can use an index, an expression."""
    return fill("EXISTS (SELECT FROM pg_index WHERE indexrelid = {index} AND indisvalid)", index=index)


def wait(index: str, name: str) -> str:
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
