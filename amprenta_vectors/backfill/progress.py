"""Every statement on the progress tables; the database's clock is the only one they go by."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.backfill.states import UNFINISHED, RunState, sources_of
from amprenta_vectors.errors import LeaseLost, NotUpgraded, RowError, RunConflict


@dataclass(frozen=True)
class RunSpec:
    """What a run is to do. ``fingerprint`` covers what must not change between its start and its end."""

    vector_table: str
    target: str
    scope: Mapping[str, str]
    source_kind: str
    source: str
    keys_from: str
    key_map: str
    model: str | None
    dimension: int
    fingerprint: str
    row_limit: int | None = None


@dataclass(frozen=True)
class Run:
    """A row of ``migration_run``."""

    id: int
    vector_table: str
    target: str
    scope: dict[str, str]
    source_kind: str | None
    source: str | None
    keys_from: Literal["table", "source"] | None
    key_map: str | None
    model: str | None
    dimension: int | None
    fingerprint: str | None
    state: str
    desired_state: str
    row_limit: int | None
    planned_keys: int
    planned_at: datetime | None
    last_error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True)
class Plan:
    """How far the keys of a run are cut into batches: where listing stands, and how many keys it has given."""

    token: str | None
    planned_keys: int


@dataclass(frozen=True)
class Batch:
    """A claimed batch; ``attempt`` and the owner fence it: only they may complete it."""

    number: int
    keys: Sequence[str]
    attempt: int


@dataclass(frozen=True)
class Outcome:
    """What became of a batch's keys."""

    written: int = 0
    skipped: int = 0
    missing: int = 0
    quarantined: int = 0
    checksum: int = 0


@dataclass(frozen=True)
class Counts:
    """A run's figures, summed over its batches."""

    batches: int
    batches_done: int
    batches_running: int
    written: int
    skipped: int
    missing: int
    quarantined: int
    set_aside: int
    owners: int

    @property
    def keys_done(self) -> int:
        """Source rows that need no further work."""
        return self.written + self.skipped + self.missing + self.quarantined


_SHORT = sa.text("""
    SELECT set_config('lock_timeout', '10s', true), set_config('statement_timeout', '1min', true),
           set_config('idle_in_transaction_session_timeout', '10s', true)
""")


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """A short transaction on the progress tables.

    The server ends it when its client is stopped midway, so that nobody waits for a process that does not move.
    """
    with engine.begin() as connection:
        connection.execute(_SHORT)
        yield connection


def require_tables(connection: Connection) -> None:
    """Raises `NotUpgraded` where the progress tables are not there."""
    if connection.execute(sa.text("SELECT to_regclass('migration_run')")).scalar() is None:
        raise NotUpgraded("the database has no table migration_run", hint="alembic upgrade head")


def serialize_starts(connection: Connection, target: str) -> None:
    """Let one process at a time decide, until the transaction's end, which run into ``target`` it works on."""
    connection.execute(
        sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:target, 7230561180403327))"), {"target": target}
    )


def load_run(connection: Connection, run_id: int) -> Run:
    """The run of that number."""
    return _run(connection.execute(sa.text("SELECT * FROM migration_run WHERE id = :id"), {"id": run_id}).one())


def list_runs(connection: Connection) -> list[Run]:
    """Every run, the newest first."""
    return [_run(row) for row in connection.execute(sa.text("SELECT * FROM migration_run ORDER BY id DESC"))]


def unfinished_run(connection: Connection, target: str, scope: Mapping[str, str]) -> Run | None:
    """The begun, unfinished run into that column and scope; there is one at most."""
    row = connection.execute(
        sa.text("""
            SELECT * FROM migration_run
            WHERE target = :target AND scope = CAST(:scope AS jsonb) AND source IS NOT NULL AND state = ANY(:states)
        """),
        {"target": target, "scope": json.dumps(dict(scope)), "states": list(UNFINISHED)},
    ).first()
    return None if row is None else _run(row)


def finished_run(connection: Connection, target: str, fingerprint: str) -> Run | None:
    """The last run of that fingerprint, if it finished and no revision has queued another one since."""
    row = connection.execute(
        sa.text("""
            SELECT * FROM migration_run WHERE target = :target AND (fingerprint = :fingerprint OR source IS NULL)
            ORDER BY id DESC LIMIT 1
        """),
        {"target": target, "fingerprint": fingerprint},
    ).first()
    return _run(row) if row is not None and row.source is not None and row.state == RunState.FINISHED else None


def earlier_models(connection: Connection, target: str, scope: Mapping[str, str]) -> set[str]:
    """The models that earlier runs wrote into that column and scope."""
    rows = connection.execute(
        sa.text("""
            SELECT DISTINCT r.model FROM migration_run r JOIN migration_progress p ON p.run_id = r.id
            WHERE r.target = :target AND r.scope = CAST(:scope AS jsonb) AND r.model IS NOT NULL AND p.rows_written > 0
        """),
        {"target": target, "scope": json.dumps(dict(scope))},
    )
    return set(rows.scalars())


def begin_run(connection: Connection, spec: RunSpec) -> Run:
    """Begin a run: the one a revision queued for this column where there is one, else a new one.

    Call under `serialize_starts`. The database refuses a second live run into one column and scope.
    """
    values = {
        "vector_table": spec.vector_table,
        "target": spec.target,
        "scope": json.dumps(dict(spec.scope)),
        "source_kind": spec.source_kind,
        "source": spec.source,
        "keys_from": spec.keys_from,
        "key_map": spec.key_map,
        "model": spec.model,
        "dimension": spec.dimension,
        "fingerprint": spec.fingerprint,
        "row_limit": spec.row_limit,
    }
    queued = connection.execute(
        sa.text("""
            UPDATE migration_run SET
                scope = CAST(:scope AS jsonb), source_kind = :source_kind, source = :source, keys_from = :keys_from,
                key_map = :key_map, model = :model, dimension = :dimension, fingerprint = :fingerprint,
                row_limit = :row_limit, state = 'running', started_at = clock_timestamp()
            WHERE id = (
                SELECT id FROM migration_run WHERE target = :target AND state = 'planned' AND source IS NULL
                ORDER BY id LIMIT 1
            )
            RETURNING *
        """),
        values,
    ).first()
    if queued is not None:
        return _run(queued)
    return _run(
        connection.execute(
            sa.text("""
                INSERT INTO migration_run (
                    vector_table, target, scope, source_kind, source, keys_from, key_map, model, dimension,
                    fingerprint, row_limit, state, desired_state, started_at
                ) VALUES (
                    :vector_table, :target, CAST(:scope AS jsonb), :source_kind, :source, :keys_from, :key_map, :model,
                    :dimension, :fingerprint, :row_limit, 'running', 'running', clock_timestamp()
                ) RETURNING *
            """),
            values,
        ).one()
    )


def move(connection: Connection, run_id: int, state: RunState, *, error: str | None = None) -> bool:
    """Bring a run into ``state`` if that may follow the state it is in; returns whether it did."""
    moved = connection.execute(
        sa.text("""
            UPDATE migration_run
            SET state = CAST(:state AS text), last_error = :error,
                finished_at = CASE WHEN :state IN ('finished', 'failed', 'cancelled') THEN clock_timestamp() END
            WHERE id = :id AND state = ANY(:before)
        """),
        {"id": run_id, "state": state, "error": error, "before": list(sources_of(state))},
    )
    return moved.rowcount == 1


def cancel(connection: Connection, run_id: int) -> None:
    """Cancel a run once no transaction that writes rows of it is under way; none can be committed afterwards."""
    # Stronger than the UPDATE's own lock: it excludes the one that `lock_batch` holds.
    connection.execute(sa.text("SELECT 1 FROM migration_run WHERE id = :id FOR UPDATE"), {"id": run_id})
    move(connection, run_id, RunState.CANCELLED)


def note_error(connection: Connection, run_id: int, message: str | None) -> None:
    """Keep why a run stopped, for whoever looks at its status."""
    connection.execute(
        sa.text("UPDATE migration_run SET last_error = :message WHERE id = :id"), {"id": run_id, "message": message}
    )


def claim_plan(connection: Connection, run_id: int, owner: str, lease_seconds: float) -> Plan | None:
    """Become, or stay, the one planner of a run; None where another process is, or the plan is complete."""
    row = connection.execute(
        sa.text("""
            UPDATE migration_run
            SET plan_owner = :owner, plan_lease_expires_at = clock_timestamp() + make_interval(secs => :lease)
            WHERE id = :id AND planned_at IS NULL AND state = 'running'
              AND (plan_owner IS NULL OR plan_owner = :owner OR plan_lease_expires_at < clock_timestamp())
            RETURNING plan_token, planned_keys
        """),
        {"id": run_id, "owner": owner, "lease": lease_seconds},
    ).first()
    return None if row is None else Plan(row.plan_token, row.planned_keys)


def extend_plan(
    connection: Connection,
    run_id: int,
    owner: str,
    plan: Plan,
    batches: Sequence[Sequence[str]],
    token: str | None,
    *,
    complete: bool,
) -> Plan:
    """Store batches and where listing stands after them, or that it is ``complete``; returns the longer plan.

    Raises `LeaseLost` where the run no longer stands at ``plan``: another process plans it, it was cancelled, or this
    very call was committed before and its answer lost.
    """
    keys = sum(map(len, batches))
    row = connection.execute(
        sa.text("""
            UPDATE migration_run SET plan_token = :token, planned_keys = planned_keys + :keys,
                planned_at = CASE WHEN :complete THEN clock_timestamp() END
            WHERE id = :id AND plan_owner = :owner AND planned_at IS NULL AND state = 'running'
              AND planned_keys = :before
            RETURNING (SELECT coalesce(max(batch), 0) FROM migration_progress WHERE run_id = :id) AS last
        """),
        {
            "id": run_id,
            "owner": owner,
            "token": token,
            "keys": keys,
            "complete": complete,
            "before": plan.planned_keys,
        },
    ).first()
    if row is None:
        raise LeaseLost("the plan of this run is not where this process left it")
    if batches:
        connection.execute(
            sa.text("""
                INSERT INTO migration_progress (run_id, batch, first_key, last_key, keys)
                VALUES (:run_id, :batch, :first_key, :last_key, CAST(:keys AS text[]))
            """),
            [
                {"run_id": run_id, "batch": number, "first_key": part[0], "last_key": part[-1], "keys": list(part)}
                for number, part in enumerate(batches, row.last + 1)
            ],
        )
    return Plan(token, plan.planned_keys + keys)


def forget_token(connection: Connection, run_id: int, owner: str) -> None:
    """Begin the listing anew: the source refused its token.

    Keys that are listed twice are found filled the second time; towards a limit they count twice.
    """
    connection.execute(
        sa.text("UPDATE migration_run SET plan_token = NULL WHERE id = :id AND plan_owner = :owner"),
        {"id": run_id, "owner": owner},
    )


def session_tag(owner: str, batch: int) -> str:
    """The application_name of the transaction that writes a batch: by it, whoever takes an expired lease ends it."""
    return f"amprenta {owner} {batch}"


def end_expired_sessions(connection: Connection, run_id: int) -> None:
    """End the database sessions that still write batches whose lease has run out.

    A stopped process would otherwise hold its row locks for ever.
    """
    expired = connection.execute(
        sa.text("""
            SELECT owner, batch FROM migration_progress
            WHERE run_id = :run_id AND status = 'running' AND lease_expires_at < clock_timestamp()
        """),
        {"run_id": run_id},
    )
    _end_sessions(connection, [session_tag(row.owner, row.batch) for row in expired])


def _end_sessions(connection: Connection, tags: Sequence[str]) -> None:
    if tags:
        connection.execute(
            sa.text("""
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE application_name = ANY(CAST(:tags AS text[])) AND datname = current_database()
                  AND usename = current_user AND pid <> pg_backend_pid()
            """),
            {"tags": list(tags)},
        )


def claim(connection: Connection, run_id: int, owner: str, lease_seconds: float) -> Batch | None:
    """Take the first batch that is pending, or whose lease has run out; None where there is none now.

    The session of the former owner is ended before the claim is committed. One that has locked its batch already is
    ended so that the next claim finds the batch free.
    """
    row = connection.execute(
        sa.text("""
            WITH next AS (
                SELECT p.batch, p.owner AS former FROM migration_progress p JOIN migration_run r ON r.id = p.run_id
                WHERE p.run_id = :run_id AND r.state = 'running' AND r.desired_state = 'running'
                  AND (p.status = 'pending' OR (p.status = 'running' AND p.lease_expires_at < clock_timestamp()))
                ORDER BY p.batch LIMIT 1 FOR UPDATE OF p SKIP LOCKED
            )
            UPDATE migration_progress p
            SET status = 'running', owner = :owner, attempt = attempt + 1,
                lease_expires_at = clock_timestamp() + make_interval(secs => :lease),
                started_at = coalesce(started_at, clock_timestamp())
            FROM next WHERE p.run_id = :run_id AND p.batch = next.batch
            RETURNING p.batch, p.keys, p.attempt, next.former
        """),
        {"run_id": run_id, "owner": owner, "lease": lease_seconds},
    ).first()
    if row is None:
        end_expired_sessions(connection, run_id)
        return None
    if row.former is not None:
        _end_sessions(connection, [session_tag(row.former, row.batch)])
    return Batch(row.batch, row.keys, row.attempt)


def renew(connection: Connection, run_id: int, owner: str, batches: Sequence[int], lease_seconds: float) -> None:
    """Prolong the leases of those ``batches`` that are still this owner's, and the planner's.

    Only of batches that the caller knows to be in its hands: one whose claim was committed without its answer arriving
    is to expire. A row that is locked is about to be done, and is not waited for.
    """
    values = {"run_id": run_id, "owner": owner, "batches": list(batches), "lease": lease_seconds}
    connection.execute(
        sa.text("""
            UPDATE migration_progress SET lease_expires_at = clock_timestamp() + make_interval(secs => :lease)
            WHERE run_id = :run_id AND batch IN (
                SELECT batch FROM migration_progress
                WHERE run_id = :run_id AND batch = ANY(CAST(:batches AS bigint[])) AND owner = :owner
                  AND status = 'running'
                FOR UPDATE SKIP LOCKED
            )
        """),
        values,
    )
    connection.execute(
        sa.text("""
            UPDATE migration_run SET plan_lease_expires_at = clock_timestamp() + make_interval(secs => :lease)
            WHERE id = :run_id AND plan_owner = :owner AND planned_at IS NULL
        """),
        values,
    )


def lock_batch(connection: Connection, run_id: int, owner: str, batch: Batch) -> Outcome | None:
    """Fence: lock a batch that is still this owner's and attempt's, in the transaction that writes its rows.

    Call it after the rows are written and before `complete`: while they are, the lease can still be renewed. Returns
    the outcome where this very attempt has committed already: its answer was lost with the connection. Raises
    `LeaseLost` where it is somebody else's, or the run was cancelled.
    """
    row = connection.execute(
        sa.text("""
            SELECT p.status, p.rows_written, p.rows_skipped, p.rows_missing, p.rows_quarantined, p.checksum
            FROM migration_progress p JOIN migration_run r ON r.id = p.run_id
            WHERE p.run_id = :run_id AND p.batch = :batch AND p.owner = :owner AND p.attempt = :attempt
              AND (p.status = 'done' OR (p.status = 'running' AND r.state IN ('running', 'paused')))
            FOR UPDATE OF p FOR KEY SHARE OF r
        """),
        {"run_id": run_id, "batch": batch.number, "owner": owner, "attempt": batch.attempt},
    ).first()
    if row is None:
        raise LeaseLost(f"batch {batch.number} belongs to another worker now")
    if row.status == "running":
        return None
    return Outcome(row.rows_written, row.rows_skipped, row.rows_missing, row.rows_quarantined, row.checksum)


def complete(connection: Connection, run: Run, batch: Batch, outcome: Outcome, errors: Sequence[RowError]) -> None:
    """Record a batch as done, in the transaction that wrote its rows and after `lock_batch`.

    A row that was set aside before, by this run or another into the same column and scope, is resolved where this batch
    has no error for it; where it has, its attempts are counted on.
    """
    values = {"run_id": run.id, "batch": batch.number, "target": run.target, "scope": json.dumps(run.scope)}
    if errors:
        connection.execute(
            sa.text("""
                INSERT INTO migration_error (run_id, key, reason, batch, detail, attempts)
                SELECT :run_id, :key, :reason, :batch, :detail, 1 + coalesce(max(e.attempts), 0)
                FROM migration_error e JOIN migration_run r ON r.id = e.run_id
                WHERE r.target = :target AND r.scope = CAST(:scope AS jsonb) AND e.key = :key AND e.reason = :reason
                  AND e.resolved_at IS NULL
                ON CONFLICT (run_id, key, reason) DO UPDATE
                SET attempts = migration_error.attempts + 1, detail = excluded.detail, resolved_at = NULL
            """),
            [{**values, "key": error.key, "reason": error.reason, "detail": error.detail} for error in errors],
        )
    in_error = {error.key for error in errors}
    connection.execute(
        sa.text("""
            UPDATE migration_error e SET resolved_at = clock_timestamp() FROM migration_run r
            WHERE r.id = e.run_id AND r.target = :target AND r.scope = CAST(:scope AS jsonb)
              AND e.resolved_at IS NULL AND e.key = ANY(CAST(:settled AS text[]))
        """),
        {**values, "settled": [key for key in batch.keys if key not in in_error]},
    )
    connection.execute(
        sa.text("""
            UPDATE migration_progress
            SET status = 'done', keys = '{}', lease_expires_at = NULL, finished_at = clock_timestamp(),
                rows_written = :written, rows_skipped = :skipped, rows_missing = :missing,
                rows_quarantined = :quarantined, checksum = :checksum, last_error = NULL
            WHERE run_id = :run_id AND batch = :batch
        """),
        {**values, **asdict(outcome)},
    )


def release(connection: Connection, run_id: int, owner: str, batch: Batch, error: str | None = None) -> None:
    """Give a batch back unfinished, so that nobody has to wait for its lease to run out."""
    connection.execute(
        sa.text("""
            UPDATE migration_progress SET status = 'pending', owner = NULL, lease_expires_at = NULL, last_error = :error
            WHERE run_id = :run_id AND batch = :batch AND owner = :owner AND attempt = :attempt AND status = 'running'
        """),
        {"run_id": run_id, "batch": batch.number, "owner": owner, "attempt": batch.attempt, "error": error},
    )


def release_plan(connection: Connection, run_id: int, owner: str) -> None:
    """Let another process plan on at once."""
    connection.execute(
        sa.text("""
            UPDATE migration_run SET plan_owner = NULL, plan_lease_expires_at = NULL
            WHERE id = :run_id AND plan_owner = :owner
        """),
        {"run_id": run_id, "owner": owner},
    )


def work_left(connection: Connection, run_id: int) -> bool:
    """Whether the run goes on, and keys are still to be planned or batches to be done."""
    return bool(
        connection.execute(
            sa.text("""
                SELECT r.state IN ('running', 'paused') AND (r.planned_at IS NULL OR EXISTS (
                    SELECT 1 FROM migration_progress p WHERE p.run_id = r.id AND p.status IN ('pending', 'running')
                )) FROM migration_run r WHERE r.id = :run_id
            """),
            {"run_id": run_id},
        ).scalar_one()
    )


def others_unfinished(connection: Connection, run_id: int, target: str) -> bool:
    """Whether another begun run into the same column has not ended; one that is only queued does not count."""
    statement = sa.text("""
        SELECT EXISTS (
            SELECT 1 FROM migration_run
            WHERE target = :target AND id <> :run_id AND source IS NOT NULL AND state = ANY(:states)
        )
    """)
    values = {"target": target, "run_id": run_id, "states": list(UNFINISHED)}
    return bool(connection.execute(statement, values).scalar_one())


def count(connection: Connection, run_id: int) -> Counts:
    """The run's figures as they are now."""
    row = connection.execute(
        sa.text("""
            SELECT count(*) AS batches, count(*) FILTER (WHERE status = 'done') AS batches_done,
                   count(*) FILTER (WHERE status = 'running') AS batches_running,
                   coalesce(sum(rows_written), 0)::bigint AS written, coalesce(sum(rows_skipped), 0)::bigint AS skipped,
                   coalesce(sum(rows_missing), 0)::bigint AS missing,
                   coalesce(sum(rows_quarantined), 0)::bigint AS quarantined,
                   count(DISTINCT owner) FILTER (
                       WHERE status = 'running' AND lease_expires_at > clock_timestamp()
                   ) AS owners,
                   (
                       SELECT count(*) FROM migration_error e WHERE e.run_id = :run_id AND resolved_at IS NULL
                   ) AS set_aside
            FROM migration_progress WHERE run_id = :run_id
        """),
        {"run_id": run_id},
    ).one()
    return Counts(**row._mapping)


def errors_by_reason(connection: Connection, run_id: int) -> dict[str, int]:
    """How many rows each reason set aside."""
    rows = connection.execute(
        sa.text("""
            SELECT reason, count(*) AS rows FROM migration_error WHERE run_id = :run_id AND resolved_at IS NULL
            GROUP BY reason ORDER BY reason
        """),
        {"run_id": run_id},
    )
    return {row.reason: row.rows for row in rows}


def set_aside_keys(connection: Connection, target: str, scope: Mapping[str, str]) -> dict[str, str]:
    """The source keys that runs into that column and scope set aside, with the reason."""
    rows = connection.execute(
        sa.text("""
            SELECT e.key, min(e.reason) AS reason FROM migration_error e JOIN migration_run r ON r.id = e.run_id
            WHERE r.target = :target AND r.scope = CAST(:scope AS jsonb) AND e.resolved_at IS NULL GROUP BY e.key
        """),
        {"target": target, "scope": json.dumps(dict(scope))},
    )
    return {row.key: row.reason for row in rows}


def defer_index(connection: Connection, target: str, name: str, definition: str, comment: str | None) -> None:
    """Record an index that is about to be dropped, to be built after the load."""
    connection.execute(
        sa.text("""
            INSERT INTO migration_index (target, index_name, definition, comment)
            VALUES (:target, :name, :definition, :comment)
            ON CONFLICT (target, index_name) DO UPDATE
            SET definition = excluded.definition, comment = excluded.comment, deferred_at = now(), built_at = NULL
        """),
        {"target": target, "name": name, "definition": definition, "comment": comment},
    )


def deferred_indexes(connection: Connection, target: str) -> list[Any]:
    """The indexes of a column that wait to be built: ``index_name``, ``definition``, ``comment``."""
    return list(
        connection.execute(
            sa.text("""
                SELECT index_name, definition, comment FROM migration_index
                WHERE target = :target AND built_at IS NULL ORDER BY index_name
            """),
            {"target": target},
        )
    )


def all_deferred(connection: Connection) -> list[tuple[str, str]]:
    """``(target, index_name)`` of every index that waits to be built."""
    rows = connection.execute(
        sa.text("SELECT target, index_name FROM migration_index WHERE built_at IS NULL ORDER BY target, index_name")
    )
    return [(row.target, row.index_name) for row in rows]


def index_built(connection: Connection, target: str, name: str) -> None:
    """Record that a deferred index is there again."""
    connection.execute(
        sa.text("""
            UPDATE migration_index SET built_at = clock_timestamp() WHERE target = :target AND index_name = :name
        """),
        {"target": target, "name": name},
    )


def check_same(run: Run, spec: RunSpec) -> None:
    """Raises `RunConflict` where ``spec`` is not what ``run`` was begun with, naming what differs."""
    if run.fingerprint == spec.fingerprint and (run.keys_from, run.row_limit) == (spec.keys_from, spec.row_limit):
        return
    pairs: dict[str, tuple[object, object]] = {
        "source": (run.source, spec.source),
        "model": (run.model, spec.model),
        "dimension": (run.dimension, spec.dimension),
        "key map": (run.key_map, spec.key_map),
        "--keys-from": (run.keys_from, spec.keys_from),
        "--limit": (run.row_limit, spec.row_limit),
    }
    changed = "; ".join(f"{name} was {old!r}, is {new!r}" for name, (old, new) in pairs.items() if old != new)
    raise RunConflict(
        f"run {run.id} was begun with something else: {changed or 'the kind of source, or its distance'}",
        hint="give the same again, or begin anew with --restart (rows already filled stay filled)",
    )


def _run(row: Any) -> Run:
    return Run(**{field.name: row._mapping[field.name] for field in fields(Run)})
