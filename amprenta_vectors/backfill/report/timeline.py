"""The times at which a run worked and waited, and from them how long the rest will take."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from amprenta_vectors.backfill.progress.events import Event
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.progress.snapshot import RECENT_SECONDS, Bucket, Happening, Snapshot
from amprenta_vectors.backfill.progress.states import UNFINISHED

SILENT_SECONDS = 60.0
"""The time without a completed batch after which a run counts as silent: no process was at work, or all waited. A batch
that goes well ends sooner."""
FEWEST_RATES, MOST_RATES = 4, 20

Wait = Literal["paused", "throttled", "silent"]

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))

_OPENED: dict[Event, Wait] = {Event.PAUSED: "paused", Event.THROTTLED: "throttled"}
_CLOSED: dict[Event, tuple[Wait, ...]] = {
    Event.RESUMED: ("paused",),
    Event.UNTHROTTLED: ("throttled",),
    **dict.fromkeys((Event.FINISHED, Event.CANCELLED), ("paused", "throttled")),
}


def to_duration(seconds: float) -> str:
    """Return seconds in the two largest units that are not zero: ``2 h 5 min``."""
    left = round(seconds)
    parts: list[str] = []
    for size, unit in _UNITS:
        number, left = divmod(left, size)
        if number or (size == 1 and not parts):
            parts.append(f"{number} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])


@dataclass(frozen=True)
class Span:
    """A stretch in which the run did not work, in seconds since it started."""

    kind: Wait
    begin: float
    end: float
    reason: str = ""

    @property
    def seconds(self) -> float:
        """The length of the stretch."""
        return self.end - self.begin


@dataclass(frozen=True)
class Remaining:
    """The seconds that the rest of a run will take; ``most`` is None if at the slow rate it never ends."""

    least: float
    most: float | None


class _Recorded(Protocol):
    """The part of a `Snapshot` that tells a run's time."""

    @property
    def seconds(self) -> float: ...
    @property
    def bucket_seconds(self) -> float: ...
    @property
    def buckets(self) -> Sequence[Bucket]: ...
    @property
    def events(self) -> Sequence[Happening]: ...


def to_spans(recorded: _Recorded, events: Iterable[Happening] | None = None) -> list[Span]:
    """Return the pauses and throttlings from the run's events, and the silences from its buckets, by their start."""
    end = recorded.seconds
    spans, opened = [], dict[Wait, Happening]()
    for event in recorded.events if events is None else events:
        opens = _OPENED.get(event.event)
        for kind in _CLOSED.get(event.event, (opens,) if opens else ()):
            begun = opened.pop(kind, None)
            if begun is not None:
                spans.append(_span(kind, begun, event.at))
        if opens is not None:
            opened[opens] = event
    spans += [_span(kind, begun, end) for kind, begun in opened.items()]
    spans.sort(key=lambda span: span.begin)
    return sorted((*spans, *_silences(recorded, spans)), key=lambda span: span.begin)


def _span(kind: Wait, begun: Happening, end: float) -> Span:
    return Span(kind, max(begun.at, 0.0), max(end, begun.at, 0.0), str(begun.detail.get("reason") or ""))


def _silences(recorded: _Recorded, known: Sequence[Span]) -> Iterator[Span]:
    """Yield the silences between buckets, and since the last one, that ``known`` spans do not explain."""
    before = 0.0
    for begin in (*(bucket.begin for bucket in recorded.buckets), recorded.seconds):
        for span in (*known, Span("silent", begin, begin)):
            if min(span.begin, begin) - before >= SILENT_SECONDS:
                yield Span("silent", before, min(span.begin, begin))
            before = max(before, min(span.end, begin))
        before = begin + recorded.bucket_seconds


def waited_seconds(spans: Sequence[Span], begin: float, end: float) -> float:
    """Return how many seconds from ``begin`` to ``end`` lie in any of ``spans``, which are in order."""
    waited, reached = 0.0, begin
    for span in spans:
        start, stop = max(span.begin, reached), min(span.end, end)
        if stop > start:
            waited, reached = waited + stop - start, stop
    return waited


def rates(recorded: _Recorded, spans: Sequence[Span]) -> list[float]:
    """Return keys per second over at most 20 stretches, alike in length, of the later half of the run's working time.

    Time spent waiting does not count. A bucket of which less than half is left is passed over, as is the last one,
    which is not over yet.
    """
    width = recorded.bucket_seconds
    done = {round(bucket.begin / width): bucket.keys for bucket in recorded.buckets}
    worked = []
    for number in range(int(recorded.seconds / width)):
        begin = number * width
        seconds = width - waited_seconds(spans, begin, begin + width)
        if seconds >= width / 2:
            worked.append((seconds, done.get(number, 0)))
    later = worked[-max(len(worked) // 2, min(len(worked), 2 * FEWEST_RATES)) :]
    size = -(-len(later) // MOST_RATES) or 1
    parts = [later[start : start + size] for start in range(0, len(later), size)]
    return [sum(keys for _, keys in part) / sum(seconds for seconds, _ in part) for part in parts]


def remaining(left: int, rates: Sequence[float]) -> Remaining | None:
    """Return how long ``left`` keys take at the 75th percentile of ``rates``, and at the 25th.

    Of fewer than four rates it is the highest and the lowest. Returns None if there is none, or nothing moved.
    """
    if left <= 0:
        return Remaining(0.0, 0.0)
    if not rates:
        return None
    if len(rates) < FEWEST_RATES:
        slow, fast = min(rates), max(rates)
    else:
        slow, _, fast = statistics.quantiles(rates, n=4, method="inclusive")
    if not fast:
        return None
    return Remaining(left / fast, left / slow if slow else None)


def keys_expected(run: Run) -> int:
    """Return how many keys a run has: as planned once the plan is complete, until then at least the expected ones."""
    if run.planned_at is not None:
        return run.planned_keys
    prospect = run.expected_keys or 0
    return max(run.planned_keys, min(prospect, run.row_limit) if run.row_limit else prospect)


def time_left(run: Run, keys_done: int, rates: Sequence[float]) -> Remaining | None:
    """Return what `remaining` does for a run; None also if all keys listed so far are done and the listing goes on."""
    left = keys_expected(run) - keys_done
    return None if left <= 0 and run.planned_at is None else remaining(left, rates)


@dataclass(frozen=True)
class Outlook:
    """The outlook of a run: its rate in keys per second, and what is left of it.

    ``recent`` is the rate of the last half minute, ``mean`` that of all working time; ``remaining`` counts working time
    only, and is None if it cannot be told yet.
    """

    keys_expected: int
    recent: float
    mean: float
    remaining: Remaining | None


def look_ahead(snapshot: Snapshot) -> Outlook:
    """Return the outlook of a run from its snapshot."""
    spans = to_spans(snapshot)
    worked = snapshot.seconds - waited_seconds(spans, 0.0, snapshot.seconds)
    ended = snapshot.run.state not in UNFINISHED
    since = min(snapshot.seconds, RECENT_SECONDS)
    return Outlook(
        keys_expected=keys_expected(snapshot.run),
        recent=snapshot.recent_keys / since if since and not ended else 0.0,
        mean=snapshot.counts.keys_done / worked if worked > 0 else 0.0,
        remaining=None if ended else time_left(snapshot.run, snapshot.counts.keys_done, rates(snapshot, spans)),
    )
