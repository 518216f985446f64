"""Every statement on the progress tables; the database's clock is the only one they go by."""

from __future__ import annotations

from amprenta_vectors.backfill.progress.batches import (
    Batch,
    Outcome,
    claim,
    complete,
    end_expired_sessions,
    lock_batch,
    release,
    renew,
    session_tag,
)
from amprenta_vectors.backfill.progress.events import Event, RunEvent, list_events, record_event
from amprenta_vectors.backfill.progress.figures import Counts, count
from amprenta_vectors.backfill.progress.indexes import all_deferred, defer_index, deferred_indexes, index_built
from amprenta_vectors.backfill.progress.plans import Plan, claim_plan, extend_plan, forget_token, release_plan
from amprenta_vectors.backfill.progress.runs import (
    Run,
    RunSpec,
    begin_run,
    cancel,
    check_same,
    earlier_models,
    finished_run,
    list_runs,
    load_run,
    move,
    note_error,
    others_unfinished,
    unfinished_run,
    work_left,
)
from amprenta_vectors.backfill.progress.set_aside import errors_by_reason, set_aside_keys
from amprenta_vectors.backfill.progress.transactions import require_tables, serialize_starts, transaction

__all__ = [
    "Batch",
    "Counts",
    "Event",
    "Outcome",
    "Plan",
    "Run",
    "RunEvent",
    "RunSpec",
    "all_deferred",
    "begin_run",
    "cancel",
    "check_same",
    "claim",
    "claim_plan",
    "complete",
    "count",
    "defer_index",
    "deferred_indexes",
    "earlier_models",
    "end_expired_sessions",
    "errors_by_reason",
    "extend_plan",
    "finished_run",
    "forget_token",
    "index_built",
    "list_events",
    "list_runs",
    "load_run",
    "lock_batch",
    "move",
    "note_error",
    "others_unfinished",
    "record_event",
    "release",
    "release_plan",
    "renew",
    "require_tables",
    "serialize_starts",
    "session_tag",
    "set_aside_keys",
    "transaction",
    "unfinished_run",
    "work_left",
]
