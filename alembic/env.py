"""The migration environment of every section: which database, which version table, and one upgrade at a time."""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from logging.config import fileConfig

import sqlalchemy as sa
from alembic import context
from sqlalchemy.exc import DBAPIError

import amprenta_vectors.ddl  # noqa: F401 - registers the operations
from amprenta_vectors.config import Settings
from amprenta_vectors.db import check_direct, check_server, create_engine, migration_lock, server_versions, to_error
from amprenta_vectors.errors import AmprentaError, ConfigError
from amprenta_vectors.migrate import SECTIONS

config = context.config
log = logging.getLogger("amprenta_vectors.migrate")

ARGUMENTS = {"dimension", "purge"}
"""What ``-x NAME=VALUE`` may name."""


def run() -> None:
    """Connect directly, wait for the migration lock, and run what is left to run."""
    if context.is_offline_mode():
        raise AmprentaError("writing these revisions as SQL is not supported yet", hint="alembic upgrade head")
    arguments = context.get_x_argument(as_dictionary=True)
    if unknown := sorted(arguments.keys() - ARGUMENTS):
        raise ConfigError(f"-x {unknown[0]} is not known", hint="one of: -x dimension=NUMBER, -x purge=true")
    settings = config.attributes.get("settings") or Settings.load()
    engine = create_engine(settings, migrations=True)
    try:
        check_direct(engine)
        check_suitable(engine)
        with engine.connect() as connection:
            context.configure(
                connection=connection,
                version_table=SECTIONS[config.config_ini_section].version_table,
                transaction_per_migration=True,
                amprenta_options={
                    "dimension": arguments.get("dimension", settings.vector_dimension),
                    "purge": arguments.get("purge", config.attributes.get("purge", False)),
                },
            )
            # `alembic current` changes nothing, and is asked just when an upgrade takes long.
            only_reads = context.get_context().opts.get("dont_mutate", False)
            lock = nullcontext() if only_reads else migration_lock(engine, settings.migration_lock_timeout)
            with lock, context.begin_transaction():
                context.run_migrations()
    except DBAPIError as error:
        raise to_error(error, "the database refused a statement") from error
    finally:
        engine.dispose()


def check_suitable(engine: sa.Engine) -> None:
    """Refuse a server that cannot work before anything is changed; warn of one with known faults."""
    # On a connection of its own: one whose transaction has begun would not be committed by Alembic.
    with engine.connect() as connection:
        versions = server_versions(connection)
    for warning in check_server(*versions):
        log.warning(warning)


if config.config_file_name is not None:
    fileConfig(config.config_file_name, disable_existing_loggers=False)
try:
    run()
except AmprentaError as error:
    if config.cmd_opts is None:
        raise
    print(f"error: {error}", file=sys.stderr)  # noqa: T201 - Alembic itself would show a traceback
    sys.exit(error.exit_code)
