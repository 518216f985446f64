"""``op.queue_backfill()`` and its reverse: the frozen statements by which revisions speak to the engine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations

from amprenta_vectors.ddl import offline_backfill
from amprenta_vectors.ddl.catalogue import connection_of
from amprenta_vectors.ddl.options import log
from amprenta_vectors.ddl.plan import Step
from amprenta_vectors.errors import AmprentaError

DRAIN_SECONDS = 60.0
_POLL_SECONDS = 0.5

_QUEUE = sa.text("""\
INSERT INTO migration_run (vector_table, target, state, desired_state)
SELECT :vector_table, :target, 'planned', 'running'
WHERE NOT EXISTS (
    SELECT 1 FROM migration_run
    WHERE target = :target AND state NOT IN ('finished', 'failed', 'cancelled')
)""")

_CANCEL = sa.text("""\
UPDATE migration_run
SET desired_state = 'cancelled', state = 'cancelled', finished_at = clock_timestamp()
WHERE target = :target AND state NOT IN ('finished', 'failed', 'cancelled')""")

# Of every run, not only those cancelled just now: this may be the second try after the first timed out.
_HELD = sa.text("""\
SELECT count(*) FROM migration_progress p JOIN migration_run r ON r.id = p.run_id
WHERE r.target = :target AND p.status = 'running' AND p.lease_expires_at > clock_timestamp()""")


@Operations.register_operation("queue_backfill")
@dataclass
class QueueBackfillOp(MigrateOperation):
    """Record that an embedding column waits to be filled; no source is asked and nothing starts."""

    vector_table: str
    target: str

    @classmethod
    def queue_backfill(cls, operations: Operations, vector_table: str, target: str) -> None:
        """Queue a run for ``vector_table``, whose embedding column is ``target`` (``table.column``)."""
        operations.invoke(cls(vector_table, target))

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one."""
        return CancelBackfillOp(self.vector_table, self.target)

    def plan(self, operations: Operations) -> list[Step]:
        """What this would do now."""
        return [Step(f"queue a backfill of {self.target}, unless one is unfinished", lock="ROW EXCLUSIVE")]

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("queue_backfill", self.vector_table, self.target)


@Operations.register_operation("cancel_backfill")
@dataclass
class CancelBackfillOp(MigrateOperation):
    """Cancel every unfinished run into a column and wait until no worker holds a batch of it."""

    vector_table: str
    target: str

    @classmethod
    def cancel_backfill(cls, operations: Operations, vector_table: str, target: str) -> None:
        """Cancel the runs into ``target``. Raises `AmprentaError` where a worker does not let go in 60 seconds."""
        operations.invoke(cls(vector_table, target))

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one."""
        return QueueBackfillOp(self.vector_table, self.target)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("cancel_backfill", self.vector_table, self.target)


@Operations.implementation_for(QueueBackfillOp)
def _queue(operations: Operations, op: QueueBackfillOp) -> None:
    queue = _QUEUE.bindparams(vector_table=op.vector_table, target=op.target)
    if operations.get_context().as_sql:
        offline_backfill.queue_backfill(operations, queue)
        return
    queued = connection_of(operations).execute(queue)
    if queued.rowcount:
        command = "python scripts/backfill.py --resume"
        if op.vector_table != "rag_chunks":  # what the command takes where none is named
            command = f"AMPRENTA_TABLE={op.vector_table} {command}"
        log.info("%s: a backfill is queued; start it with: %s", op.target, command)


@Operations.implementation_for(CancelBackfillOp)
def _cancel(operations: Operations, op: CancelBackfillOp) -> None:
    """Cancel in a transaction of its own, so that workers see it while this one waits for them."""
    cancel, held = _CANCEL.bindparams(target=op.target), _HELD.bindparams(target=op.target)
    if operations.get_context().as_sql:
        offline_backfill.cancel_backfill(operations, op, cancel, held, DRAIN_SECONDS)
        return
    with operations.get_context().autocommit_block():
        connection = connection_of(operations)
        cancelled = connection.execute(cancel).rowcount
        if cancelled:
            log.info("%s: %d backfill run(s) cancelled", op.target, cancelled)
        deadline = time.monotonic() + DRAIN_SECONDS
        while connection.execute(held).scalar_one():
            if time.monotonic() > deadline:
                raise AmprentaError(
                    f"{op.target}: a backfill worker still holds a batch after {DRAIN_SECONDS:.0f} s",
                    hint="stop the backfill processes, then run the downgrade again",
                )
            time.sleep(_POLL_SECONDS)
