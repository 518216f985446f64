"""Options that several commands share, the database they open, and the signals that stop them."""

from __future__ import annotations

import functools
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_args

import click

from amprenta_vectors.cli.printer import speak_json
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.interrupts import INTERRUPTS

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from amprenta_vectors.config import Settings

Command = TypeVar("Command", bound=Callable[..., Any])

_AGO = re.compile(r"(\d+)([mhd])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}

BATCHES_IN_HAND = "the batches in hand, which are committed or given back"
"""What a run that is told to stop waits for."""

NAMESPACE_HELP = (
    "The source's namespace; for a table with several scope columns their values joined by /.  "
    "[env var: PINECONE_NAMESPACE, of a Pinecone index; default: the default one]"
)


def namespace_options(command: Command) -> Command:
    """Add ``--namespace`` and ``--all-namespaces``."""
    command = click.option("--all-namespaces", is_flag=True, help="Every namespace of the source, one after another.")(
        command
    )
    return click.option("--namespace", help=NAMESPACE_HELP)(command)


def source_option(command: Command) -> Command:
    """Add ``--source``."""
    from amprenta_vectors.schema.kinds import SourceKind

    return click.option(
        "--source",
        type=click.Choice(get_args(SourceKind)),
        help="What the vectors come from; rows: the texts of the table's own rows, embedded; column: the old "
        "column that amprenta.toml names.  "
        "[env var: AMPRENTA_SOURCE; default: what usually fills AMPRENTA_TABLE, for most pinecone]",
    )(command)


def dimension_option(command: Command) -> Command:
    """Add ``--dimension``."""
    return click.option(
        "--dimension",
        type=int,
        help="Of a column that holds lists of several lengths, take those of this one, and leave the others out.  "
        "[env var: AMPRENTA_DIMENSION]",
    )(command)


def json_option(text: str = "One JSON object.") -> Callable[[Command], Command]:
    """Return a decorator that adds ``--json``, the one way to have what a command says as JSON."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def log_options(command: Command) -> Command:
    """Add ``--json`` to a command that runs for long, handed to it as ``log_format``."""

    @functools.wraps(command)
    def collect(*arguments: Any, as_json: bool, **options: Any) -> Any:
        speak_json(as_json or os.environ.get("AMPRENTA_LOG_FORMAT") == "json")
        return command(*arguments, log_format="json" if as_json else None, **options)

    text = "Say everything as JSON, an object a line.  [env var: AMPRENTA_LOG_FORMAT=json]"
    return json_option(text)(cast("Command", collect))


def nul_option(command: Command) -> Command:
    """Add ``--nul``."""
    return click.option(
        "--nul",
        type=click.Choice(["quarantine", "strip"]),
        help="What becomes of a text or metadata that PostgreSQL cannot hold; strip: NUL characters are left out, NaN "
        "and infinite numbers become null.  [env var: AMPRENTA_NUL; default: quarantine]",
    )(command)


def run_options(command: Command) -> Command:
    """Add ``--model``, ``--report`` and ``--json``: the model of a run's vectors, and how the run is reported."""
    command = log_options(command)
    command = click.option(
        "--report",
        type=click.Path(path_type=Path),
        help="Folder for the report that ends a run.  [env var: AMPRENTA_REPORT; default: reports]",
    )(command)
    return click.option("--model", help="The model that made the vectors.  [env var: EMBEDDING_MODEL]")(command)


def to_moment(option: str, text: str) -> datetime:
    """Return the moment that an option names: a time, or how long ago. Raises `ConfigError`."""
    ago = _AGO.fullmatch(text)
    try:
        if ago:
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        # A time without a zone is in the machine's.
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{option} is {text!r}; expected a time or how long ago",
            hint=f"{option} 2026-05-31T12:00, or {option} 24h",
        ) from None


def open_database(settings: Settings, connections: int) -> Engine:
    """Open an engine whose server has been reached and is suitable; warnings about the server are printed."""
    from amprenta_vectors.cli.move_text import MoveText
    from amprenta_vectors.moves import ends

    return ends.open_database(settings, connections, MoveText())


@contextmanager
def stop_on_signal(stop: threading.Event | None = None, *, waits_for: str) -> Iterator[threading.Event]:
    """Yield ``stop``, or a new event, which SIGTERM and Ctrl-C set, so that work in hand is ended first.

    The first one says that ``waits_for`` is waited for, a second one ends the process. Only a main thread hears of
    signals; in another thread nothing sets the event.
    """
    stop = stop or threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    with INTERRUPTS.ending_first(stop, waits_for):
        yield stop
