"""The operations on backfills as text for psql; what `offline` says of the others holds for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from alembic.operations import Operations

from amprenta_vectors.ddl.psql import do, emit, emit_do, emit_unlimited, fill, interval, literal, refuse, regclass, sql

if TYPE_CHECKING:
    from amprenta_vectors.ddl.backfill import CancelBackfillOp
    from amprenta_vectors.ddl.gate import EnsureBackfillFinishedOp


def queue_backfill(operations: Operations, queue: sa.TextClause) -> None:
    """Write the statement as it is: it queues a run where none waits or runs."""
    emit(operations, sql(queue))


def cancel_backfill(
    operations: Operations, op: CancelBackfillOp, cancel: sa.TextClause, held: sa.TextClause, drain_seconds: float
) -> None:
    """Cancel in a transaction of its own, then wait for workers, holding no snapshot in anybody's way."""
    wait = fill(
        """
        WHILE {held} > 0 LOOP
            IF clock_timestamp() > deadline THEN
                {refuse}
            END IF;
            COMMIT;
            PERFORM pg_sleep(0.5);
        END LOOP;
        """,
        held=fill("({query})", query=sql(held)),
        refuse=refuse(
            literal(f"{op.target}: a backfill worker still holds a batch after {drain_seconds:.0f} s"),
            literal("stop the backfill processes, then run the downgrade again"),
        ),
    )
    deadline = fill("timestamptz := clock_timestamp() + {drain}", drain=interval(drain_seconds))
    emit_unlimited(operations, sql(cancel), do(wait, deadline=deadline))


def ensure_backfill_finished(
    operations: Operations, op: EnsureBackfillFinishedOp, target: str, live: sa.TextClause, aside: sa.TextClause
) -> None:
    """Stop the script where the column is not complete; ``live`` and ``aside`` are what `check_finished` asks."""
    table = sa.table(op.table, schema=op.schema)
    counted = sa.select(sa.func.count(), sa.func.count(sa.column(op.column))).select_from(table)
    body = fill(
        """
        IF {relation} IS NULL THEN
            {no_table}
        END IF;
        EXECUTE {counted} INTO total, filled;
        IF total = 0 THEN
            RETURN;
        END IF;
        IF to_regclass('migration_run') IS NOT NULL THEN
            FOR name, state IN {live} LOOP
                reasons := reasons || format('run %s is %s', name, state);
                excuse := '';
            END LOOP;
            FOR name, number IN {aside} LOOP
                IF name = ANY ({allow}) THEN
                    excused := excused + number;
                ELSE
                    reasons := reasons || format('%s rows were set aside: %s', to_char(number, {digits}), name);
                END IF;
            END LOOP;
        END IF;
        IF total - filled > excused THEN
            reasons := format(
                '%s of %s rows have no value', to_char(total - filled, {digits}), to_char(total, {digits})
            ) || reasons;
        END IF;
        IF excused = 0 THEN
            excuse := '';
        END IF;
        IF reasons <> '{}' THEN
            {not_complete}
        END IF;
        """,
        relation=regclass(op.schema, op.table),
        no_table=refuse(literal(f"table {op.table} does not exist"), literal("alembic upgrade head")),
        counted=literal(sql(counted)),
        live=sql(live),
        aside=sql(aside),
        allow=literal(list(op.allow)),
        digits=literal("FM999,999,999,999,999"),
        not_complete=refuse(
            literal(f"{target} is not complete: ")
            + " || array_to_string(reasons, '; ') || replace(excuse, '%', to_char(excused, 'FM999,999,999,999,999'))",
            literal("amprenta-vectors backfill --resume, then try again"),
        ),
    )
    excuse = literal(f"; % NULL are excused by {', '.join(op.allow)}")
    emit_do(
        operations,
        body,
        total="bigint",
        filled="bigint",
        name="text",
        state="text",
        number="bigint",
        excused="bigint := 0",
        reasons="text[] := '{}'",
        excuse=f"text := {excuse}",
    )
