"""What a person should know before a run starts, and what the run will watch while it goes on."""

from __future__ import annotations

from amprenta_vectors.backfill.database.preflight import describe_target
from amprenta_vectors.backfill.database.throttle import Throttle
from amprenta_vectors.backfill.engine.observer import Observer
from amprenta_vectors.config import Settings
from amprenta_vectors.moves.ends import Ends
from amprenta_vectors.moves.events import Noticed


def open_throttle(settings: Settings, ends: Ends, observer: Observer, *, insert: bool) -> Throttle:
    """Return the throttle of the settings, once the observer knows what is worth knowing of the table.

    Raises `ConfigError` where ``AMPRENTA_THROTTLE_SQL`` is no predicate.
    """
    throttle = Throttle(ends.engine, ends.table, settings.thresholds)
    throttle.check()
    with ends.engine.connect() as connection:
        known = describe_target(connection, ends.table, insert=insert)
    for notice in (*known, *throttle.unseen()):
        observer(Noticed(notice))
    return throttle
