"""The target keys that a run saw, batch by batch, and the rows of its table that were not among them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.reasons import Reason

_PROGRESS = sa.table("migration_progress", sa.column("run_id"), sa.column("keys", ARRAY(sa.Text)))


@dataclass(frozen=True)
class Gone:
    """How many of the ``rows`` with an embedding the source has no record of (``gone``), and what became of them.

    ``emptied`` counts rows of the application's own, which lost their embedding and stayed. ``refused`` says why
    nothing was deleted, or listed, at all.
    """

    rows: int
    gone: int
    deleted: int = 0
    emptied: int = 0
    refused: str | None = None


def seen_keys(run_id: int, width: int) -> sa.Select[*tuple[str, ...]]:
    """Return a query of the keys that the batches of a run keep, as ``width`` columns of text."""
    firsts = sa.func.generate_series(1, sa.func.cardinality(_PROGRESS.c["keys"]), width).table_valued("first")
    each = firsts.render_derived(name="each")
    parts = [_PROGRESS.c["keys"][each.c.first + position].label(f"key_{position}") for position in range(width)]
    return sa.select(*parts).select_from(_PROGRESS.join(each, sa.true())).where(_PROGRESS.c.run_id == run_id)


def forget_seen(connection: Connection, run_id: int) -> None:
    """Delete the keys that the batches of a run keep."""
    connection.execute(
        sa.text("UPDATE migration_progress SET keys = '{}' WHERE run_id = :run_id AND cardinality(keys) > 0"),
        {"run_id": run_id},
    )


def list_gone(connection: Connection, run: Run, keys: sa.Select[str]) -> None:
    """List rows by their ``keys`` as gone at the source, in place of all that were listed as such before.

    It is done once a run, while the run is locked: another process of it may have settled some rows already.
    """
    scope = json.dumps(run.scope)
    listed_already = connection.execute(
        sa.text("SELECT EXISTS (SELECT 1 FROM migration_quarantine WHERE run_id = :run_id AND reason = :reason)"),
        {"run_id": run.id, "reason": Reason.GONE},
    ).scalar_one()
    if listed_already:
        return
    connection.execute(
        sa.text("""
            UPDATE migration_quarantine e SET resolved_at = clock_timestamp() FROM migration_run r
            WHERE r.id = e.run_id AND r.target = :target AND r.scope = CAST(:scope AS jsonb) AND e.reason = :reason
              AND e.resolved_at IS NULL
        """),
        {"target": run.target, "scope": scope, "reason": Reason.GONE},
    )
    listed = sa.table("migration_quarantine", *map(sa.column, ("run_id", "key", "reason", "batch", "detail")))
    key = keys.subquery().c[0]
    rows = sa.select(
        sa.literal(run.id, sa.BigInteger),
        key,
        sa.literal(str(Reason.GONE), sa.Text),
        sa.literal(0, sa.BigInteger),
        sa.literal("the source has no such record", sa.Text),
    )
    connection.execute(sa.insert(listed).from_select(["run_id", "key", "reason", "batch", "detail"], rows))


def gone_after(connection: Connection, run_id: int, key: str | None, most: int) -> list[str]:
    """Return at most ``most`` keys listed as gone, in order, that come after ``key``."""
    statement = sa.text("""
        SELECT key FROM migration_quarantine
        WHERE run_id = :run_id AND reason = :reason AND resolved_at IS NULL
          AND (CAST(:key AS text) IS NULL OR key > :key)
        ORDER BY key LIMIT :most
    """)
    values = {"run_id": run_id, "reason": Reason.GONE, "key": key, "most": most}
    return list(connection.execute(statement, values).scalars())


def settle_gone(connection: Connection, run_id: int, settled: Sequence[str], left: Mapping[str, str]) -> None:
    """Record that rows listed as gone are ``settled``, or ``left`` as they are, each for the reason given."""
    connection.execute(
        sa.text("""
            UPDATE migration_quarantine SET resolved_at = clock_timestamp()
            WHERE run_id = :run_id AND reason = :reason AND key = ANY(CAST(:keys AS text[]))
        """),
        {"run_id": run_id, "reason": Reason.GONE, "keys": list(settled)},
    )
    connection.execute(
        sa.text("""
            UPDATE migration_quarantine e SET detail = given.why
            FROM unnest(CAST(:keys AS text[]), CAST(:whys AS text[])) AS given(key, why)
            WHERE e.run_id = :run_id AND e.reason = :reason AND e.key = given.key
        """),
        {"run_id": run_id, "reason": Reason.GONE, "keys": list(left), "whys": list(left.values())},
    )
