"""Notes on the table before a run starts, and the throttle that the run asks while it goes on."""

from __future__ import annotations

from amprenta_vectors.backfill.database.preflight import describe_target
from amprenta_vectors.backfill.database.throttle import Throttle
from amprenta_vectors.backfill.engine.observer import Observer
from amprenta_vectors.config import Settings
from amprenta_vectors.moves.ends import Ends
from amprenta_vectors.moves.events import Noticed


def open_throttle(settings: Settings, ends: Ends, observer: Observer, *, insert: bool) -> Throttle:
    """Return the throttle of the settings, after telling the observer what is worth knowing of the table.

    Raises `ConfigError` if ``AMPRENTA_THROTTLE_SQL`` fails or gives no boolean or text.
    """
    throttle = Throttle(ends.engine, ends.table, settings.thresholds)
    throttle.check()
    with ends.engine.connect() as connection:
        known = describe_target(connection, ends.table, insert=insert)
    for notice in (*known, *throttle.unseen()):
        observer(Noticed(notice))
    return throttle
