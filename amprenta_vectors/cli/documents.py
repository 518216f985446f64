"""``amprenta-vectors documents``: simple vector stores, a folder a user, into PostgreSQL, and back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import click

from amprenta_vectors.cli.options import BATCHES_IN_HAND, nul_option, run_options, stop_on_signal
from amprenta_vectors.cli.printer import say, say_lines
from amprenta_vectors.errors import ConfigError, ExitCode, worst
from amprenta_vectors.shown import printable

if TYPE_CHECKING:
    from amprenta_vectors.backfill.engine.observer import MoveEvent, Observer
    from amprenta_vectors.backfill.engine.starting import Mode
    from amprenta_vectors.config import Settings

Command = TypeVar("Command", bound=Callable[..., Any])


def _whose(command: Command) -> Command:
    command = click.option(
        "--user", "users", multiple=True, help="Only this user's; can be given again.  [default: all]"
    )(command)
    return click.option(
        "--root",
        type=click.Path(path_type=Path),
        help="The folder with a folder a user.  [env var: SIMPLE_STORE_ROOT; default: ./user_data]",
    )(command)


@click.group()
def documents() -> None:
    """Move the documents of simple vector stores, vectors.pkl and metadata.json of each user, and take it back."""


@documents.command()
@_whose
@click.option("--dry-run", is_flag=True, help="Read every store, say what it holds, and change nothing.")
@click.option("--resume", is_flag=True, help="Start what is not begun, and resume what was.")
@click.option("--restart", is_flag=True, help="Begin anew; rows already there stay as they are.")
@click.option("--rollback", is_flag=True, help="Delete the rows that migrating inserted and nobody changed since.")
@click.option("--batch-size", type=int, help="Documents a batch, at first.  [env var: AMPRENTA_BATCH_SIZE]")
@click.option("--workers", type=int, help="Threads that read and write.  [env var: AMPRENTA_WORKERS; default: 5]")
@click.option(
    "--max-bad-share",
    type=float,
    help="Stop a user once more than this share was quarantined, 0 to 1.  [env var: AMPRENTA_MAX_BAD_SHARE]",
)
@nul_option
@run_options
def migrate(
    root: Path | None,
    users: tuple[str, ...],
    dry_run: bool,
    resume: bool,
    restart: bool,
    rollback: bool,
    **options: Any,
) -> None:
    """Move every user's documents into vector_documents, one run a store; the files are backed up and never changed.

    A store that cannot be read is named and does not stop the others. Metadata that is encrypted needs
    VECTOR_STORE_ENCRYPTION_KEY.
    """
    from amprenta_vectors.backends.simple.source import SimpleOrigin
    from amprenta_vectors.cli.display import open_display
    from amprenta_vectors.moves.ends import open_ends
    from amprenta_vectors.systems.documents.migration import StoreMigration
    from amprenta_vectors.systems.documents.stores import choose_stores, document_settings

    if sum((resume, restart, rollback)) > 1:
        raise ConfigError("--resume, --restart and --rollback contradict each other", hint="give one of them")
    settings = document_settings(root, embedding_model=options.pop("model"), **options)
    mode: Mode = "resume" if resume else "restart" if restart else "new"
    with closing(open_display(settings.log_format, _print)) as show:
        if rollback:
            _roll_back(settings, users, show, dry_run=dry_run)
        stop = threading.Event()
        ends = open_ends(settings, show)
        migration = StoreMigration(settings, ends, mode=mode, stop=stop, observer=show)
        stores = choose_stores(cast(SimpleOrigin, ends.origin), users)
        if dry_run:
            _exit(migration.plan(stores))
        with stop_on_signal(stop, waits_for=BATCHES_IN_HAND):
            _exit(migration.run(stores))


def _roll_back(settings: Settings, users: Sequence[str], show: Observer, *, dry_run: bool) -> NoReturn:
    from amprenta_vectors.moves.ends import open_target
    from amprenta_vectors.systems.documents.rollback import roll_back_store, stores_to_roll_back

    engine, table = open_target(settings, 1, show)
    chosen = stores_to_roll_back(engine, table, users)
    codes = [roll_back_store(engine, *store, show, dry_run=dry_run) for store in chosen.items()]
    if not chosen:
        say("no row of theirs was inserted by a run: nothing to take back")
    _exit(worst(codes))


def _exit(code: ExitCode) -> NoReturn:
    click.get_current_context().exit(code)


def _print(event: MoveEvent) -> None:
    """Print an event that only moves of simple stores have."""
    from amprenta_vectors.systems.documents import events
    from amprenta_vectors.systems.documents.stores import SHOWN

    match event:
        case events.StoreOpened(store, shape, backup, is_new):
            say(f"{store}: {shape}")
            say(f"  {'backed up to' if is_new else 'backed up before, in'} {backup}")
        case events.StoreRefused(doing, store, message):
            how = {"plan": f"{store}: ", "move": f"error: {store}: ", "rollback": f"{store}: not taken back: "}
            say_lines(how[doing] + message, err=doing != "plan")
        case events.StoreEnded(store, result):
            say(f"{store}: {result}")
        case events.StoreDescribed(store, shape, documents, rows, quarantined, first_quarantined):
            say(f"{store}: {documents:,} documents, {rows:,} rows in the table, {quarantined:,} to be quarantined")
            say(f"  {shape}")
            for row in first_quarantined:
                say(f"  {row.reason}: {row.key!r}: {row.detail}")
        case events.StoreToRollBack(store, rows, runs):
            numbers = ", ".join(map(str, runs))
            say(f"{store}: {rows:,} rows were inserted by runs {numbers}; nothing was changed")
        case events.StoreRolledBack(store, removed, kept):
            say(f"{store}: {removed:,} rows removed, {len(kept):,} kept because they were changed since")
            for key in kept[:SHOWN]:
                say(f"  kept: {'/'.join(key)}")
            if len(kept) > SHOWN:
                say(f"  … {len(kept) - SHOWN:,} more, in migration_insert")


@documents.command("remove-files")
@_whose
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove_files(root: Path | None, users: tuple[str, ...], yes: bool) -> None:
    """Delete the old files of stores that were moved and verified, and of which a backup is there.

    Refuses a store whose run is unfinished, rolled back or not verified, that has quarantined documents, whose files
    have changed since, or whose texts or metadata are not what the table has.
    """
    from amprenta_vectors.backends.simple.source import open_simple_origin
    from amprenta_vectors.cli.move_text import MoveText
    from amprenta_vectors.moves.ends import open_target
    from amprenta_vectors.systems.documents.removal import Removal
    from amprenta_vectors.systems.documents.stores import choose_stores, document_settings

    # If rows were written without what PostgreSQL cannot hold, that is no difference; others are quarantined.
    settings = document_settings(root, nul="strip")
    origin = open_simple_origin(settings)
    engine, table = open_target(settings, 1, MoveText())
    stores = [Removal(engine, table, origin, name) for name in choose_stores(origin, users)]
    removable = [store for store in stores if not _refused(store.name, store.why_not())]
    for store in removable:
        if store.absent:
            say(f"{store.name}: {store.absent:,} documents have no row any longer: deleted since it was moved")
    if removable and not yes:
        click.confirm(
            f"delete the old files of {len(removable)} stores below {printable(str(origin.root))}?", abort=True
        )
    removed = 0
    for store in removable:
        folder = origin.folder(store.name)
        if not _refused(store.name, store.remove()):
            removed += 1
            say(f"removed: {folder}")
    _exit(ExitCode.CLEAN if removed == len(stores) else ExitCode.FAILED)


def _refused(name: str, why: str | None) -> bool:
    if why is not None:
        say_lines(f"{name}: not removed: {why}", err=True)
    return why is not None
