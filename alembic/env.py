"""The migration environment of every section: which database, which version table, and one upgrade at a time."""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from io import StringIO
from logging.config import fileConfig
from typing import Any

import sqlalchemy as sa
from alembic import context
from sqlalchemy.exc import DBAPIError

import amprenta_vectors.ddl  # noqa: F401 - registers the operations
from amprenta_vectors.config import Settings
from amprenta_vectors.db import (
    check_direct,
    check_may_migrate,
    check_server,
    create_engine,
    migration_lock,
    server_versions,
    to_error,
)
from amprenta_vectors.ddl.options import check_index
from amprenta_vectors.ddl.programs import programs_of
from amprenta_vectors.ddl.script import begin_script
from amprenta_vectors.ddl.settle import settle_first
from amprenta_vectors.errors import AmprentaError, ConfigError
from amprenta_vectors.migrate import SECTIONS, Section
from amprenta_vectors.pg.connections import like
from amprenta_vectors.schema import tables

config = context.config
log = logging.getLogger("amprenta_vectors.migrate")

ARGUMENTS = {"adopted", "dimension", "index", "purge"}
"""What ``-x NAME=VALUE`` may name."""


def run() -> None:
    """Connect directly, wait for the migration lock, and run what is left to run."""
    arguments = context.get_x_argument(as_dictionary=True)
    if unknown := sorted(arguments.keys() - ARGUMENTS):
        raise ConfigError(
            f"-x {unknown[0]} is not known",
            hint="one of: -x dimension=NUMBER, -x index=ivfflat, -x purge=true, -x adopted=TABLE",
        )
    settings = config.attributes.get("settings") or Settings.load()
    options = {
        "dimension": arguments.get("dimension", settings.vector_dimension),
        "index": check_index(arguments.get("index")),
        "purge": arguments.get("purge", config.attributes.get("purge", False)),
        "adopted": arguments.get("adopted"),
    }
    if context.is_offline_mode():
        write(options)
        return
    given: sa.Connection | None = config.attributes.get("connection")
    engine = like(given.engine) if given is not None else create_engine(of_this_file(settings), migrations=True)
    try:
        if given is None:
            check_direct(engine)
        comparison = check_suitable(engine)
        with engine.connect() if given is None else nullcontext(given) as connection:
            context.configure(
                connection=connection,
                version_table=section().version_table,
                **comparison,
                transaction_per_migration=True,
                amprenta_options=options,
                amprenta_programs=programs_of(context.script),
            )
            # `alembic current` changes nothing, and is asked just when an upgrade takes long.
            only_reads = context.get_context().opts.get("dont_mutate", False)
            if not only_reads:
                refuse_new_revision()
                check_may_migrate(engine, section().version_table)
                settle_first(context.get_context(), context.script)
            lock = nullcontext() if only_reads else migration_lock(engine, settings.migration_lock_timeout)
            with lock, context.begin_transaction():
                context.run_migrations()
    except DBAPIError as error:
        raise to_error(error, "the database refused a statement") from error
    finally:
        engine.dispose()


def of_this_file(settings: Settings) -> Settings:
    """Take the database that the ini file names, where a section is mounted in one that does."""
    url = config.get_main_option("sqlalchemy.url")
    if url is None or "settings" in config.attributes:
        return settings
    named = sa.make_url(url).set(drivername="postgresql")
    return Settings.load(database_url=named.render_as_string(hide_password=False), migration_database_url=None)


def refuse_new_revision() -> None:
    """Refuse to write a revision of an application's beside those of the package, in which it is mounted."""
    command: str = getattr(context.get_context()._migrations_fn, "__qualname__", "")
    if command.startswith("revision.") and config.get_main_option("amprenta_section") is not None:
        raise ConfigError(
            "the revisions of this section come with amprenta_vectors; none is written beside them",
            hint="alembic revision, without -n, writes one of the application's own",
        )


def write(options: dict[str, Any]) -> None:
    """Print the revisions as SQL, nothing unless all can be; for the database that is at hand, if one is."""
    script, checks = StringIO(), list[str]()
    context.configure(
        dialect_name="postgresql",
        dialect_opts={"paramstyle": "named"},
        literal_binds=True,
        output_buffer=script,
        version_table=section().version_table,
        transaction_per_migration=True,
        amprenta_options=options,
        amprenta_connection=config.attributes.get("script_connection"),
        amprenta_emit_check=checks.append,
    )
    begin_script(context.get_context())
    beginning = script.tell()
    with context.begin_transaction():
        context.run_migrations()
    # All that is taken for granted is checked before anything is changed.
    written = script.getvalue()
    (config.output_buffer or sys.stdout).write(
        written[:beginning] + "".join(f"{check}\n\n" for check in checks) + written[beginning:]
    )


def section() -> Section:
    """The section that is run: that of the ini file's own name, or the one that ``amprenta_section`` names there."""
    name = config.get_main_option("amprenta_section", config.config_ini_section)
    if name not in SECTIONS:
        raise ConfigError(f"there is no section {name!r}", hint=f"amprenta_section = one of: {', '.join(SECTIONS)}")
    return SECTIONS[name]


def check_suitable(engine: sa.Engine) -> dict[str, Any]:
    """Refuse a server that cannot work before anything is changed; warn of one with known faults.

    Returns what autogenerate compares with, as it depends on what the database already had.
    """
    # On a connection of its own: one whose transaction has begun would not be committed by Alembic.
    with engine.connect() as connection:
        versions = server_versions(connection)
        comparison = tables.comparison(connection, section().name)
    for warning in check_server(*versions):
        log.warning(warning)
    return comparison


# An application's file, in which a section of ours is mounted, may leave logging to the application.
if config.config_file_name is not None and config.file_config.has_section("formatters"):
    fileConfig(config.config_file_name, disable_existing_loggers=False)
try:
    run()
except AmprentaError as error:
    if config.cmd_opts is None:
        raise
    print(f"error: {error}", file=sys.stderr)  # noqa: T201 - Alembic itself would show a traceback
    sys.exit(error.exit_code)
