"""A run as it goes on: a bar on a terminal, a line now and then elsewhere, or one JSON object an event."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import click
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError
from tqdm import tqdm

from amprenta_vectors.backfill.progress import Counts, Run
from amprenta_vectors.backfill.run import Observer
from amprenta_vectors.backfill.timeline import MOST_RATES, keys_expected, time_left
from amprenta_vectors.cli.run_text import held_by, to_remaining
from amprenta_vectors.schema.catalogue import relation
from amprenta_vectors.schema.vector_table import VectorTable

LINE_SECONDS = 5.0
INDEX_SECONDS = 2.0


class Display(Observer, Protocol):
    """An observer that holds the terminal until it is closed."""

    def close(self) -> None:
        """Leave the terminal to others. May be called again."""
        ...


def open_display(log_format: Literal["text", "json"]) -> Display:
    """The display that suits where standard error goes."""
    if log_format == "json":
        return JsonDisplay()
    return BarDisplay() if sys.stderr.isatty() else LineDisplay()


def _at_work(counts: Counts) -> str:
    if counts.owners:
        return f"{counts.owners} process(es) at work"
    return "waiting for keys to be listed (those of a process that died: until its lease runs out)"


def _begun(run: Run, deferred: list[str]) -> list[str]:
    scope = ", ".join(f"{name} {value or '(default)'!s}" for name, value in run.scope.items())
    lines = [f"run {run.id}: {run.source} → {run.target}" + (f" ({scope})" if scope else "")]
    lines += [f"index {name} is put off until the rows are in" for name in deferred]
    return lines


class BarDisplay:
    """tqdm on a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def started(self, run: Run, deferred: list[str]) -> None:
        """Open the bar."""
        for line in _begun(run, deferred):
            click.echo(line, err=True)
        self._bar = tqdm(total=keys_expected(run), unit="row", unit_scale=True, dynamic_ncols=True)

    def advanced(self, run: Run, counts: Counts) -> None:
        """Move the bar."""
        self._bar.total = keys_expected(run)
        aside = counts.missing + counts.quarantined
        notes = [f"{aside} set aside"] if aside else []
        held = held_by(run)
        if held is not None:
            notes.append(held)
        elif not counts.owners and counts.keys_done < self._bar.total:
            notes.append(_at_work(counts))
        self._bar.set_postfix_str(", ".join(notes), refresh=False)
        self._bar.update(counts.keys_done - self._bar.n)
        self._bar.refresh()

    def waiting(self, reason: str | None) -> None:
        """Say why nothing moves."""
        if self._bar is not None:
            self._bar.set_description_str(f"waiting: {reason[:60]}" if reason else "")
        elif reason:
            click.echo(f"waiting: {reason}", err=True)

    def building(self, target: str) -> None:
        """Close the bar: what follows has no rows to count."""
        self.close()
        click.echo(f"every row is in; building the index of {target}", err=True)

    def close(self) -> None:
        """End the bar's line."""
        if self._bar is not None:
            self._bar.close()


class LineDisplay:
    """A plain line every five seconds, for logs."""

    def __init__(self) -> None:
        self._next = 0.0
        self._reason: str | None = None
        self._before: tuple[float, int] | None = None
        self._rates: deque[float] = deque(maxlen=MOST_RATES)

    def started(self, run: Run, deferred: list[str]) -> None:
        """Say what begins."""
        for line in _begun(run, deferred):
            click.echo(line, err=True)

    def advanced(self, run: Run, counts: Counts) -> None:
        """Say how far it is, not too often."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + LINE_SECONDS
        aside = counts.missing + counts.quarantined
        held = held_by(run)
        if self._before is not None and held is None:
            self._rates.append((counts.keys_done - self._before[1]) / (now - self._before[0]))
        self._before = (now, counts.keys_done)
        left = to_remaining(time_left(run, counts.keys_done, self._rates))
        click.echo(
            f"run {run.id}: {counts.keys_done:,} of {keys_expected(run):,} keys done, {counts.written:,} written, "
            f"{aside} set aside, {left}, {held or _at_work(counts)}",
            err=True,
        )

    def waiting(self, reason: str | None) -> None:
        """Say once why nothing moves."""
        if reason and reason != self._reason:
            click.echo(f"waiting: {reason}", err=True)
        self._reason = reason

    def building(self, target: str) -> None:
        """Say that the load is over."""
        click.echo(f"every row is in; building the index of {target}", err=True)

    def close(self) -> None:
        """Lines need no end."""


class JsonDisplay:
    """One JSON object a line, with the same events."""

    def __init__(self) -> None:
        self._reason: str | None = None

    def started(self, run: Run, deferred: list[str]) -> None:
        """``started``."""
        self._emit("started", run=run.id, source=run.source, target=run.target, scope=run.scope, deferred=deferred)

    def advanced(self, run: Run, counts: Counts) -> None:
        """``progress``."""
        self._emit(
            "progress",
            run=run.id,
            planned=run.planned_keys,
            done=counts.keys_done,
            written=counts.written,
            read_units=run.read_units,
            throttle_reason=run.throttle_reason,
        )

    def waiting(self, reason: str | None) -> None:
        """``waiting``."""
        if reason and reason != self._reason:
            self._emit("waiting", reason=reason)
        self._reason = reason

    def building(self, target: str) -> None:
        """``building``."""
        self._emit("building", target=target)

    def close(self) -> None:
        """Lines need no end."""

    @staticmethod
    def _emit(event: str, **values: Any) -> None:
        click.echo(json.dumps({"event": event, "time": round(time.time(), 3), **values}), err=True)


@contextmanager
def showing_index_progress(engine: Engine, table: VectorTable) -> Iterator[None]:
    """Say every two seconds how far the building of an index of ``table`` is, while one is being built."""
    done = threading.Event()

    def watch() -> None:
        said = ""
        while not done.wait(INDEX_SECONDS):
            line = _index_progress(engine, table)
            if line and line != said:
                click.echo(line, err=True)
                said = line

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _index_progress(engine: Engine, table: VectorTable) -> str | None:
    try:
        with engine.connect() as connection:
            row = connection.execute(
                sa.text("""
                    SELECT phase, blocks_done, blocks_total, tuples_done, tuples_total
                    FROM pg_stat_progress_create_index
                    WHERE datname = current_database() AND relid = to_regclass(:relation) LIMIT 1
                """),
                {"relation": relation(table)},
            ).first()
    except DBAPIError:
        # Whoever builds meets the same trouble and says it.
        return None
    if row is None:
        return None
    done, total = (row.tuples_done, row.tuples_total) if row.tuples_total else (row.blocks_done, row.blocks_total)
    return f"  index: {row.phase}" + (f": {100 * done / total:.0f} %" if total else "")
