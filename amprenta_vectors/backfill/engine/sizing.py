"""The size of a batch in keys: it grows gently towards a wanted duration, and is halved on a time-out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sqlalchemy.engine import Engine

from amprenta_vectors.backfill.progress import sizes
from amprenta_vectors.backfill.progress.sizes import Timing
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.pg.errors import unless_away

SMALLEST = 100
"""The number of keys below which no batch is made smaller: the size is not what makes such a batch time out."""
LARGEST = 10_000
LARGEST_BYTES = 8 * 1024 * 1024
"""The most bytes of vectors in a batch, as float32. A process holds up to three copies of each worker's batch."""

EFFICIENCY = (0.9, 0.95)
"""The shares of the wanted duration between which a size is left as it is."""
MOST_GROWTH = 1.2
SMOOTHING = 0.4
"""The weight of the newest batch in the moving average."""
SMOOTHED_BATCHES = 20
LOOK_SECONDS = 1.0


def next_size(size: int, done: Sequence[Timing], wanted_seconds: float) -> int:
    """Return the size that follows ``size``, from the timings of the batches last ``done``, the newest first.

    The rule is that of GitLab's batched background migrations (``BatchOptimizer`` in its
    lib/gitlab/database/background_migration, https://docs.gitlab.com/development/database/batched_background_migrations/):
    duration by wanted duration, smoothed exponentially over 20 batches, is the efficiency; between 0.90 and 0.95
    nothing changes, else the size is multiplied by 0.95 / efficiency, but by 1.2 at most. Ours differs in three ways.
    Batches are planned ahead, so the duration of ``size`` keys is reckoned from the seconds per key. A size at most
    halves, so that one outage does not undo what was learnt; and it never passes twice the largest that was done.
    """
    keys = smoothed([timing.keys for timing in done])
    seconds = smoothed([timing.seconds for timing in done])
    if keys <= 0 or seconds <= 0:
        return size
    efficiency = seconds / keys * size / wanted_seconds
    if EFFICIENCY[0] <= efficiency <= EFFICIENCY[1]:
        return size
    grown = round(size * min(max(EFFICIENCY[1] / efficiency, 0.5), MOST_GROWTH))
    return grown if grown < size else max(size, min(grown, 2 * max(timing.keys for timing in done)))


def smoothed(values: Sequence[float]) -> float:
    """Return the exponential moving average of values, the newest first; 0 if there are none."""
    average = 0.0
    for position, value in enumerate(reversed(values)):
        average = value if position == 0 else SMOOTHING * value + (1 - SMOOTHING) * average
    return average


class BatchSizer:
    """The size of the next batch of a run, by how its last batches went, whichever process did them.

    The size starts at ``first``; if ``wanted_seconds`` is None, only time-outs change it.
    """

    def __init__(
        self,
        engine: Engine,
        run_id: int,
        first: int,
        *,
        wanted_seconds: float | None,
        dimension: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._run_id = run_id
        self._size = first
        self._smallest = min(SMALLEST, first)
        self._largest = max(first, min(LARGEST, LARGEST_BYTES // (4 * dimension)))
        self._wanted_seconds = wanted_seconds
        self._clock = clock
        self._look_at = clock()
        self._seen: Timing | None = None
        self._cut = 0

    def __call__(self) -> int:
        """Return the keys for the next batch; look into the database at most once a second, and only if it is there."""
        if self._clock() >= self._look_at:
            unless_away(self._look)
            self._look_at = self._clock() + LOOK_SECONDS
        return self._size

    def _look(self) -> None:
        with transaction(self._engine) as connection:
            done = sizes.list_timings(connection, self._run_id, SMOOTHED_BATCHES)
            cut = sizes.last_cut(connection, self._run_id)
        size = self._size
        if cut is not None and cut.event_id > self._cut:
            self._cut = cut.event_id
            # The timings of batches done before the time-out no longer count.
            self._seen = done[0] if done else None
            size = min(size, cut.keys // 2)
        elif self._wanted_seconds is not None and done and done[0] != self._seen:
            self._seen = done[0]
            size = next_size(size, done, self._wanted_seconds)
        self._size = min(max(size, self._smallest), self._largest)
