"""``op.ensure_backfill_finished()``: the gate before a contract, for revisions of the application's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from alembic.operations.ops import ModifyTableOps
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.backfill import target_of
from amprenta_vectors.ddl.catalogue import Catalogue, refuse_unless
from amprenta_vectors.ddl.steps import Done, Step, SteppedOp, execute, operation
from amprenta_vectors.errors import NotUpgraded, RunConflict
from amprenta_vectors.pg.names import compose, literal, qualified
from amprenta_vectors.pg.tables import table_of

_LIVE_RUNS = sa.text("""\
SELECT id, state FROM migration_run
WHERE target = :target AND source IS NOT NULL AND state NOT IN ('finished', 'failed', 'cancelled')
ORDER BY id""")

# Of a slice that runs wrote to, and that no whole comparison has verified since, the last run.
_UNVERIFIED = sa.text("""\
SELECT max(r.id) AS id FROM migration_run r
WHERE r.target = :target AND r.state = 'finished' AND r.source IS NOT NULL
GROUP BY r.scope
HAVING bool_or(EXISTS (SELECT FROM migration_progress p WHERE p.run_id = r.id AND p.rows_written > 0))
   AND bool_and(r.verified_at IS NULL)
ORDER BY 1""")

# A row that a reconcile lists has a value, and a good one: a person decides whose is to count.
_QUARANTINED = sa.text("""\
SELECT e.reason, count(DISTINCT (r.scope, e.key)) AS rows
FROM migration_quarantine e JOIN migration_run r ON r.id = e.run_id
WHERE r.target = :target AND e.resolved_at IS NULL AND e.reason NOT IN ('changed_here', 'gone_at_source')
GROUP BY e.reason ORDER BY e.reason""")


# A row that a store emptied is to have no value until its application writes it again: told by the version that was
# emptied, and by the row's content where the table was rewritten or restored since.
_EMPTY = """\
SELECT count(*) FROM {table} t
WHERE t.{column} IS NULL AND NOT EXISTS (
    SELECT FROM vector_row_mark m
    WHERE m.target = :target AND m.mark = 'emptied' AND m.row_at = t.ctid::text AND m.written_by = t.xmin::text
      AND m.file_node = pg_relation_filenode(t.tableoid)
) AND NOT EXISTS (
    SELECT FROM vector_row_mark m
    WHERE m.target = :target AND m.mark = 'emptied' AND m.file_node <> pg_relation_filenode(t.tableoid)
      AND m.digest = md5((to_jsonb(t) - m.digest_without)::text)
)"""

_COMPLETE = """\
NOT EXISTS ({live})
    AND NOT EXISTS ({unverified})
    AND NOT EXISTS (SELECT FROM ({aside}) q WHERE q.reason NOT IN ({allowed}))
    AND ({empty}) <= (
        SELECT coalesce(sum(q.rows), 0) FROM ({aside}) q WHERE q.reason IN ({allowed}))"""


@operation("ensure_backfill_finished")
@dataclass
class EnsureBackfillFinishedOp(SteppedOp):
    """Refuse to continue while an embedding column is not complete."""

    table: str
    column: str
    allow: Sequence[str] = ()
    schema: str | None = None

    @classmethod
    def ensure_backfill_finished(
        cls,
        operations: Operations,
        table: str,
        column: str,
        *,
        allow: Sequence[str] = (),
        schema: str | None = None,
    ) -> None:
        """Raise `RunConflict` while ``table.column`` is not complete.

        It is not while a run into it is live, a value is NULL, a row was quarantined, or what runs wrote has not been
        verified since. A column that no run filled need not be verified. Rows quarantined for a reason in ``allow`` may
        stay NULL, and what a store emptied is to be. An empty table passes. Its reverse does nothing.
        """
        operations.invoke(cls(table, column, allow, schema))

    def reverse(self) -> MigrateOperation:
        """Return an operation that does nothing: a downgrade needs no complete column."""
        return ModifyTableOps(self.table, [], schema=self.schema)

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return that the column is complete. Raises `RunConflict` if it is not.

        Without a database it returns the step that checks it.
        """
        target = target_of(self.table, self.column, self.schema)
        if catalogue.connection is None:
            return Step(f"check that {target} is complete", self._write_check, last=True)
        filled = check_finished(catalogue.connection, self.table, self.column, allow=self.allow, schema=self.schema)
        return Done(f"{target} is complete: {filled:,} rows have a value", qualified(self.table, self.schema))

    def _write_check(self, operations: Operations) -> None:
        """Write a check that stops a script if the column is not complete."""
        target = target_of(self.table, self.column, self.schema)
        condition = compose(
            _COMPLETE,
            live=str(_LIVE_RUNS),
            unverified=str(_UNVERIFIED),
            aside=str(_QUARANTINED),
            empty=_empty(self.table, self.column, self.schema),
            allowed=", ".join(map(literal, self.allow)) or "NULL",
        )
        execute(operations, refuse_unless(condition.replace(":target", literal(target)), f"{target} is complete"))


def check_finished(
    connection: Connection, table: str, column: str, *, allow: Sequence[str] = (), schema: str | None = None
) -> int:
    """Return how many rows have a value. Raises `RunConflict` with every reason why the column is not complete.

    A NULL is excused by a row quarantined for a reason in ``allow``: one each. Raises `NotUpgraded` if the table or the
    column does not exist.
    """
    found = table_of(connection, table, schema)
    if found is None:
        raise NotUpgraded(f"table {table} does not exist", hint="alembic upgrade head")
    if column not in found.columns:
        raise NotUpgraded(f"table {table} has no column {column}", hint="alembic upgrade head")
    target = target_of(table, column, schema)
    counted = sa.select(sa.func.count(), sa.func.count(sa.column(column))).select_from(sa.table(table, schema=schema))
    rows, filled = connection.execute(counted).one()
    if not rows:
        return 0
    reasons, live = [], []
    empty = rows - filled
    excused = 0
    if table_of(connection, "migration_run") is not None:
        live = _live_runs(connection, target)
        aside = _quarantined(connection, target)
        excused = sum(number for reason, number in aside.items() if reason in allow)
        reasons += [f"run {number} is {state}" for number, state in live]
        reasons += [f"what run {number} left is not verified" for number in unverified_runs(connection, target)]
        reasons += [f"{number:,} rows were quarantined: {name}" for name, number in aside.items() if name not in allow]
    if table_of(connection, "vector_row_mark") is not None:
        counted_empty = sa.text(_empty(table, column, schema))
        empty = connection.execute(counted_empty, {"target": target}).scalar_one()
    if empty > excused:
        reasons.insert(0, f"{empty:,} of {rows:,} rows have no value")
    if reasons:
        mend = "amprenta-vectors backfill --resume"
        excuse = "" if live or not excused else f"; {excused:,} NULL are excused by {', '.join(allow)}"
        raise RunConflict(f"{target} is not complete: {'; '.join(reasons)}{excuse}", hint=f"{mend}, then try again")
    return int(filled)


def unverified_runs(connection: Connection, target: str) -> list[int]:
    """Return the last run into each slice that runs wrote to and that no whole comparison has verified since."""
    return list(connection.execute(_UNVERIFIED.bindparams(target=target)).scalars())


def _empty(table: str, column: str, schema: str | None) -> str:
    """Return the query of how many rows lack a value that they are to have, for a vector table ``:target``."""
    return compose(_EMPTY, table=qualified(table, schema), column=qualified(column))


def _live_runs(connection: Connection, target: str) -> list[tuple[int, str]]:
    """Return the runs that were started and have not ended; one that is only queued writes nothing."""
    rows = connection.execute(_LIVE_RUNS.bindparams(target=target))
    return [(row.id, row.state) for row in rows]


def _quarantined(connection: Connection, target: str) -> dict[str, int]:
    rows = connection.execute(_QUARANTINED.bindparams(target=target))
    return {row.reason: row.rows for row in rows}
