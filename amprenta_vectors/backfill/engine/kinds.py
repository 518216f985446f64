"""The kinds of runs: to fill what is empty, to replace, to reconcile with the source, to retry what was quarantined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy.engine import Connection

from amprenta_vectors.backends.protocol import CastSource
from amprenta_vectors.backfill.engine.hold import WorkLeft
from amprenta_vectors.backfill.engine.keys import Keys
from amprenta_vectors.backfill.limits.meter import metered
from amprenta_vectors.backfill.progress import plans, quarantine
from amprenta_vectors.backfill.progress.keys_from import KeysFrom, Side, all_of, retry_of
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.progress.seen import Gone
from amprenta_vectors.backfill.reconcile.dry_run import keys_to_reconcile
from amprenta_vectors.backfill.reconcile.gone import GoneRows
from amprenta_vectors.backfill.reconcile.reconciler import Reconciler
from amprenta_vectors.backfill.writing.casting import CastSink
from amprenta_vectors.backfill.writing.replacing import ReplacingSink
from amprenta_vectors.backfill.writing.sink import Sink, Writer
from amprenta_vectors.schema.row_keys import EmptyRows

if TYPE_CHECKING:
    from amprenta_vectors.backfill.engine.context import RunContext
    from amprenta_vectors.backfill.engine.job import Job, Kind


@dataclass(frozen=True)
class Fill:
    """A run that fills rows without an embedding: the table's, those in the source's list, or those with given keys."""

    keys_from: KeysFrom = "table"
    given: Sequence[str] = ()
    """Source keys; a run that was started with them stores them itself from then on."""
    replaces = False
    most_quarantined = 0.0

    def open_keys(self, context: RunContext) -> Keys:
        """Return the listing of the rows without an embedding, or the source's list."""
        job = context.job
        return EmptyRows(context.engine, job.slice, *job.wanted) if self.keys_from == "table" else job.source

    def open_writer(self, context: RunContext) -> Writer | CastSink:
        """Return the writer that never touches an existing value."""
        job = context.job
        if isinstance(job.source, CastSource):
            return CastSink(job.slice, job.source, job.model)
        return Sink(
            job.slice,
            job.model,
            insert=job.inserts,
            computed=job.source.description.computed,
            record_for=context.run.id if job.records_inserts else None,
        )

    def plan_known(self, connection: Connection, job: Job, run: Run) -> bool:
        """Store the batches of the given keys."""
        if self.keys_from != "given":
            return False
        plans.plan_given(connection, run.id, self.given, job.batch_size)
        return True

    def finds_nothing(self, connection: Connection, job: Job, ended: Run) -> bool:
        """Return whether no row is empty; a run over the source's list assumes that nothing came since."""
        if self.keys_from == "table":
            return not job.slice.has_empty(connection, *job.wanted)
        return self.keys_from == "source" and ended.keys_from == "source" and ended.row_limit is None

    def expected_keys(self, connection: Connection, job: Job) -> int | None:
        """Return how many rows are empty, or how many the source says that it has."""
        if self.keys_from == "table":
            return job.slice.count_empty(connection, *job.wanted)
        return job.source.description.count if self.keys_from == "source" else None

    def conclude(self, context: RunContext, until_free: Callable[[], None]) -> Gone | None:
        """Return None: nothing is left to do."""
        return None


@dataclass(frozen=True)
class Replace(Fill):
    """A run that gives every row of its keys the source's value, whatever the row has."""

    replaces = True

    def open_writer(self, context: RunContext) -> Writer:
        """Return the writer that writes over another value."""
        job = context.job
        computed = job.source.description.computed
        return ReplacingSink(job.slice, job.model, context.outbox, insert=job.inserts, computed=computed)

    def finds_nothing(self, connection: Connection, job: Job, ended: Run) -> bool:
        """Return False: values may have changed."""
        return False


@dataclass(frozen=True)
class Retry(Fill):
    """A run that retries what runs of one side have quarantined, for ``reason`` or any, and writes as those did."""

    reason: str | None = None
    replaces: bool = False
    most_quarantined = 1.0

    def open_writer(self, context: RunContext) -> Writer | CastSink:
        """Return the writer that the earlier runs wrote with."""
        return Replace.open_writer(self, context) if self.replaces else super().open_writer(context)  # type: ignore[arg-type]

    def plan_known(self, connection: Connection, job: Job, run: Run) -> bool:
        """Store the batches of the quarantined keys."""
        side: Side = "table" if self.keys_from == retry_of("table") else "source"
        quarantine.plan_retry(connection, run, all_of(side), self.reason, job.batch_size)
        return True

    def finds_nothing(self, connection: Connection, job: Job, ended: Run) -> bool:
        """Return False: what failed may succeed by now."""
        return False

    def expected_keys(self, connection: Connection, job: Job) -> int | None:
        """Return None: they are counted when they are planned."""
        return None


@dataclass(frozen=True)
class Reconcile(Fill):
    """A run that brings the table to what the source has now; ``delete`` deletes rows that it no longer has."""

    keys_from: KeysFrom = "reconcile"
    delete: bool = False

    def open_keys(self, context: RunContext) -> Keys:
        """Return all keys of the source; if it embeds texts, the keys whose text is new or has changed."""
        return keys_to_reconcile(context.engine, context.job)

    def open_writer(self, context: RunContext) -> Writer:
        """Return the writer that leaves alone what was changed here."""
        job = context.job
        return Reconciler(
            job.slice,
            job.model,
            context.outbox,
            insert=job.inserts,
            computed=job.source.description.computed,
            record_for=context.run.id if job.records_inserts else None,
        )

    def finds_nothing(self, connection: Connection, job: Job, ended: Run) -> bool:
        """Return False: the source may have changed."""
        return False

    def expected_keys(self, connection: Connection, job: Job) -> int | None:
        """Return how many the source says that it has; None if it embeds texts, of which only changed ones count."""
        described = job.source.description
        return None if described.computed else described.count

    def conclude(self, context: RunContext, until_free: Callable[[], None]) -> Gone | None:
        """List, or delete, the rows that the source no longer has; return None if the rows are their own source."""
        if context.job.source.description.computed:
            return None
        until_free()
        if context.final_retry.database("looking for work", context.has_work):
            raise WorkLeft
        with metered(context.job.source, context.open_meter()):
            return GoneRows(context, until_free).settle(delete=self.delete)


def open_kind(
    keys_from: KeysFrom,
    *,
    replace: bool = False,
    delete: bool = False,
    given: Sequence[str] = (),
    reason: str | None = None,
) -> Kind:
    """Return the kind of a run, as its row records it or a person asks for it."""
    if keys_from == "reconcile":
        return Reconcile(delete=delete)
    if keys_from in (retry_of("table"), retry_of("source")):
        return Retry(keys_from, reason=reason, replaces=replace)
    return (Replace if replace else Fill)(keys_from, given)
