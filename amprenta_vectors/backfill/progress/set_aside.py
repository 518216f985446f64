"""``migration_error``: the rows that were set aside, by reason."""

from __future__ import annotations

import json
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.engine import Connection


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
