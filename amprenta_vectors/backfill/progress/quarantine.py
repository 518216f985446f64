"""``migration_quarantine``: the rows that were quarantined, by reason, and the plan of a run that retries them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.progress.keys_from import KeysFrom
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.errors import RowError

LONGEST_DETAIL = 500
"""The number of characters kept of why a row was quarantined."""


@dataclass(frozen=True)
class QuarantinedRow:
    """A row that a run quarantined and that no run has resolved since; ``attempts`` counts those of all runs."""

    run: int
    target: str
    scope: Mapping[str, str]
    key: str
    reason: str
    detail: str
    attempts: int
    at: datetime


RESOLVE = """
    UPDATE migration_quarantine e SET resolved_at = clock_timestamp() FROM migration_run r
    WHERE r.id = e.run_id AND r.target = :target AND r.scope = CAST(:scope AS jsonb)
      AND e.resolved_at IS NULL
      AND e.key = ANY(CAST((
          SELECT p.keys FROM migration_progress p WHERE p.run_id = :run_id AND p.batch = :batch
      ) AS text[]))
      AND NOT EXISTS (
          SELECT 1 FROM unnest(CAST(:in_error AS text[]), CAST(:reasons AS text[])) AS now(key, reason)
          WHERE now.key = e.key AND now.reason = e.reason
      )
"""
"""The statement that resolves the keys of a batch that are no longer in error, while the batch still has its keys."""


def settle(connection: Connection, run: Run, batch: int, errors: Sequence[RowError]) -> dict[str, Any]:
    """Record the errors of a batch, in the transaction that wrote its rows; return the values of `RESOLVE`.

    A key that was quarantined before, by this run or another into the same column and scope, is resolved if there is
    no error for it now, or an error with another reason; its attempts are counted on.
    """
    current = {(error.key, str(error.reason)): error for error in errors}
    values = {
        "run_id": run.id,
        "batch": batch,
        "target": run.target,
        "scope": json.dumps(run.scope),
        "in_error": [key for key, _ in current],
        "reasons": [reason for _, reason in current],
    }
    if current:
        connection.execute(
            sa.text("""
                INSERT INTO migration_quarantine (run_id, key, reason, batch, detail, attempts)
                SELECT :run_id, now.key, now.reason, :batch, now.detail, 1 + coalesce((
                    SELECT max(e.attempts) FROM migration_quarantine e JOIN migration_run r ON r.id = e.run_id
                    WHERE r.target = :target AND r.scope = CAST(:scope AS jsonb) AND e.key = now.key
                      AND e.resolved_at IS NULL
                ), 0)
                FROM unnest(CAST(:in_error AS text[]), CAST(:reasons AS text[]), CAST(:details AS text[]))
                    AS now(key, reason, detail)
                ON CONFLICT (run_id, key, reason) DO UPDATE
                SET attempts = greatest(excluded.attempts, migration_quarantine.attempts + 1), detail = excluded.detail,
                    resolved_at = NULL
            """),
            {**values, "details": [error.detail.replace("\0", "")[:LONGEST_DETAIL] for error in current.values()]},
        )
    return values


def errors_by_reason(connection: Connection, run_id: int) -> dict[str, int]:
    """Return how many rows are quarantined, by reason."""
    rows = connection.execute(
        sa.text("""
            SELECT reason, count(*) AS rows FROM migration_quarantine WHERE run_id = :run_id AND resolved_at IS NULL
            GROUP BY reason ORDER BY reason
        """),
        {"run_id": run_id},
    )
    return {row.reason: row.rows for row in rows}


@dataclass(frozen=True)
class QuarantineFigures:
    """How many keys were handled, and how many quarantined, since a run was last stopped for too many.

    Missing keys are handled, and not ``bad``. ``last_stop`` identifies that stop; it is 0 if there was none.
    """

    last_stop: int
    handled: int
    bad: int


def quarantine_figures(connection: Connection, run_id: int) -> QuarantineFigures:
    """Return the figures of all processes of a run, since it was started or last stopped."""
    row = connection.execute(
        sa.text("""
            WITH stop AS (
                SELECT coalesce(max(id), 0) AS id, coalesce(max(at), '-infinity') AS at
                FROM migration_event WHERE run_id = :run_id AND event = 'stopped'
            )
            SELECT (SELECT id FROM stop) AS last_stop, coalesce(sum(keys_done), 0)::bigint AS handled,
                   coalesce(sum(rows_quarantined), 0)::bigint AS bad
            FROM migration_progress
            WHERE run_id = :run_id AND status = 'done' AND finished_at > (SELECT at FROM stop)
        """),
        {"run_id": run_id},
    ).one()
    return QuarantineFigures(**row._mapping)


def quarantined_keys(connection: Connection, target: str, scope: Mapping[str, str]) -> dict[str, str]:
    """Return the source keys that runs into that column and scope have quarantined, each with its reason."""
    rows = connection.execute(
        sa.text("""
            SELECT e.key, min(e.reason) AS reason FROM migration_quarantine e JOIN migration_run r ON r.id = e.run_id
            WHERE r.target = :target AND r.scope = CAST(:scope AS jsonb) AND e.resolved_at IS NULL GROUP BY e.key
        """),
        {"target": target, "scope": json.dumps(dict(scope))},
    )
    return {row.key: row.reason for row in rows}


# A row that several runs quarantined for one reason counts once, as the latest run's.
_STANDING = """
    SELECT DISTINCT ON (r.target, r.scope, e.key, e.reason)
           e.run_id AS run, r.target, r.scope, e.key, e.reason, e.detail, e.attempts, e.created_at AS at
    FROM migration_quarantine e JOIN migration_run r ON r.id = e.run_id
    WHERE e.resolved_at IS NULL AND (CAST(:run AS bigint) IS NULL OR e.run_id = :run)
      AND (CAST(:reason AS text) IS NULL OR e.reason = :reason)
    ORDER BY r.target, r.scope, e.key, e.reason, e.run_id DESC
"""
_LISTED = sa.text("SELECT * FROM (" + _STANDING + ") standing ORDER BY run DESC, reason, key LIMIT :limit")  # noqa: S608
_COUNTED = sa.text(
    "SELECT reason, count(*) AS rows FROM (" + _STANDING + ") standing GROUP BY reason ORDER BY reason"  # noqa: S608
)


# Rows of these reasons are good as they are.
_WAYS = sa.text(
    "SELECT r.vector_table AS table, r.source_kind, coalesce(r.keys_from = 'reconcile', false) AS reconciles, "  # noqa: S608
    "array_agg(DISTINCT coalesce(r.namespace, '')) AS namespaces FROM (" + _STANDING + ") standing "
    "JOIN migration_run r ON r.id = standing.run WHERE standing.reason NOT IN ('changed_here', 'gone_at_source') "
    "GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
)


@dataclass(frozen=True)
class WayToRetry:
    """Which command takes quarantined rows again: of which table, from which kind of source, in which namespaces."""

    table: str
    source_kind: str | None
    reconciles: bool
    namespaces: list[str]


def ways_to_retry(connection: Connection, run_id: int | None, reason: str | None) -> list[WayToRetry]:
    """Return how the rows that `list_quarantined` lists are taken again."""
    return [WayToRetry(**row._mapping) for row in connection.execute(_WAYS, {"run": run_id, "reason": reason})]


def list_quarantined(
    connection: Connection, run_id: int | None, reason: str | None, limit: int
) -> tuple[dict[str, int], list[QuarantinedRow]]:
    """Return how many rows are quarantined, by reason, and the first ``limit`` of them, the newest run's first.

    ``run_id`` and ``reason`` narrow the rows to one run and one reason; None means all.
    """
    values = {"run": run_id, "reason": reason, "limit": limit}
    counts = {row.reason: row.rows for row in connection.execute(_COUNTED, values)}
    return counts, [QuarantinedRow(**row._mapping) for row in connection.execute(_LISTED, values)]


# A key belongs to the latest run that quarantined it: the retry must treat absent rows as that run did. A reconcile
# replaces what a retry would leave, so that its rows are for the next pass.
_TO_RETRY = """
    SELECT key, keys_from, replaces FROM (
        SELECT DISTINCT ON (e.key) e.key, r.keys_from, r.replaces
        FROM migration_quarantine e JOIN migration_run r ON r.id = e.run_id
        WHERE r.target = :target AND r.scope = CAST(:scope AS jsonb) AND r.source_kind = :source_kind
          AND e.resolved_at IS NULL AND (CAST(:reason AS text) IS NULL OR e.reason = :reason)
          AND e.reason NOT IN ('changed_here', 'gone_at_source')
        ORDER BY e.key, e.run_id DESC
    ) latest WHERE keys_from <> 'reconcile'
"""
_KINDS_TO_RETRY = sa.text("SELECT DISTINCT keys_from, replaces FROM (" + _TO_RETRY + ") aside")  # noqa: S608
_PLAN_RETRY = sa.text(
    """
    WITH numbered AS (
        SELECT key, (row_number() OVER (ORDER BY key) - 1) / :size + 1 AS batch
        FROM ("""  # noqa: S608
    + _TO_RETRY
    + """) aside WHERE keys_from = ANY(CAST(:origins AS text[])) AND replaces = :replaced
    ), stored AS (
        INSERT INTO migration_progress (run_id, batch, first_key, last_key, keys)
        SELECT :run_id, batch, min(key), max(key), array_agg(key ORDER BY key) FROM numbered GROUP BY batch
        RETURNING cardinality(keys) AS keys
    )
    UPDATE migration_run
    SET planned_keys = (SELECT coalesce(sum(keys), 0) FROM stored), planned_at = clock_timestamp()
    WHERE id = :run_id
    """
)


def kinds_to_retry(
    connection: Connection, target: str, scope: Mapping[str, str], source_kind: str, reason: str | None
) -> set[tuple[KeysFrom, bool]]:
    """Return ``keys_from`` of the runs that quarantined keys last, and whether they replaced values.

    Only runs from that kind of source into that column and scope count.
    """
    values: dict[str, Any] = {
        "target": target,
        "scope": json.dumps(dict(scope)),
        "source_kind": source_kind,
        "reason": reason,
    }
    return {(row.keys_from, row.replaces) for row in connection.execute(_KINDS_TO_RETRY, values)}


def plan_retry(connection: Connection, run: Run, origins: Sequence[str], reason: str | None, batch_size: int) -> None:
    """Store all batches of a run that retries what runs with ``keys_from`` among ``origins`` have quarantined.

    Only runs from its kind of source count, and only those that replaced values if it does, or did not if it does
    not. Call it in the transaction that starts the run; its plan is complete afterwards.
    """
    connection.execute(
        _PLAN_RETRY,
        {
            "run_id": run.id,
            "target": run.target,
            "scope": json.dumps(run.scope),
            "source_kind": run.source_kind,
            "reason": reason,
            "origins": list(origins),
            "replaced": run.replaces,
            "size": batch_size,
        },
    )
