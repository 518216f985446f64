"""``op.queue_backfill()`` and its reverse: the frozen statements by which revisions speak to the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import Catalogue, ColumnFact, Fact
from amprenta_vectors.ddl.model_facts import AddedColumnsFact
from amprenta_vectors.ddl.options import configured_dimension
from amprenta_vectors.ddl.steps import Done, Step, SteppedOp, execute, operation
from amprenta_vectors.errors import SchemaMismatch
from amprenta_vectors.hints import backfill_command
from amprenta_vectors.pg.names import compose, literal, qualified
from amprenta_vectors.pg.tables import Column, table_of

_NUMBER = sa.text("""
    SELECT count(*) FROM migration_run WHERE target = :target AND state NOT IN ('finished', 'failed', 'cancelled')
""")
_QUEUE = """\
INSERT INTO migration_run (vector_table, target, state, desired_state)
VALUES ({name}, {target}, 'planned', 'running')"""
_CANCEL = """\
UPDATE migration_run SET desired_state = 'cancelled', state = 'cancelled', finished_at = clock_timestamp()
WHERE target = {target} AND state NOT IN ('finished', 'failed', 'cancelled')"""


def target_of(table: str, column: str, schema: str | None) -> str:
    """Return how a run names the column that it fills."""
    return ".".join(part for part in (schema, table, column) if part)


@dataclass(frozen=True)
class UnfinishedRuns(Fact[int]):
    """How many runs into a column (``table.column``) are queued or have started and not ended."""

    target: str

    def find(self, connection: Connection) -> int:
        """Return how many they are; 0 if there is no record of runs."""
        if table_of(connection, "migration_run") is None:
            return 0
        number: int = connection.execute(_NUMBER, {"target": self.target}).scalar_one()
        return number


@dataclass
class BackfillOp(SteppedOp):
    """An operation on the runs into a column."""

    table: str
    column: str
    vector_table: str | None = None
    schema: str | None = None

    def target(self, options: Mapping[str, Any]) -> str:
        """Return how a run names the column: with the schema in which our own section's table was adopted."""
        return target_of(self.table, self.column, self.schema or options.get("schema"))


@operation("queue_backfill")
@dataclass
class QueueBackfillOp(BackfillOp):
    """Record that an embedding column waits to be filled; no source is asked and nothing starts."""

    @classmethod
    def queue_backfill(
        cls,
        operations: Operations,
        table: str,
        column: str,
        *,
        vector_table: str | None = None,
        schema: str | None = None,
    ) -> None:
        """Queue a run into ``table.column``, unless one is unfinished.

        ``vector_table`` is the table's name in ``amprenta.toml``, where that is another. Raises `SchemaMismatch` where
        the column is not there.
        """
        operations.invoke(cls(table, column, vector_table, schema))

    def reverse(self) -> MigrateOperation:
        """Return the operation that undoes this one."""
        return CancelBackfillOp(self.table, self.column, self.vector_table, self.schema)

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the step that records a run, unless one is unfinished."""
        target = self.target(options)
        column = ColumnFact(self.table, self.column, self.schema)
        dimension = configured_dimension(options)
        if catalogue.ask(column, Column(f"vector({dimension})" if dimension else "")) is None:
            catalogue.require_table(self.table, self.schema)
            raise SchemaMismatch(
                f"there is no column {target} that a backfill could fill",
                hint=f"op.add_vector_column({self.table!r}, {self.column!r}, …) in an earlier revision",
            )
        fact, name = UnfinishedRuns(target), self.vector_table or self.table
        if catalogue.ask(fact, 0):
            return Done(f"a backfill of {target} is queued or has begun")
        command = f"{backfill_command()} --resume"
        if name != "rag_chunks":  # what the command takes where none is named
            command = f"AMPRENTA_TABLE={name} {command}"
        statement = compose(_QUEUE, name=literal(name), target=literal(target))
        return Step(
            f"queue a backfill of {target}",
            lambda operations: execute(operations, statement),
            {fact: 1},
            object=qualified(self.table, self.schema),
            said=f"{target}: a backfill is queued; start it with: {command}",
        )


@operation("cancel_backfill")
@dataclass
class CancelBackfillOp(BackfillOp):
    """Cancel every unfinished run into a column; its workers stop with the batch that they have."""

    @classmethod
    def cancel_backfill(
        cls,
        operations: Operations,
        table: str,
        column: str,
        *,
        vector_table: str | None = None,
        schema: str | None = None,
    ) -> None:
        """Cancel the runs into ``table.column``; dropping the column waits until no worker holds a batch of one."""
        operations.invoke(cls(table, column, vector_table, schema))

    def reverse(self) -> MigrateOperation:
        """Return the operation that undoes this one."""
        return QueueBackfillOp(self.table, self.column, self.vector_table, self.schema)

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the step that cancels unfinished runs, into the columns of the table's other models too."""
        own = self.target(options)
        added = catalogue.ask(AddedColumnsFact(own, self.table, self.column, self.schema), {})
        schema = self.schema or options.get("schema")
        for target in (own, *(target_of(self.table, column, schema) for column in added)):
            unfinished = catalogue.ask(UnfinishedRuns(target), 1 if target == own else 0)
            if unfinished:
                return self._cancel_step(target, unfinished)
        return Done(f"no backfill of {own} is unfinished")

    def _cancel_step(self, target: str, unfinished: int) -> Step:
        statement = compose(_CANCEL, target=literal(target))
        return Step(
            f"cancel {unfinished} backfill run(s) of {target}",
            lambda operations: execute(operations, statement),
            {UnfinishedRuns(target): 0},
            object=qualified(self.table, self.schema),
            said=f"{target}: {unfinished} backfill run(s) cancelled",
        )
