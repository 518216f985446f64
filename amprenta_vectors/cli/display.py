"""The progress of a move: a bar on a terminal, a line now and then elsewhere, or one JSON object an event."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal, Protocol

from tqdm import tqdm

from amprenta_vectors.backfill.engine.observer import BatchDone, MoveEvent, RunAdvanced, RunStarted, Waiting, ignore
from amprenta_vectors.backfill.progress.figures import Counts
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.report.timeline import MOST_RATES, Remaining, keys_expected, time_left
from amprenta_vectors.cli.move_text import MoveText
from amprenta_vectors.cli.printer import say, say_json
from amprenta_vectors.cli.run_text import held_by, to_remaining
from amprenta_vectors.moves.events import IndexProgress
from amprenta_vectors.shown import printable

LINE_SECONDS = 5.0


class Display(Protocol):
    """An observer that holds the terminal until it is closed."""

    def __call__(self, event: MoveEvent) -> None:
        """Show an event."""
        ...

    def close(self) -> None:
        """Leave the terminal to others. It may be called again."""
        ...


def open_display(log_format: Literal["text", "json"], more: Callable[[MoveEvent], None] = ignore) -> Display:
    """Return the display that suits where standard error goes; ``more`` prints what only moves of one system tell."""
    text = MoveText(more)
    if log_format == "json":
        return JsonDisplay(text)
    return BarDisplay(text) if sys.stderr.isatty() else LineDisplay(text)


def _at_work(run: Run, counts: Counts) -> str:
    if counts.owners:
        return f"{counts.owners} process(es) at work"
    if counts.batches_running:
        return "waiting for the lease of a process that died to run out"
    if counts.batches > counts.batches_done:
        return "nobody at work yet"
    return "every batch is done" if run.planned_at is not None else "waiting for keys to be listed"


def _say_begun(run: Run, deferred: list[str]) -> None:
    scope = ", ".join(f"{name} {value or '(default)'!s}" for name, value in run.scope.items())
    say(f"run {run.id}: {run.source} → {run.target}" + (f" ({scope})" if scope else ""), err=True)
    for name in deferred:
        say(f"index {name} is deferred until the rows are in", err=True)


class BarDisplay:
    """A progress bar of tqdm, for a terminal."""

    def __init__(self, text: MoveText) -> None:
        self._bar: Any = None
        self._text = text

    def __call__(self, event: MoveEvent) -> None:
        """Move the bar; an event that comes after the rows, with none to count, ends it."""
        match event:
            case RunStarted(run, deferred):
                _say_begun(run, deferred)
                self._bar = tqdm(total=keys_expected(run), unit="row", unit_scale=True, dynamic_ncols=True)
            case RunAdvanced(run, counts):
                self._advance(run, counts)
            case Waiting(_, reason) if self._bar is not None:
                self._bar.set_description_str(printable(f"waiting: {reason[:60]}") if reason else "")
            case Waiting(_, reason):
                if reason:
                    say(f"waiting: {reason}", err=True)
            case BatchDone():
                pass
            case _:
                if not isinstance(event, IndexProgress):
                    self.close()
                self._text(event)

    def _advance(self, run: Run, counts: Counts) -> None:
        bar = self._bar
        if bar is None:
            return
        bar.total = keys_expected(run)
        aside = counts.missing + counts.quarantined
        notes = [f"{aside} quarantined"] if aside else []
        held = held_by(run)
        if held is not None:
            notes.append(held)
        elif not counts.owners and counts.keys_done < bar.total:
            notes.append(_at_work(run, counts))
        bar.set_postfix_str(printable(", ".join(notes)), refresh=False)
        bar.update(counts.keys_done - bar.n)
        bar.refresh()

    def close(self) -> None:
        """End the bar's line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Pace:
    """The rates at which a run that is watched advances, one every five seconds in which nothing holds it."""

    def __init__(self) -> None:
        self._before: tuple[float, int] | None = None
        self._rates: deque[float] = deque(maxlen=MOST_RATES)

    def time_left(self, run: Run, counts: Counts) -> Remaining | None:
        """Return how long is left; None if that cannot be told yet."""
        now, before = time.monotonic(), self._before
        if before is None or now >= before[0] + LINE_SECONDS:
            if before is not None and held_by(run) is None:
                self._rates.append((counts.keys_done - before[1]) / (now - before[0]))
            self._before = (now, counts.keys_done)
        return time_left(run, counts.keys_done, self._rates)


class LineDisplay:
    """A plain line every five seconds, for logs."""

    def __init__(self, text: MoveText) -> None:
        self._text = text
        self._forget()

    def _forget(self) -> None:
        self._next = 0.0
        self._reason: str | None = None
        self._pace = Pace()

    def __call__(self, event: MoveEvent) -> None:
        """Print what is new: the progress every five seconds at most, and a reason to wait once."""
        match event:
            case RunStarted(run, deferred):
                self._forget()
                _say_begun(run, deferred)
            case RunAdvanced(run, counts):
                self._advance(run, counts)
            case Waiting(_, reason):
                if reason and reason != self._reason:
                    say(f"waiting: {reason}", err=True)
                self._reason = reason
            case BatchDone():
                pass
            case _:
                self._text(event)

    def _advance(self, run: Run, counts: Counts) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + LINE_SECONDS
        aside = counts.missing + counts.quarantined
        held = held_by(run)
        left = to_remaining(self._pace.time_left(run, counts))
        say(
            f"run {run.id}: {counts.keys_done:,} of {keys_expected(run):,} keys done, {counts.written:,} written, "
            f"{aside} quarantined, {left}, {held or _at_work(run, counts)}",
            err=True,
        )

    def close(self) -> None:
        """Do nothing: lines need no end."""


class JsonDisplay:
    """One JSON object a line: progress on standard error, with the time, and results on standard output."""

    def __init__(self, text: MoveText) -> None:
        self._reason: str | None = None
        self._pace = Pace()
        self._text = text

    def __call__(self, event: MoveEvent) -> None:
        """Print an event for the log or a result as JSON, any other text as it is; a reason to wait once."""
        if isinstance(event, RunStarted):
            self._pace = Pace()
        if isinstance(event, RunAdvanced):
            left = self._pace.time_left(event.run, event.counts)
            outlook = {"expected": keys_expected(event.run), "remaining_seconds": left and asdict(left)}
            say_json({**event.to_json(), **outlook}, err=True)
            return
        if isinstance(event, Waiting):
            repeated, self._reason = event.reason in (None, self._reason), event.reason
            if repeated:
                return
        if event.shown == "log":
            say_json(event.to_json(), err=True)
        elif event.shown == "result":
            say_json(event.to_json())
            self._text.aside(event)
        elif event.shown == "text":
            self._text(event)

    def close(self) -> None:
        """Do nothing: lines need no end."""
