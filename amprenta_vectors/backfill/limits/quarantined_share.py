"""The check that no larger share of a run's keys is quarantined than may be."""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy.engine import Engine

from amprenta_vectors.backfill.progress import events, quarantine
from amprenta_vectors.backfill.progress.events import Event
from amprenta_vectors.backfill.progress.figures import Counts
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.errors import TooManyQuarantined

LEAST_KEYS = 2000
"""The least number of keys that the share is taken of: a small run is not stopped by a row or two."""


class QuarantinedShare:
    """Watches the figures that all processes of a run share, for one of them.

    The run is stopped if more than ``most`` (0 to 1) of the keys that were handled since it was started, or since it
    was last stopped for this, were quarantined; keys that the source does not have do not count as quarantined. Every
    process that has joined before the stop ends by it. One that resumes afterwards counts from 0.
    """

    def __init__(
        self,
        engine: Engine,
        run: Run,
        most: float,
        *,
        look_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._run = run
        self._most = most
        self._look_seconds = look_seconds
        self._clock = clock
        self._next = clock()
        self._last_stop = 0

    def begin(self) -> None:
        """Note the last stop that there was before; call it before anything is handled."""
        with transaction(self._engine) as connection:
            self._last_stop = quarantine.quarantine_figures(connection, self._run.id).last_stop

    def check(self, counts: Counts, *, last: bool = False) -> None:
        """Raise `TooManyQuarantined` if too many keys are quarantined, or another process found that.

        The database is asked only if ``counts`` give a reason to, and at most once in ``look_seconds``; the ``last``
        check does not wait for those.
        """
        if counts.quarantined <= self._most * LEAST_KEYS or (self._clock() < self._next and not last):
            return
        self._next = self._clock() + self._look_seconds
        with transaction(self._engine) as connection:
            figures = quarantine.quarantine_figures(connection, self._run.id)
            stopped = figures.last_stop != self._last_stop
            if not stopped and figures.bad <= self._most * max(figures.handled, LEAST_KEYS):
                return
            reasons = quarantine.errors_by_reason(connection, self._run.id)
            if not stopped:
                detail = {"handled": figures.handled, "quarantined": figures.bad, "most": self._most}
                events.record_event(connection, self._run.id, Event.STOPPED, detail)
        raise self._error(stopped, figures.bad, figures.handled, reasons)

    def _error(self, stopped: bool, bad: int, handled: int, reasons: dict[str, int]) -> TooManyQuarantined:
        listed = ", ".join(f"{number:,} {reason}" for reason, number in reasons.items())
        found = "another process found that" if stopped else f"{bad:,} of {handled:,} keys were quarantined:"
        return TooManyQuarantined(
            f"run {self._run.id} is stopped: {found} more than the {100 * self._most:g} % that may be quarantined "
            f"({listed})",
            hint=f"amprenta-vectors errors {self._run.id} lists them; once the cause is mended, amprenta-vectors "
            "backfill --resume goes on and amprenta-vectors retry-failed takes them again; --max-bad-share allows more",
        )
