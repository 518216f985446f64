"""``amprenta-vectors setup``: the models system, set up in the steps of its guide."""

from __future__ import annotations

import logging
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amprenta_vectors.cli.printer import log_to_stderr, say
from amprenta_vectors.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from amprenta_vectors.config import Settings
    from amprenta_vectors.schema.models import ModelColumn
    from amprenta_vectors.systems.models.setup import Standing

LOGS = Path("logs")


@click.group()
def setup() -> None:
    """Set the models system up: init, status, run, setup-models; each may be repeated.

    What is done is logged in the folder logs, too. Where the database is comes from DATABASE_URL.
    """
    log_to_stderr(logging.WARNING, "%(levelname)-5.5s [%(name)s] %(message)s")


@setup.command()
def init() -> None:
    """Look whether the database can be migrated, and show how to back it up and restore it; change nothing."""
    from amprenta_vectors.config import Settings
    from amprenta_vectors.systems.models.setup import standing_of

    settings = Settings.load()
    found = standing_of(settings)
    for warning in found.warnings:
        say(f"warning: {warning}", err=True)
    say(f"PostgreSQL {found.server}, pgvector {found.pgvector or 'is installed by the upgrade'}")
    _print_backup(settings)
    say("then: python scripts/setup_migrations.py run")


@setup.command()
@click.pass_context
def status(ctx: click.Context) -> None:
    """Show the revision, the tables and the registered models; exit 2 while something is to be done."""
    from amprenta_vectors.config import Settings
    from amprenta_vectors.systems.models.setup import TABLES, standing_of

    found = standing_of(Settings.load())
    missing = [name for name in TABLES if name not in found.tables]
    say(f"revision: {found.revision or 'none'}")
    say(f"tables: {', '.join(found.tables) or 'none'}" + (f"; missing: {', '.join(missing)}" if missing else ""))
    for each in found.models:
        _print_model(each)
    mend = _next_step(found, missing)
    if mend:
        say(f"next: {mend}")
    ctx.exit(ExitCode.USAGE if mend else ExitCode.CLEAN)


@setup.command()
def run() -> None:
    """Upgrade the section to its last revision; the backup command and the restore are shown first."""
    from amprenta_vectors.config import Settings
    from amprenta_vectors.migrate import upgrade

    settings = Settings.load()
    _print_backup(settings)
    with_log = _log_file()
    logging.getLogger("alembic").setLevel(logging.INFO)
    logging.getLogger("amprenta_vectors").setLevel(logging.INFO)
    upgrade(settings, "models")
    say(f"the schema is at its last revision; log: {with_log}")
    say("next: python scripts/setup_migrations.py setup-models")


@setup.command("setup-models")
def setup_models() -> None:
    """Register the four models that the guide names, each with its column and an index that is deferred."""
    from amprenta_vectors.config import Settings
    from amprenta_vectors.systems.models.setup import set_up_models

    _log_file()
    for each in set_up_models(Settings.load()):
        _print_model(each)
    say("further ones: AMPRENTA_TABLE=chunk_embeddings amprenta-vectors models add NAME --provider …")


def _print_model(each: ModelColumn) -> None:
    use = "searched" if each.searched else "written" if each.written else "written once documents are moved to it"
    provider = each.model.provider or "none but the application"
    say(f"{each.model.name}: {each.model.dimension} dimensions in {each.column}, embedded by {provider}; {use}")


def _next_step(found: Standing, missing: list[str]) -> str | None:
    if found.revision is None or missing:
        return "python scripts/setup_migrations.py run"
    return None if found.models else "python scripts/setup_migrations.py setup-models"


def _print_backup(settings: Settings) -> None:
    from amprenta_vectors.db import engine_url
    from amprenta_vectors.shown import show_url

    url = engine_url(settings)
    shown = show_url(url.render_as_string(hide_password=False))
    dump = f"{url.database}_{datetime.now(UTC):%Y%m%d_%H%M%S}.dump"
    say("back up first:")
    say(f"  {shlex.join(['pg_dump', '--format=custom', f'--file={dump}', f'--dbname={shown}'])}")
    say("and, should it be needed, restore with the application stopped:")
    say(f"  {shlex.join(['pg_restore', '--clean', '--if-exists', '--single-transaction', f'--dbname={shown}', dump])}")


def _log_file() -> Path:
    """Log what is done into a file of today, beside what is printed; return it."""
    path = LOGS / f"setup_migrations_{datetime.now(UTC):%Y%m%d}.log"
    try:
        LOGS.mkdir(exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"the log cannot be written into {LOGS}: {error.strerror}", hint="a working directory that may be written"
        ) from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-5.5s [%(name)s] %(message)s"))
    logging.getLogger().addHandler(handler)
    return path
