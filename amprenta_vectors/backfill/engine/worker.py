"""One worker: claim a batch, fetch it outside any transaction, write it and its checkpoint inside one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.database.load_gate import Gate
from amprenta_vectors.backfill.engine.context import RunContext
from amprenta_vectors.backfill.engine.fetching import fetch_all
from amprenta_vectors.backfill.engine.hold import Held
from amprenta_vectors.backfill.engine.sizing import SMALLEST
from amprenta_vectors.backfill.progress import batches, sizes
from amprenta_vectors.backfill.progress.batches import Batch, Outcome
from amprenta_vectors.backfill.writing.casting import CastSink
from amprenta_vectors.backfill.writing.sink import Writer
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.errors import LeaseLost, RowError, SourceError, TimedOut
from amprenta_vectors.reasons import LEFT_ALONE, STILL_WRITTEN, Reason
from amprenta_vectors.schema.keymaps import look_up, store_keys

# Not waiting for the disk is safe here: a crash of the server takes a batch's rows and its `done` together, and the
# batch is done again. That the run is finished is committed in full, and with it all that came before. Without the
# other joins, only the unique index keeps a write from reading the whole table. A deferred constraint would refuse the
# batch as a whole, at its commit.
_TRANSACTION = sa.text("""
    SELECT set_config('application_name', :tag, true),
           set_config('lock_timeout', '30s', true),
           set_config('statement_timeout', '10min', true),
           set_config('idle_in_transaction_session_timeout', '1min', true),
           set_config('synchronous_commit', 'off', true),
           set_config('enable_hashjoin', 'off', true),
           set_config('enable_mergejoin', 'off', true);
    SET CONSTRAINTS ALL IMMEDIATE
""")

_GIVE_WAY = sa.text("SELECT set_config('lock_timeout', '800ms', true)")


@dataclass(frozen=True)
class Done:
    """A batch that is written: its ``outcome``, what stands against rows, and the target keys that were ``seen``."""

    outcome: Outcome
    errors: Sequence[RowError]
    seen: Sequence[str] = ()


@dataclass(frozen=True)
class Prepared:
    """A fetched batch: ``rows`` to write, errors of rows to quarantine (``aside``), and the keys that the source has.

    ``seen`` lists the target keys of all that the source has, including what cannot be written, each key part after
    part; it is empty if the writer does not keep them.
    """

    rows: VectorBatch
    aside: list[RowError]
    seen: list[str]


class Worker:
    """Takes batches of a run until none is left or the process ends; `run` is for several threads at once."""

    def __init__(
        self,
        context: RunContext,
        writer: Writer | CastSink,
        gate: Gate,
        on_done: Callable[[Batch, Outcome], None],
    ) -> None:
        self._context = context
        self._slice = context.job.slice
        self._hold = context.hold
        self._writer = writer
        self._gate = gate
        self._on_done = on_done
        self._in_hand: dict[int, Batch] = {}
        self._nothing_left = threading.Event()

    def run(self, number: int) -> None:
        """Work as the worker of that number, from 0, until the run has nothing left.

        Waits while the run is held, the throttle says to wait, or fewer workers than ``number`` + 1 are wanted. A
        batch in hand is completed, or given back, before this returns.
        """
        bell, poll_seconds = self._hold.bell, self._context.job.poll_seconds
        bell.wait_for_work(number, poll_seconds)
        while not (self._hold.ending.is_set() or self._nothing_left.is_set()):
            rung = bell.count
            try:
                busy = self._is_wanted(number) and self._may_claim() and self._turn()
            except Held:
                busy = False
            if not (busy or self._nothing_left.is_set()):
                bell.wait(rung, poll_seconds)

    def _is_wanted(self, number: int) -> bool:
        return self._hold.may_begin and number < self._hold.limits.get("workers", number + 1)

    def _may_claim(self) -> bool:
        return self._context.retry.database("looking at the database's load", self._gate.is_open)

    def _turn(self) -> bool:
        """Claim a batch and do it; return whether there was one."""
        batch = self._context.retry.database("claiming a batch", self._claim)
        if batch is None:
            if not self._context.retry.database("looking for work", self._context.has_work):
                self._nothing_left.set()
                self._hold.bell.ring()
            return False
        try:
            self._process(batch)
        finally:
            # If it was given back meanwhile, another thread of this process may have it in hand by now.
            if self._in_hand.get(batch.number) is batch:
                self._in_hand.pop(batch.number, None)
        return True

    def begin_again(self) -> None:
        """Let `run` look for work once more, after nothing was left."""
        self._nothing_left.clear()

    @property
    def busy(self) -> bool:
        """Whether these workers have a batch in hand."""
        return bool(self._in_hand)

    def give_up(self) -> None:
        """Give back every batch in hand and end its session; a thread that still works at one finds its lease lost."""
        for batch in list(self._in_hand.values()):
            if self._in_hand.pop(batch.number, None) is None:
                continue
            with self._context.transaction() as connection:
                batches.end_session(connection, self._context.owner, batch)
                batches.release(connection, self._context.run.id, self._context.owner, batch)

    def renew(self) -> None:
        """Renew the leases of the batches that these workers have in hand, and the lease of their process's planner."""
        in_hand = sorted(self._in_hand)
        with self._context.transaction() as connection:
            batches.renew(
                connection, self._context.run.id, self._context.owner, in_hand, self._context.job.lease_seconds
            )

    def _claim(self) -> Batch | None:
        # Lost in a crash of the server, a claim leaves its batch as it was planned, and its rows as they were: its
        # commit need not wait until the disk has what other batches wrote.
        with self._context.transaction(durable=False) as connection:
            batch = batches.claim(
                connection, self._context.run.id, self._context.owner, self._context.job.lease_seconds
            )
        if batch is not None:
            self._in_hand[batch.number] = batch
        return batch

    def _process(self, batch: Batch) -> None:
        retry, write_retry = self._context.retry, self._context.write_retry
        if len(batch.keys) > SMALLEST:
            # A batch that times out is cut in two, here and in the plan; only the smallest are tried again.
            retry, write_retry = retry.passing_on(TimedOut), write_retry.passing_on(TimedOut)
        try:
            if isinstance(self._writer, CastSink):
                put = partial(self._cast, batch, self._writer)
            else:
                prepared = self._prepare(batch, fetch_all(retry, self._context.job.source, batch.keys))
                put = partial(self._put, batch, prepared, self._writer)
            outcome = write_retry.database(f"writing batch {batch.number}", partial(self._write, batch, put))
        except BaseException as error:
            if isinstance(error, TimedOut) and len(batch.keys) > SMALLEST:
                try:
                    self._context.retry.database("cutting a batch in two", partial(self._cut, batch, error.message))
                except BaseException:
                    self._give_back(batch, error.message)
                    raise
                return
            if isinstance(error, SourceError):
                error.message = (
                    f"batch {batch.number} ({len(batch.keys):,} keys from {batch.keys[0]!r}): {error.message}"
                )
            # If it is another worker's by now, this leaves it alone; if its run was cancelled, this frees it.
            self._give_back(batch, None if isinstance(error, Held) else str(error))
            if isinstance(error, LeaseLost):
                return
            raise
        self._on_done(batch, outcome)

    def _prepare(self, batch: Batch, fetched: VectorBatch) -> Prepared:
        """Return the rows to write, in planned order and with their target keys, and the rows to quarantine."""
        present = set(fetched.source_keys) | {error.key for error in fetched.quarantined}
        # For a run that finds what the source no longer has, a record deleted after it was listed is no error.
        missing = [] if self._writer.keeps_seen else [key for key in batch.keys if key not in present]
        # Keys first: a row's number among those of its source key does not depend on which of them are bad.
        keyed = self._context.retry.database("looking up keys", partial(self._slice.key_map.apply, fetched))
        rows = self._in_planned_order(batch, self._slice.fit(keyed))
        aside = [
            *rows.quarantined,
            *(RowError(key, Reason.MISSING, "the source has no such record") for key in missing),
        ]
        return Prepared(rows, aside, self._seen(fetched, keyed) if self._writer.keeps_seen else [])

    def _seen(self, fetched: VectorBatch, keyed: VectorBatch) -> list[str]:
        asked = [error.key for error in fetched.quarantined]
        found = self._context.retry.database("looking up keys", partial(look_up, self._slice.key_map, asked))
        return [part for key in chain(keyed.keys or (), *found.values()) for part in key]

    def _write(self, batch: Batch, put: Callable[[Connection], Done]) -> Outcome:
        """Write rows and ``done`` in one transaction."""
        if self._in_hand.get(batch.number) is not batch:
            raise LeaseLost(f"batch {batch.number} was given back while it was fetched")
        with self._context.engine.begin() as connection:
            connection.execute(_TRANSACTION, {"tag": batches.session_tag(self._context.owner, batch.number)})
            done = put(connection)
            before = batches.lock_batch(connection, self._context.run.id, self._context.owner, batch)
            if before is not None:
                return before
            batches.complete(connection, self._context.run, batch, done.outcome, done.errors, done.seen)
        return done.outcome

    def _put(self, batch: Batch, prepared: Prepared, writer: Writer, connection: Connection) -> Done:
        """Write what was fetched; the bytes are with PostgreSQL before any row is locked."""
        fetched, aside = prepared.rows, prepared.aside
        missing = sum(error.reason == Reason.MISSING for error in aside)
        rows = self._without_deleted(connection, batch, fetched) if writer.inserts else fetched
        rows = self._without_emptied(connection, rows)
        written = writer.put(connection, rows, batch.claimed_at)
        errors = [*aside, *written.refused]
        no_fault = STILL_WRITTEN | LEFT_ALONE
        outcome = Outcome(
            written=written.rows,
            replaced=written.replaced,
            skipped=len(fetched) - written.rows - len(written.refused),
            missing=missing,
            quarantined=len({error.key for error in errors if error.reason not in no_fault}) - missing,
            checksum=written.checksum,
        )
        return Done(outcome, errors, prepared.seen)

    def _cast(self, batch: Batch, writer: CastSink, connection: Connection) -> Done:
        """Write what PostgreSQL casts; nothing is fetched."""
        written = writer.put_keys(connection, batch.keys)
        refused = len(written.refused)
        outcome = Outcome(written.rows, skipped=len(batch.keys) - written.rows - refused, quarantined=refused)
        return Done(outcome, written.refused)

    def _without_deleted(self, connection: Connection, batch: Batch, rows: VectorBatch) -> VectorBatch:
        """Return the rows whose source keys the application has not deleted, on both sides, since they were fetched."""
        # While the locks are held, no lock is waited for as long as PostgreSQL waits before it looks for a deadlock:
        # between an application that deletes and this transaction, this transaction gives way.
        connection.execute(_GIVE_WAY)
        keys = store_keys(self._slice.key_map, rows)
        self._context.outbox.lock(connection, keys, "upsert")
        deleted = self._context.outbox.deleted_since(connection, keys, batch.claimed_at)
        if not deleted:
            return rows
        return rows.take([row for row, key in enumerate(keys) if key not in deleted])

    def _without_emptied(self, connection: Connection, rows: VectorBatch) -> VectorBatch:
        """Return the rows that no store emptied since the application wrote them."""
        keys = rows.keys or ()
        emptied = self._slice.emptied_among(connection, keys)
        return rows.take([row for row, key in enumerate(keys) if key not in emptied]) if emptied else rows

    @staticmethod
    def _in_planned_order(batch: Batch, rows: VectorBatch) -> VectorBatch:
        """Return the rows in the batch's own order, in which the same rows always have the same checksum.

        A source answers in any order.
        """
        if rows.source_keys == batch.keys:
            return rows
        place = {key: position for position, key in enumerate(batch.keys)}
        try:
            order = sorted(range(len(rows)), key=lambda row: place[rows.source_keys[row]])
        except KeyError as error:
            raise SourceError(f"the source gave a record that was not asked for: {error}") from None
        return rows if order == list(range(len(rows))) else rows.take(order)

    def _cut(self, batch: Batch, error: str) -> None:
        with self._context.transaction() as connection:
            sizes.cut_batch(connection, self._context.run.id, self._context.owner, batch, error)
        self._hold.bell.offer(2)

    def _give_back(self, batch: Batch, error: str | None) -> None:
        """Release the batch if the database can be reached; otherwise the lease runs out by itself."""
        with suppress(sa.exc.DBAPIError), self._context.transaction() as connection:
            batches.release(connection, self._context.run.id, self._context.owner, batch, error)
