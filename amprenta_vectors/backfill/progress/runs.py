"""``migration_run``: what a run is to do, starting one, and moving it from state to state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.progress.events import Event, record_event
from amprenta_vectors.backfill.progress.keys_from import KeysFrom
from amprenta_vectors.backfill.progress.states import UNFINISHED, RunState, sources_of
from amprenta_vectors.errors import RunConflict


@dataclass(frozen=True)
class RunSpec:
    """The specification of a run. ``fingerprint`` covers what must not change between its start and its end."""

    vector_table: str
    target: str
    scope: Mapping[str, str]
    source_kind: str
    source: str
    keys_from: KeysFrom
    key_map: str
    model: str | None
    dimension: int
    fingerprint: str
    row_limit: int | None = None
    replaces: bool = False
    namespace: str | None = None


@dataclass(frozen=True)
class Run:
    """A row of ``migration_run``. ``expected_keys`` is how many keys were expected at its start; None is unknown.

    A run that ``replaces`` writes over existing values. ``limits`` has the limits that a person set while it went on:
    ``workers`` (of each process), ``list_per_second``, ``fetch_per_second``, ``read_units_per_second``,
    ``max_read_units``, ``tokens_per_second``, ``token_price``, ``max_cost``; a name that is absent was not set.
    ``read_units`` counts the tokens of a run over rows.
    """

    id: int
    vector_table: str
    target: str
    scope: dict[str, str]
    source_kind: str | None
    source: str | None
    keys_from: KeysFrom | None
    key_map: str | None
    model: str | None
    dimension: int | None
    fingerprint: str | None
    state: str
    desired_state: str
    row_limit: int | None
    replaces: bool
    expected_keys: int | None
    limits: dict[str, float]
    read_units: int
    planned_keys: int
    planned_at: datetime | None
    throttle_reason: str | None
    last_error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    verified_at: datetime | None


def load_run(connection: Connection, run_id: int) -> Run:
    """Return the run with that number."""
    return to_run(connection.execute(sa.text("SELECT * FROM migration_run WHERE id = :id"), {"id": run_id}).one())


def lock_run(connection: Connection, run_id: int) -> Run:
    """Return the run with that number, locked against other changes until the transaction's end."""
    statement = sa.text("SELECT * FROM migration_run WHERE id = :id FOR NO KEY UPDATE")
    return to_run(connection.execute(statement, {"id": run_id}).one())


def share_run(connection: Connection, run_id: int) -> Run:
    """Return the run with that number; it can be neither cancelled nor paused before the transaction's end."""
    statement = sa.text("SELECT * FROM migration_run WHERE id = :id FOR KEY SHARE")
    return to_run(connection.execute(statement, {"id": run_id}).one())


def list_runs(connection: Connection) -> list[Run]:
    """Return every run, the newest first."""
    return [to_run(row) for row in connection.execute(sa.text("SELECT * FROM migration_run ORDER BY id DESC"))]


def unfinished_run(connection: Connection, target: str, scope: Mapping[str, str]) -> Run | None:
    """Return the started, unfinished run into that column and scope; there is at most one."""
    row = connection.execute(
        sa.text("""
            SELECT * FROM migration_run
            WHERE target = :target AND scope = CAST(:scope AS jsonb) AND source IS NOT NULL AND state = ANY(:states)
        """),
        {"target": target, "scope": json.dumps(dict(scope)), "states": list(UNFINISHED)},
    ).first()
    return None if row is None else to_run(row)


def finished_run(connection: Connection, target: str, fingerprint: str) -> Run | None:
    """Return the last run with that fingerprint, if it finished and no revision has queued another one since.

    A run over given or quarantined keys does not count, as it did not look for others, nor does a reconcile, nor a run
    whose scope was rolled back since.
    """
    row = connection.execute(
        sa.text("""
            SELECT * FROM migration_run
            WHERE target = :target AND (source IS NULL OR (
                fingerprint = :fingerprint AND keys_from IN ('table', 'source')
            ))
            ORDER BY id DESC LIMIT 1
        """),
        {"target": target, "fingerprint": fingerprint},
    ).first()
    if row is None or row.source is None or row.state != RunState.FINISHED:
        return None
    run = to_run(row)
    return None if _rolled_back_since(connection, run) else run


def _rolled_back_since(connection: Connection, run: Run) -> bool:
    statement = sa.text("""
        SELECT EXISTS (
            SELECT 1 FROM migration_event e JOIN migration_run r ON r.id = e.run_id
            WHERE r.target = :target AND r.scope = CAST(:scope AS jsonb) AND e.event = :event AND e.at > :finished_at
        )
    """)
    values = {
        "target": run.target,
        "scope": json.dumps(run.scope),
        "event": Event.ROLLED_BACK,
        "finished_at": run.finished_at,
    }
    return bool(connection.execute(statement, values).scalar_one())


def last_finished(connection: Connection, target: str, scope: Mapping[str, str]) -> int | None:
    """Return the number of the last run that finished into that column and scope."""
    found: int | None = connection.execute(
        sa.text("""
            SELECT max(id) FROM migration_run
            WHERE target = :target AND scope = CAST(:scope AS jsonb) AND source IS NOT NULL AND state = 'finished'
        """),
        {"target": target, "scope": json.dumps(dict(scope))},
    ).scalar_one()
    return found


def earlier_models(connection: Connection, target: str, scope: Mapping[str, str]) -> set[str]:
    """Return the models whose vectors earlier runs wrote into that column and scope."""
    rows = connection.execute(
        sa.text("""
            SELECT DISTINCT r.model FROM migration_run r JOIN migration_progress p ON p.run_id = r.id
            WHERE r.target = :target AND r.scope = CAST(:scope AS jsonb) AND r.model IS NOT NULL AND p.rows_written > 0
        """),
        {"target": target, "scope": json.dumps(dict(scope))},
    )
    return set(rows.scalars())


def earlier_source(connection: Connection, target: str, scope: Mapping[str, str]) -> str | None:
    """Return the source that runs last wrote into that column and scope from, beside the rows themselves."""
    rows = connection.execute(
        sa.text("""
            SELECT r.source FROM migration_run r
            WHERE r.target = :target AND r.scope = CAST(:scope AS jsonb) AND r.source_kind <> 'rows' AND EXISTS (
                SELECT 1 FROM migration_progress p WHERE p.run_id = r.id AND p.rows_written > 0
            ) ORDER BY r.id DESC LIMIT 1
        """),
        {"target": target, "scope": json.dumps(dict(scope))},
    )
    found: str | None = rows.scalars().first()
    return found


def has_written(connection: Connection, target: str, scope: Mapping[str, str]) -> bool:
    """Return whether a run, finished or not, wrote into that column and scope."""
    statement = sa.text("""
        SELECT EXISTS (
            SELECT 1 FROM migration_run r JOIN migration_progress p ON p.run_id = r.id
            WHERE r.target = :target AND r.scope = CAST(:scope AS jsonb) AND p.rows_written > 0
        )
    """)
    return bool(connection.execute(statement, {"target": target, "scope": json.dumps(dict(scope))}).scalar_one())


def begin_run(
    connection: Connection, spec: RunSpec, expected_keys: int | None = None, *, state: RunState = RunState.RUNNING
) -> Run:
    """Start a run: the one that a revision queued for this column, if there is one, else a new one.

    A run whose ``state`` is planned waits for `start_planned`: other runs into the column come before it.

    Call it under `serialize_starts`. The database refuses a second live run into one column and scope. A queued run is
    over all rows: raises `RunConflict` while one is queued if ``spec`` is for some rows only, or a reconcile.
    """
    if spec.keys_from not in ("table", "source") and _is_queued(connection, spec.target):
        raise RunConflict(
            f"a backfill of {spec.target} is queued",
            hint="amprenta-vectors backfill --resume starts it; some rows by themselves, or a reconcile, come after it",
        )
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
        "replaces": spec.replaces,
        "namespace": spec.namespace,
        "expected_keys": expected_keys,
        "state": state,
    }
    queued = connection.execute(
        sa.text("""
            UPDATE migration_run SET
                scope = CAST(:scope AS jsonb), source_kind = :source_kind, source = :source, keys_from = :keys_from,
                key_map = :key_map, model = :model, dimension = :dimension, fingerprint = :fingerprint,
                row_limit = :row_limit, replaces = :replaces, namespace = :namespace, expected_keys = :expected_keys,
                state = CAST(:state AS text), desired_state = 'running',
                started_at = CASE WHEN :state = 'running' THEN clock_timestamp() END
            WHERE id = (
                SELECT id FROM migration_run WHERE target = :target AND state = 'planned' AND source IS NULL
                ORDER BY id LIMIT 1
            )
            RETURNING *
        """),
        values,
    ).first()
    if queued is not None:
        return to_run(queued)
    return to_run(
        connection.execute(
            sa.text("""
                INSERT INTO migration_run (
                    vector_table, target, scope, source_kind, source, keys_from, key_map, model, dimension,
                    fingerprint, row_limit, replaces, namespace, expected_keys, state, desired_state, started_at
                ) VALUES (
                    :vector_table, :target, CAST(:scope AS jsonb), :source_kind, :source, :keys_from, :key_map, :model,
                    :dimension, :fingerprint, :row_limit, :replaces, :namespace, :expected_keys,
                    CAST(:state AS text), 'running', CASE WHEN :state = 'running' THEN clock_timestamp() END
                ) RETURNING *
            """),
            values,
        ).one()
    )


def start_planned(connection: Connection, run_id: int, expected_keys: int | None) -> Run:
    """Start a run that was planned by `begin_run`."""
    statement = sa.text("""
        UPDATE migration_run SET state = 'running', started_at = clock_timestamp(), expected_keys = :expected_keys
        WHERE id = :id AND state = 'planned' RETURNING *
    """)
    return to_run(connection.execute(statement, {"id": run_id, "expected_keys": expected_keys}).one())


def _is_queued(connection: Connection, target: str) -> bool:
    statement = sa.text("""
        SELECT EXISTS (SELECT 1 FROM migration_run WHERE target = :target AND state = 'planned' AND source IS NULL)
    """)
    return bool(connection.execute(statement, {"target": target}).scalar_one())


def move(connection: Connection, run_id: int, state: RunState, *, error: str | None = None) -> bool:
    """Move a run into ``state`` if that may follow the state it is in; return whether it did."""
    moved = connection.execute(
        sa.text("""
            UPDATE migration_run
            SET state = CAST(:state AS text), last_error = :error,
                finished_at = CASE WHEN :state IN ('finished', 'cancelled') THEN clock_timestamp() END
            WHERE id = :id AND state = ANY(:before)
        """),
        {"id": run_id, "state": state, "error": error, "before": list(sources_of(state))},
    )
    return moved.rowcount == 1


def cancel(connection: Connection, run_id: int) -> None:
    """Cancel a run once no transaction that writes rows of it is under way; none can be committed afterwards."""
    # Stronger than the UPDATE's own lock: it excludes the one that `lock_batch` holds.
    connection.execute(sa.text("SELECT 1 FROM migration_run WHERE id = :id FOR UPDATE"), {"id": run_id})
    if move(connection, run_id, RunState.CANCELLED):
        record_event(connection, run_id, Event.CANCELLED)


def finish(connection: Connection, run_id: int) -> bool:
    """Move a run to the end that is ordered, finished or cancelled; return whether this finished it.

    A run that is to be paused, or has work left after all, stays as it is: a crash of the server may have taken back
    the last batches, whose commits do not wait for the disk.
    """
    desired = connection.execute(
        sa.text("SELECT desired_state FROM migration_run WHERE id = :id FOR NO KEY UPDATE"), {"id": run_id}
    ).scalar_one()
    if desired == RunState.CANCELLED:
        cancel(connection, run_id)
    may_finish = desired == RunState.RUNNING and not work_left(connection, run_id)
    finished = may_finish and move(connection, run_id, RunState.FINISHED)
    if finished:
        record_event(connection, run_id, Event.FINISHED)
    return finished


def note_error(connection: Connection, run_id: int, message: str | None) -> None:
    """Record why a run stopped, for whoever looks at its status."""
    connection.execute(
        sa.text("UPDATE migration_run SET last_error = :message WHERE id = :id"), {"id": run_id, "message": message}
    )


def work_left(connection: Connection, run_id: int) -> bool:
    """Return whether the run is running or paused, and keys are still to be planned or batches to be done."""
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
    """Return whether another started run into the same column has not ended; one that is only queued does not count."""
    statement = sa.text("""
        SELECT EXISTS (
            SELECT 1 FROM migration_run
            WHERE target = :target AND id <> :run_id AND source IS NOT NULL AND state = ANY(:states)
        )
    """)
    values = {"target": target, "run_id": run_id, "states": list(UNFINISHED)}
    return bool(connection.execute(statement, values).scalar_one())


def check_same(run: Run, spec: RunSpec) -> None:
    """Raise `RunConflict`, naming what differs, if ``spec`` is not what ``run`` was started with."""
    same = (run.keys_from, run.row_limit, run.replaces) == (spec.keys_from, spec.row_limit, spec.replaces)
    if run.fingerprint == spec.fingerprint and same:
        return
    pairs: dict[str, tuple[object, object]] = {
        "source": (run.source, spec.source),
        "model": (run.model, spec.model),
        "dimension": (run.dimension, spec.dimension),
        "key map": (run.key_map, spec.key_map),
        "--keys-from": (run.keys_from, spec.keys_from),
        "--limit": (run.row_limit, spec.row_limit),
        "--force": (run.replaces, spec.replaces),
    }
    changed = "; ".join(f"{name} was {old!r}, is {new!r}" for name, (old, new) in pairs.items() if old != new)
    raise RunConflict(
        f"run {run.id} was begun with something else: {changed or 'the kind of source, or its distance'}",
        hint="give the same again, or begin anew with --restart (rows already filled stay filled)",
    )


def to_run(row: Any) -> Run:
    """Return the run of a row that has every column of ``migration_run``."""
    return Run(**{field.name: row._mapping[field.name] for field in fields(Run)})
