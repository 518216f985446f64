"""Rolling back what runs inserted, and only that: rows that somebody changed since stay."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.engine import Engine

from amprenta_vectors.backfill.progress import batches, events, inserted, proof, transactions
from amprenta_vectors.backfill.progress.events import Event
from amprenta_vectors.backfill.progress.runs import cancel, unfinished_run
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.batch import Key
from amprenta_vectors.schema.slice import Slice


@dataclass(frozen=True)
class Rollback:
    """The result of a rollback of ``runs`` into one scope: how many inserted rows were removed, and which were kept."""

    runs: list[int]
    removed: int
    kept: list[Key]


def roll_back(engine: Engine, slice_: Slice) -> Rollback:
    """Cancel the unfinished run into the slice and delete the rows that runs recorded as inserted, in one transaction.

    Rows whose embedding, text, metadata or model has changed since are kept, and so is their record. The next run
    with ``resume`` reads the source anew.
    """
    removed, kept = 0, list[Key]()
    with transaction(engine) as connection:
        transactions.serialize_starts(connection, slice_.target)
        unfinished = unfinished_run(connection, slice_.target, slice_.scope)
        if unfinished is not None:
            batches.end_expired_sessions(connection, unfinished.id)
            cancel(connection, unfinished.id)
        runs = inserted.runs_with_inserted(connection, slice_.target, slice_.scope)
        proof.forget(connection, slice_.target, slice_.scope)
        for run in runs:
            gone, left = inserted.remove_inserted(connection, slice_, run)
            events.record_event(connection, run, Event.ROLLED_BACK, {"removed": gone, "kept": len(left)})
            removed += gone
            kept += left
    return Rollback(runs, removed, kept)
