"""The workers of a backfill, as the operations meet them: the batches they hold, and the wait until they hold none."""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import Fact
from amprenta_vectors.ddl.steps import Step
from amprenta_vectors.errors import AmprentaError
from amprenta_vectors.pg.tables import table_of

DRAIN_SECONDS = 60.0
POLL_SECONDS = 0.5

# Of cancelled runs only: a run that goes on is its starter's affair, and writes no more into a retired column.
_HELD = sa.text("""\
SELECT count(*) FROM migration_progress p JOIN migration_run r ON r.id = p.run_id
WHERE r.target = :target AND r.state = 'cancelled' AND p.status = 'running'
  AND p.lease_expires_at > clock_timestamp()""")


@dataclass(frozen=True)
class LeasesFact(Fact[int]):
    """How many batches of cancelled runs into a column (``table.column``) are held by workers."""

    fleeting = True
    target: str

    def find(self, connection: Connection) -> int:
        """Return how many they are; 0 if there is no record of runs."""
        if table_of(connection, "migration_progress") is None:
            return 0
        held: int = connection.execute(_HELD, {"target": self.target}).scalar_one()
        return held


def wait_for_workers(leases: LeasesFact) -> Step:
    """Return the step that waits until no worker holds a batch; it raises `AmprentaError` after 60 seconds."""

    def wait(operations: Operations) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        while leases.find(operations.get_bind()):
            if time.monotonic() > deadline:
                raise AmprentaError(
                    f"{leases.target}: a backfill worker still holds a batch after {DRAIN_SECONDS:.0f} s",
                    hint="stop the backfill processes, then run the downgrade again",
                )
            time.sleep(POLL_SECONDS)

    return Step(
        f"wait until no worker holds a batch of {leases.target}", wait, {leases: 0}, duration="a minute", place="beside"
    )
