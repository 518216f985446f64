"""How many keys a batch has: grown gently towards a duration, halved on a time-out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sqlalchemy.engine import Engine

from amprenta_vectors.backfill.progress import sizes
from amprenta_vectors.backfill.progress.sizes import Timing
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.pg.errors import unless_away

SMALLEST = 100
"""Keys below which no batch is made smaller: what times out then is not the batch's size."""
LARGEST = 10_000
LARGEST_BYTES = 8 * 1024 * 1024
"""Of the vectors of a batch as float32. A process holds up to three copies of each worker's."""

EFFICIENCY = (0.9, 0.95)
"""Shares of the wanted duration between which a size is left as it is."""
MOST_GROWTH = 1.2
SMOOTHING = 0.4
"""Weight of the newest batch in the moving average."""
SMOOTHED_BATCHES = 20
LOOK_SECONDS = 1.0


def next_size(size: int, done: Sequence[Timing], wanted_seconds: float) -> int:
    """The size that follows ``size``, by what the batches that were ``done`` last took, the newest first.

    The rule is that of GitLab's batched background migrations (``BatchOptimizer`` in its
    lib/gitlab/database/background_migration, https://docs.gitlab.com/development/database/batched_background_migrations/):
    duration by wanted duration, smoothed exponentially over 20 batches, is the efficiency; between 0.90 and 0.95
    nothing changes, else the size is multiplied by 0.95 / efficiency, but by 1.2 at most. Ours differs in three ways.
    Batches are planned ahead, so the duration is reckoned for ``size`` from the seconds a key. A size shrinks to a half
    at most, so that one outage does not undo what was learnt; and it never passes twice the largest that was done.
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
    """The exponential moving average of values, the newest first; 0 of none."""
    average = 0.0
    for position, value in enumerate(reversed(values)):
        average = value if position == 0 else SMOOTHING * value + (1 - SMOOTHING) * average
    return average


class BatchSizer:
    """The size of the next batch of a run, by how its last ones went, whichever process did them.

    ``first`` is where it begins; it stays there where ``wanted_seconds`` is None, but for time-outs.
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
        """Keys for the next batch. Looks into the database once a second at most; leaves it out where that is away."""
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
            # What was done before it timed out says nothing more.
            self._seen = done[0] if done else None
            size = min(size, cut.keys // 2)
        elif self._wanted_seconds is not None and done and done[0] != self._seen:
            self._seen = done[0]
            size = next_size(size, done, self._wanted_seconds)
        self._size = min(max(size, self._smallest), self._largest)
