"""``amprenta-vectors documents``: simple vector stores, a folder a user, into PostgreSQL, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import click
from sqlalchemy.engine import Engine

from amprenta_vectors.backfill import progress
from amprenta_vectors.backfill.rollback import roll_back
from amprenta_vectors.backfill.starting import Mode
from amprenta_vectors.cli.backfill import CLEAN, FAILED, INTERRUPTED, SET_ASIDE, open_ends
from amprenta_vectors.cli.documents_move import CONFLICT, SHOWN, Move, describe
from amprenta_vectors.cli.documents_removal import Removal
from amprenta_vectors.cli.options import open_database, open_table, run_options, stop_on_signal
from amprenta_vectors.cli.readiness import open_throttle
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError, SourceNotFound
from amprenta_vectors.schema.registry import VECTOR_DOCUMENTS
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.sources.simple import SimpleOrigin, open_simple_origin
from amprenta_vectors.sources.simple_backup import last_backup_of
from amprenta_vectors.sources.simple_folder import FILES, path_of

WORST_FIRST = (INTERRUPTED, FAILED, CONFLICT, SET_ASIDE, CLEAN)

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
@click.option("--resume", is_flag=True, help="Start what is not begun, and go on with what was.")
@click.option("--restart", is_flag=True, help="Begin anew; rows already there stay as they are.")
@click.option("--rollback", is_flag=True, help="Delete the rows that migrating inserted and nobody changed since.")
@click.option("--batch-size", type=int, help="Documents a batch, at first.  [env var: AMPRENTA_BATCH_SIZE]")
@click.option("--workers", type=int, help="Threads that read and write.  [env var: AMPRENTA_WORKERS; default: 5]")
@click.option(
    "--max-bad-share",
    type=float,
    help="Stop a user once more than this share was set aside, 0 to 1.  [env var: AMPRENTA_MAX_BAD_SHARE]",
)
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
    if sum((resume, restart, rollback)) > 1:
        raise ConfigError("--resume, --restart and --rollback contradict each other", hint="give one of them")
    settings = _load(root, **options)
    if rollback:
        _roll_back(settings, users, dry_run=dry_run)
        return
    mode: Mode = "resume" if resume else "restart" if restart else "new"
    engine, table, opened = open_ends(settings)
    origin = cast("SimpleOrigin", opened)
    names = _choose(origin, users)
    if dry_run:
        _exit([describe(engine, table, origin, name) for name in names])
    throttle = open_throttle(engine, settings, table, insert=True)
    with stop_on_signal() as stop:
        moves = [Move(engine, settings, table, origin, name, mode, throttle, stop) for name in names]
        codes = [move.run() for move in moves]
    for move in moves:
        as_json = settings.log_format == "json"
        line = {"event": "store", "store": move.name, "result": move.said}
        click.echo(json.dumps(line) if as_json else f"{move.name}: {move.said}")
    _exit(codes)


def _exit(codes: Sequence[int]) -> NoReturn:
    """With the worst of several stores' codes."""
    click.get_current_context().exit(next(code for code in WORST_FIRST if code in codes))


@documents.command("remove-files")
@_whose
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove_files(root: Path | None, users: tuple[str, ...], yes: bool) -> None:
    """Delete the old files of stores that were moved and verified, and of which a backup is there.

    Refuses a store whose run is unfinished, rolled back or not verified, that has documents set aside, whose files have
    changed since, or whose texts or metadata are not what the table has.
    """
    settings = _load(root)
    origin = open_simple_origin(settings)
    engine = open_database(settings, 1)
    with engine.connect() as connection:
        progress.require_tables(connection)
        table = open_table(settings, connection)
    stores = [Removal(engine, table, origin, name) for name in _choose(origin, users)]
    removable = [store for store in stores if not _refused(store.name, store.why_not())]
    for store in removable:
        if store.absent:
            click.echo(f"{store.name}: {store.absent:,} documents have no row any longer: deleted since it was moved")
    if removable and not yes:
        click.confirm(f"delete the old files of {len(removable)} stores below {origin.root}?", abort=True)
    removed = 0
    for store in removable:
        folder = origin.folder(store.name)
        if not _refused(store.name, store.remove()):
            removed += 1
            click.echo(f"removed: {folder}")
    _exit([CLEAN if removed == len(stores) else FAILED])


def _refused(name: str, why: str | None) -> bool:
    if why is not None:
        click.echo(f"{name}: not removed: {why}", err=True)
    return why is not None


def _has_files(folder: Path) -> bool:
    try:
        return all(path_of(folder, file).exists() for file in FILES)
    except OSError:
        return False


def _load(root: Path | None, **options: Any) -> Settings:
    """Settings whose table is the documents', unless the environment names another."""
    given = Settings.load()
    table = given.table if "table" in given.model_fields_set else VECTOR_DOCUMENTS.name
    return Settings.load(
        table=table,
        source="simple",
        simple_store_root=root,
        embedding_model=options.pop("model", None),
        **options,
    )


def _choose(origin: SimpleOrigin, users: Sequence[str]) -> list[str]:
    """The namespaces of ``users``, or all. Raises `SourceNotFound` for a user without a store."""
    names = list(origin.folders())
    known = dict.fromkeys(_user_of(name) for name in names)
    unknown = [user for user in users if user not in known]
    if unknown:
        raise SourceNotFound(
            f"{origin.root} has no store of user {', '.join(unknown)}",
            hint=f"users there are: {', '.join([*known][:SHOWN])}",
        )
    return [name for name in names if not users or _user_of(name) in users]


def _user_of(namespace: str) -> str:
    return namespace.partition("/")[0]


def _roll_back(settings: Settings, users: Sequence[str], *, dry_run: bool) -> None:
    engine = open_database(settings, 1)
    with engine.connect() as connection:
        progress.require_tables(connection)
        table = open_table(settings, connection)
        scopes = progress.scopes_to_roll_back(connection, table.target, "simple")
    # The scope's columns in the table's order: user first.
    named = {"/".join(scope[column] for column in table.namespace_columns): scope for scope in scopes}
    chosen = {name: scope for name, scope in named.items() if not users or _user_of(name) in users}
    codes = [CLEAN]
    for name, scope in chosen.items():
        lost = _lost_files(engine, table, scope)
        if lost is not None:
            click.echo(f"{name}: not taken back: {lost}", err=True)
            codes.append(FAILED)
            continue
        if dry_run:
            with engine.connect() as connection:
                runs = progress.runs_with_inserted(connection, table.target, scope)
                count = sum(progress.count_inserted(connection, run) for run in runs)
            click.echo(f"{name}: {count:,} rows were inserted by runs {', '.join(map(str, runs))}; nothing was changed")
            continue
        done = roll_back(engine, table, scope)
        click.echo(f"{name}: {done.removed:,} rows removed, {len(done.kept):,} kept because they were changed since")
        for key in done.kept[:SHOWN]:
            click.echo(f"  kept: {'/'.join(key)}")
        if len(done.kept) > SHOWN:
            click.echo(f"  … {len(done.kept) - SHOWN:,} more, in migration_insert")
    if not chosen:
        click.echo("no row of theirs was inserted by a run: nothing to take back")
    _exit(codes)


def _lost_files(engine: Engine, table: VectorTable, scope: Mapping[str, str]) -> str | None:
    """That the rows inserted into ``scope`` are the only documents there are; None where their files are there."""
    with engine.connect() as connection:
        runs = [
            progress.load_run(connection, run) for run in progress.runs_with_inserted(connection, table.target, scope)
        ]
    for source in dict.fromkeys(run.source for run in runs if run.source is not None):
        folder = Path(source)
        if not _has_files(folder):
            backup = last_backup_of(folder.parent.parent, folder)
            where = "there is no backup beside it" if backup is None else f"put back those of {backup} first"
            return f"{folder} has not its files any longer, and the rows are all there is; {where}"
    return None
