"""``prune``: what nobody asks for any more goes from the engine's tables, in one transaction."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from amprenta_vectors.backfill.progress.pruning import prune_runs
from amprenta_vectors.backfill.progress.transactions import require_tables
from amprenta_vectors.stores.outbox import TOMBSTONE_HOURS

_LIMITS = sa.text("SELECT set_config('lock_timeout', '10s', true)")
_QUERIES = sa.text("DELETE FROM shadow_query WHERE at < :moment")
_TOMBSTONES = sa.text("""
    DELETE FROM vector_outbox
    WHERE cleared_at < least(:moment, clock_timestamp() - make_interval(hours => :hours))
""")


def prune(engine: Engine, moment: datetime, *, dry_run: bool) -> Counter[str]:
    """Delete runs that ended before ``moment`` and that nothing rests on, events, shadow queries and tombstones.

    Returns how many rows, by table. A dry run does the same and takes it back. Raises `NotUpgraded`.
    """
    with engine.connect() as connection, connection.begin() as transaction:
        connection.execute(_LIMITS)
        require_tables(connection)
        deleted = Counter(prune_runs(connection, moment))
        deleted["shadow_query"] = connection.execute(_QUERIES, {"moment": moment}).rowcount
        tombstones = {"moment": moment, "hours": TOMBSTONE_HOURS}
        deleted["vector_outbox"] = connection.execute(_TOMBSTONES, tombstones).rowcount
        if dry_run:
            transaction.rollback()
    return +deleted
