"""A run watched from outside: a screen on a terminal, lines elsewhere. Nothing of the run is touched."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backfill.progress.charges import charge_of
from amprenta_vectors.backfill.progress.snapshot import Snapshot, look
from amprenta_vectors.backfill.progress.states import UNFINISHED
from amprenta_vectors.backfill.report.timeline import Outlook, look_ahead
from amprenta_vectors.cli.options import stop_on_signal
from amprenta_vectors.cli.printer import error_lines, say
from amprenta_vectors.cli.run_text import held_by, to_charge, to_json, to_pace, to_scope, to_state
from amprenta_vectors.interrupts import INTERRUPTS
from amprenta_vectors.pg.errors import is_transient
from amprenta_vectors.shown import printable

BUCKETS = 120
SCREEN_SECONDS, LINE_SECONDS = 1.0, 5.0
SHARE_OF_TIME = 20
"""The pause after a look, as a multiple of the time that it took: one that takes 100 ms is made every two seconds."""
INDEX_SECONDS = 5.0
"""How soon after a run's end its process starts to build an index that was deferred."""


Looks = Iterator[tuple[Snapshot, Outlook] | None]


def watch(engine: Engine, run_id: int, *, as_json: bool) -> None:
    """Show a run until it has ended, and the building of its index; Ctrl-C ends only the watching."""
    console = Console()
    with stop_on_signal(waits_for="the look that is being taken") as stop:
        if as_json:
            _print_lines(_looks(engine, run_id, LINE_SECONDS, stop), lambda *seen: json.dumps(to_json(*seen)))
        elif console.is_terminal:
            _show_screen(_looks(engine, run_id, SCREEN_SECONDS, stop), console)
        else:
            _print_lines(_looks(engine, run_id, LINE_SECONDS, stop), to_line)
        if stop.is_set():
            INTERRUPTS.forget()
            say("no longer watching; the run goes on", err=True)


def _show_screen(looks: Looks, console: Console) -> None:
    with Live(console=console, auto_refresh=False) as live:
        for seen in looks:
            live.update(Text("the database is away; looking again") if seen is None else to_screen(*seen), refresh=True)


def _print_lines(looks: Looks, to_text: Callable[[Snapshot, Outlook], str]) -> None:
    for seen in looks:
        if seen is None:
            say("the database is away; looking again", err=True)
        else:
            say(to_text(*seen))


def _looks(engine: Engine, run_id: int, seconds: float, stop: threading.Event) -> Looks:
    """Yield a look at the run every ``seconds`` until ``stop``, and at its end; None while the database is away.

    Each look is one round trip on one connection, outside any transaction.
    """
    connection: Connection | None = None
    try:
        while True:
            began = time.monotonic()
            try:
                # Not from the pool each time, which would ask first whether the connection still stands.
                connection = connection or engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                snapshot = look(connection, run_id, buckets=BUCKETS)
            except DBAPIError as error:
                if not is_transient(error):
                    raise
                if connection is not None:
                    connection.close()
                connection = None
                yield None
            else:
                if snapshot is None:
                    return
                yield snapshot, look_ahead(snapshot)
                if _is_over(snapshot):
                    return
            taken = time.monotonic() - began
            if stop.wait(max(seconds - taken, SHARE_OF_TIME * taken)):
                return
    finally:
        if connection is not None:
            connection.close()


def _is_over(snapshot: Snapshot) -> bool:
    ended = snapshot.run.finished_at
    if snapshot.run.state in UNFINISHED or ended is None:
        return False
    waiting = not all(snapshot.indexes.values()) and (snapshot.now - ended).total_seconds() < INDEX_SECONDS
    return not (waiting or snapshot.builds)


def to_line(snapshot: Snapshot, outlook: Outlook) -> str:
    """Return a run in one line."""
    run, counts = snapshot.run, snapshot.counts
    parts = [f"run {run.id} {to_state(run, counts)}: {counts.keys_done:,} of {outlook.keys_expected:,} keys done"]
    if run.state in UNFINISHED:
        parts.append(to_pace(outlook))
    parts.append(f"{counts.in_quarantine:,} quarantined")
    parts += [text for text in (held_by(run), to_charge(run), *_index_lines(snapshot)) if text]
    return "; ".join(parts)


def to_screen(snapshot: Snapshot, outlook: Outlook) -> RenderableType:
    """Return a run as a screen."""
    run, counts = snapshot.run, snapshot.counts
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(justify="right")
    total = max(outlook.keys_expected, counts.keys_done, 1)
    done = f"{counts.keys_done:,} of {outlook.keys_expected:,}{'' if run.planned_at else ' or more'}"
    bar.add_row(ProgressBar(total=total, completed=counts.keys_done), f"{done} keys")
    parts: list[RenderableType] = [
        Text(printable(f"run {run.id}: {run.source or 'queued'} → {run.target}{to_scope(run)}"), style="bold"),
        bar,
        _figures(snapshot, outlook),
    ]
    if snapshot.processes:
        parts.append(_processes(snapshot))
    if snapshot.quarantined:
        parts.append(_quarantined(snapshot))
    return Group(*parts)


def _cell(text: str) -> str:
    return escape(printable(text))


def _figures(snapshot: Snapshot, outlook: Outlook) -> Table:
    run, counts = snapshot.run, snapshot.counts
    table = Table.grid(padding=(0, 2))
    table.add_row("state", _cell(to_state(run, counts)))
    held = held_by(run)
    if held:
        table.add_row("", f"[yellow]{_cell(held)}[/]")
    if run.state in UNFINISHED:
        table.add_row("pace", to_pace(outlook))
    table.add_row("rows", f"{counts.written:,} written, {counts.skipped:,} found filled or gone")
    table.add_row(charge_of(run).name, to_charge(run) or "none counted")
    for line in _index_lines(snapshot):
        table.add_row("index", _cell(line))
    if snapshot.verified is not None:
        differing = snapshot.verified.get("unexpected", 0)
        table.add_row(
            "verified", f"{differing:,} differ" if differing else "every vector equal, but for those quarantined"
        )
    if run.last_error:
        table.add_row("stopped by", "\n".join(f"[red]{_cell(line)}[/]" for line in error_lines(run.last_error)))
    return table


def _processes(snapshot: Snapshot) -> Table:
    table = Table("process", "batches in hand", "lease runs out in", title_justify="left", box=None)
    for process in snapshot.processes:
        lease = f"{process.lease_seconds:.0f} s" if process.lease_seconds > 0 else "[red]it has run out[/]"
        table.add_row(_cell(process.owner), str(process.batches), lease)
    return table


def _quarantined(snapshot: Snapshot) -> Table:
    table = Table("quarantined", "rows", box=None)
    for reason, rows in sorted(snapshot.quarantined.items()):
        table.add_row(_cell(reason), f"{rows:,}")
    return table


def _index_lines(snapshot: Snapshot) -> list[str]:
    lines = [f"{name} waits to be built" for name, built in snapshot.indexes.items() if not built]
    for build in snapshot.builds:
        share = f": {100 * build.done / build.total:.0f} %" if build.total else ""
        lines.append(f"{build.phase}{share}")
    return lines
