"""The keys that a reconciliation looks at, and its dry run: what a pass would come to."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import IO, Any, cast

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.backfill.engine.fetching import fetch_all
from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.engine.keys import Keys
from amprenta_vectors.backfill.engine.reading import Reading
from amprenta_vectors.backfill.progress.seen import Gone
from amprenta_vectors.backfill.reconcile.changed_texts import ChangedTexts, Texts
from amprenta_vectors.backfill.reconcile.gone import PAGE, fate_of, find_gone, parse_key, too_many
from amprenta_vectors.backfill.reconcile.reconciler import Preview, Reconciler
from amprenta_vectors.backfill.reconcile.row_state import RowStates
from amprenta_vectors.backfill.writing.encoding import COPY_HEADER, COPY_TRAILER, copy_row
from amprenta_vectors.batch import Key, VectorBatch
from amprenta_vectors.errors import RowError
from amprenta_vectors.reasons import Reason
from amprenta_vectors.schema.keymaps import look_up
from amprenta_vectors.stores.outbox import Outbox


@dataclass(frozen=True)
class Prospect:
    """The prospect of a pass: rows that are equal, rows to write, rows to replace among those, and rows to list.

    ``quarantined`` counts, by reason, rows that would be listed and records of the source that no row can hold.
    """

    equal: int
    written: int
    replaced: int
    quarantined: Mapping[str, int]
    gone: Gone | None


def keys_to_reconcile(engine: Engine, job: Job) -> Keys:
    """Return all keys of the source; if it embeds texts, the keys whose text is new or has changed."""
    if job.source.description.computed:
        return ChangedTexts(engine, job.slice, cast("Texts", job.source))
    return job.source


class DryRun:
    """A pass that changes nothing. Its memory does not grow with the source: the keys that it saw go to a file."""

    def __init__(self, engine: Engine, job: Job, *, retry: Backoff) -> None:
        self._engine = engine
        self._job = job
        self._retry = retry
        outbox = Outbox(engine, job.slice.target, job.slice.scope)
        self._computed = job.source.description.computed
        self._reconciler = Reconciler(job.slice, job.model, outbox, insert=job.inserts, computed=self._computed)
        keys, command = keys_to_reconcile(engine, job), "amprenta-vectors reconcile --dry-run"
        self._reading = Reading(keys, retry, job.batch_size, job.workers, "dry run", command)

    def run(self) -> Prospect:
        """Read the source, and return what a pass would come to.

        Raises `TransientError` if the retry was told to stop, `SourceError` if the source refused its own page tokens
        three times, and what the source raises.
        """
        return self._reading.whole(self._read)

    def _read(self) -> Prospect:
        with tempfile.TemporaryFile() as seen:
            return self._read_into(seen)

    def _read_into(self, seen: IO[bytes]) -> Prospect:
        figures: Counter[str] = Counter()
        aside: Counter[str] = Counter()
        seen.write(COPY_HEADER)
        for keys, quarantined, rows, preview in self._reading.each(self._preview):
            seen.writelines(map(copy_row, keys))
            aside.update(str(error.reason) for error in (*quarantined, *preview.left))
            figures.update(written=preview.written, replaced=preview.replaced)
            figures["equal"] += rows - preview.written - len(preview.left)
        seen.write(COPY_TRAILER)
        gone = None if self._computed else self._retry.database("looking for rows that are gone", self._gone_of(seen))
        if gone is not None and gone.gone and not gone.refused:
            aside[Reason.GONE] += gone.gone - gone.deleted - gone.emptied
        return Prospect(
            figures["equal"],
            figures["written"],
            figures["replaced"],
            {reason: number for reason, number in sorted(aside.items()) if number},
            gone,
        )

    def _gone_of(self, seen: IO[bytes]) -> Callable[[], Gone]:
        def fill(connection: Connection, table: sa.Table) -> None:
            seen.seek(0)
            cursor: Any = connection.connection.cursor()
            cursor.copy_expert("COPY amprenta_seen FROM STDIN (FORMAT binary)", seen)

        def look() -> Gone:
            with self._engine.begin() as connection:
                found, keys = find_gone(connection, self._job.slice, fill)
                if not deletes(self._job) or refusal_of(found, delete=True):
                    return found
                return self._judged(connection, found, keys)

        return look

    def _judged(self, connection: Connection, found: Gone, keys: sa.Select[str]) -> Gone:
        """Return ``found`` with how many of the rows that are gone would be deleted, and emptied."""
        job = self._job
        states = RowStates(job.slice, computed=False)
        fates: Counter[str] = Counter()
        for page in connection.execution_options(yield_per=PAGE).execute(keys).scalars().partitions(PAGE):
            parsed = [parse_key(text, len(job.slice.table.key)) for text in page]
            fates.update(fate_of(job.slice, row) for _, row in states.read(connection, parsed, lock=False))
        return replace(found, deleted=fates["delete"], emptied=fates["empty"])

    def _preview(self, keys: Sequence[str]) -> tuple[Sequence[Key], Sequence[RowError], int, Preview]:
        fetched = fetch_all(self._retry, self._job.source, keys)
        keyed = self._mapped(fetched)
        asked = [error.key for error in fetched.quarantined]
        without = self._retry.database("looking up keys", partial(look_up, self._job.slice.key_map, asked))
        seen = [*(keyed.keys or ()), *chain.from_iterable(without.values())]
        rows = self._job.slice.fit(keyed)
        return seen, rows.quarantined, len(rows), self._retry.database("comparing rows", partial(self._compare, rows))

    def _compare(self, rows: VectorBatch) -> Preview:
        with self._engine.begin() as connection:
            return self._reconciler.preview(connection, rows)

    def _mapped(self, batch: VectorBatch) -> VectorBatch:
        return self._retry.database("looking up keys", partial(self._job.slice.key_map.apply, batch))


def deletes(job: Job) -> bool:
    """Return whether a pass deletes the rows that the source no longer has, and does not only list them."""
    return bool(getattr(job.kind, "delete", False))


def refusal_of(gone: Gone | None, *, delete: bool) -> str | None:
    """Return why a pass with ``delete`` refuses to delete; None if it does not refuse."""
    if gone is None:
        return None
    return gone.refused or (too_many(gone) if delete else None)
