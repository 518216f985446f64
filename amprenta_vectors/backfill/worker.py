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
from amprenta_vectors.errors import LeaseLost, RowError, TransientError
from amprenta_vectors.schema.keymaps import KeyMap
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
        self._lease_seconds = lease_seconds
        self._retry = retry
        self._stop = stop
        self._on_done = on_done

    def run(self) -> None:
        """Work until the run has nothing left. A batch in hand is ended, or given back, before this returns."""
        while not self._stop.is_set():
            batch = self._retry.database("claiming a batch", self._claim)
            if batch is not None:
                self._process(batch)
            elif not self._retry.database("looking for work", self._work_left):
                return
            else:
                self._stop.wait(IDLE_SECONDS)

    def _claim(self) -> Batch | None:
        with self._engine.begin() as connection:
            progress.end_expired_sessions(connection, self._run.id)
        with self._engine.begin() as connection:
            return progress.claim(connection, self._run.id, self._owner, self._lease_seconds)

    def _work_left(self) -> bool:
        with self._engine.connect() as connection:
            return progress.work_left(connection, self._run.id)

    def _process(self, batch: Batch) -> None:
        try:
            fetched = self._retry(partial(self._source.fetch, batch.keys))
            outcome = self._retry.database(f"writing batch {batch.number}", partial(self._write, batch, fetched))
        except LeaseLost:
            return
        except BaseException as error:
            self._give_back(batch, str(error))
            if isinstance(error, TransientError) and self._stop.is_set():
                return
            raise
        self._on_done(batch, outcome)

    def _write(self, batch: Batch, fetched: VectorBatch) -> Outcome:
        """Rows and ``done`` in one transaction; the bytes are with PostgreSQL before any row is locked."""
        present = set(fetched.source_keys) | {error.key for error in fetched.rejected}
        missing = [key for key in batch.keys if key not in present]
        rows = self._in_planned_order(batch, self._key_map.apply(fetched.validated(cosine=self._cosine)))
        errors = [*rows.rejected, *(RowError(key, Reason.MISSING, "the source has no such record") for key in missing)]
        with self._engine.begin() as connection:
            connection.execute(_TRANSACTION, {"tag": progress.session_tag(self._owner, batch.number)})
            checksum = self._sink.load(connection, rows)
            before = progress.lock_batch(connection, self._run.id, self._owner, batch)
            if before is not None:
                return before
            written, refused = self._sink.write(connection, rows)
            errors += refused
            outcome = Outcome(
                written=written,
                skipped=len(rows) - written - len(refused),
                missing=len(missing),
                quarantined=len({error.key for error in errors if error.reason not in _STILL_WRITTEN}) - len(missing),
                checksum=checksum,
            )
            progress.complete(connection, self._run.id, batch, outcome, errors)
        return outcome

    @staticmethod
    def _in_planned_order(batch: Batch, rows: VectorBatch) -> VectorBatch:
        """A source answers in any order; in the batch's own, the checksum of the same rows is always the same."""
        place = {key: position for position, key in enumerate(batch.keys)}
        order = sorted(range(len(rows)), key=lambda row: place[rows.source_keys[row]])
        return rows if order == list(range(len(rows))) else rows.take(order)

    def _give_back(self, batch: Batch, error: str) -> None:
        """Best effort: where the database is gone too, the lease runs out by itself."""
        try:
            with self._engine.begin() as connection:
                progress.release(connection, self._run.id, self._owner, batch, error)
        except sa.exc.DBAPIError:
            return


_STILL_WRITTEN = {Reason.SPARSE_DROPPED}
"""Reasons that stand against a row whose dense vector was written all the same."""
