"""One worker: claim a batch, fetch it outside any transaction, write it and its checkpoint inside one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from amprenta_vectors.backfill import progress
from amprenta_vectors.backfill.progress import Batch, Outcome, Run
from amprenta_vectors.backfill.retry import Retry
from amprenta_vectors.backfill.sink import Sink
from amprenta_vectors.batch import Reason, VectorBatch
from amprenta_vectors.errors import LeaseLost, RowError, SourceError
from amprenta_vectors.schema.keymaps import KeyMap
from amprenta_vectors.schema.vector_table import Storage
from amprenta_vectors.sources.protocol import Source

IDLE_SECONDS = 0.5

_TRANSACTION = sa.text("""
    SELECT set_config('application_name', :tag, true),
           set_config('lock_timeout', '30s', true),
           set_config('statement_timeout', '10min', true),
           set_config('idle_in_transaction_session_timeout', '1min', true)
""")


class Worker:
    """Takes batches of a run until none is left or ``stop`` is set. Several may share one source and engine."""

    def __init__(
        self,
        engine: Engine,
        run: Run,
        source: Source,
        sink: Sink,
        key_map: KeyMap,
        owner: str,
        *,
        cosine: bool,
        storage: Storage,
        lease_seconds: float,
        retry: Retry,
        stop: threading.Event,
        on_done: Callable[[Batch, Outcome], None],
    ) -> None:
        self._engine = engine
        self._run = run
        self._source = source
        self._sink = sink
        self._key_map = key_map
        self._owner = owner
        self._cosine = cosine
        self._storage: Storage = storage
        self._lease_seconds = lease_seconds
        self._retry = retry
        self._stop = stop
        self._on_done = on_done
        self._in_hand: set[int] = set()

    def run(self) -> None:
        """Work until the run has nothing left. A batch in hand is ended, or given back, before this returns."""
        while not self._stop.is_set():
            batch = self._retry.database("claiming a batch", self._claim)
            if batch is not None:
                self._in_hand.add(batch.number)
                try:
                    self._process(batch)
                finally:
                    self._in_hand.discard(batch.number)
            elif not self._retry.database("looking for work", self._work_left):
                return
            else:
                self._stop.wait(IDLE_SECONDS)

    def renew(self) -> None:
        """Prolong the leases of the batches that these workers have in hand, and the planner's of their process."""
        in_hand = sorted(self._in_hand.copy())
        with progress.transaction(self._engine) as connection:
            progress.renew(connection, self._run.id, self._owner, in_hand, self._lease_seconds)

    def _claim(self) -> Batch | None:
        with progress.transaction(self._engine) as connection:
            return progress.claim(connection, self._run.id, self._owner, self._lease_seconds)

    def _work_left(self) -> bool:
        with progress.transaction(self._engine) as connection:
            return progress.work_left(connection, self._run.id)

    def _process(self, batch: Batch) -> None:
        try:
            prepared = self._prepare(batch, self._retry(partial(self._source.fetch, batch.keys)))
            outcome = self._retry.database(f"writing batch {batch.number}", partial(self._write, batch, prepared))
        except BaseException as error:
            # Where it is another worker's by now, this leaves it alone; where its run was cancelled, it frees it.
            self._give_back(batch, str(error))
            if isinstance(error, LeaseLost):
                return
            raise
        self._on_done(batch, outcome)

    def _prepare(self, batch: Batch, fetched: VectorBatch) -> tuple[VectorBatch, list[RowError]]:
        """The rows to write, in planned order and with their target keys, and the rows to set aside."""
        present = set(fetched.source_keys) | {error.key for error in fetched.rejected}
        missing = [key for key in batch.keys if key not in present]
        # Keys first: a row's number among those of its source key does not depend on which of them are bad.
        keyed = self._key_map.apply(fetched)
        rows = self._in_planned_order(batch, keyed.validated(cosine=self._cosine, storage=self._storage))
        return rows, [
            *rows.rejected,
            *(RowError(key, Reason.MISSING, "the source has no such record") for key in missing),
        ]

    def _write(self, batch: Batch, prepared: tuple[VectorBatch, list[RowError]]) -> Outcome:
        """Rows and ``done`` in one transaction; the bytes are with PostgreSQL before any row is locked."""
        rows, aside = prepared
        missing = sum(error.reason == Reason.MISSING for error in aside)
        with self._engine.begin() as connection:
            connection.execute(_TRANSACTION, {"tag": progress.session_tag(self._owner, batch.number)})
            checksum = self._sink.load(connection, rows)
            written, refused = self._sink.write(connection, rows)
            before = progress.lock_batch(connection, self._run.id, self._owner, batch)
            if before is not None:
                return before
            errors = aside + refused
            outcome = Outcome(
                written=written,
                skipped=len(rows) - written - len(refused),
                missing=missing,
                quarantined=len({error.key for error in errors if error.reason not in _STILL_WRITTEN}) - missing,
                checksum=checksum,
            )
            progress.complete(connection, self._run, batch, outcome, errors)
        return outcome

    @staticmethod
    def _in_planned_order(batch: Batch, rows: VectorBatch) -> VectorBatch:
        """A source answers in any order; in the batch's own, the checksum of the same rows is always the same."""
        place = {key: position for position, key in enumerate(batch.keys)}
        try:
            order = sorted(range(len(rows)), key=lambda row: place[rows.source_keys[row]])
        except KeyError as error:
            raise SourceError(f"the source gave a record that was not asked for: {error}") from None
        return rows if order == list(range(len(rows))) else rows.take(order)

    def _give_back(self, batch: Batch, error: str) -> None:
        """Best effort: where the database is gone too, the lease runs out by itself."""
        try:
            with progress.transaction(self._engine) as connection:
                progress.release(connection, self._run.id, self._owner, batch, error)
        except sa.exc.DBAPIError:
            return


_STILL_WRITTEN = {Reason.SPARSE_DROPPED}
"""Reasons that stand against a row whose dense vector was written all the same."""
