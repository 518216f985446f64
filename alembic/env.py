"""The migration environment of every section: which database, which version table, and one upgrade at a time."""

from __future__ import annotations

import sys
from logging.config import fileConfig

import amprenta_vectors.ddl  # noqa: F401 - registers the operations
from alembic import context
from amprenta_vectors.config import Settings
from amprenta_vectors.db import check_direct, create_engine, migration_lock
from amprenta_vectors.errors import AmprentaError
from amprenta_vectors.migrate import SECTIONS

config = context.config


def run() -> None:
    """Connect directly, wait for the migration lock, and run what is left to run."""
    if context.is_offline_mode():
        raise AmprentaError("writing these revisions as SQL is not supported yet", hint="alembic upgrade head")
    settings = config.attributes.get("settings") or Settings.load()
    arguments = context.get_x_argument(as_dictionary=True)
    engine = create_engine(settings, migrations=True)
    check_direct(engine)
    with migration_lock(engine, settings.migration_lock_timeout), engine.connect() as connection:
        context.configure(
            connection=connection,
            version_table=SECTIONS[config.config_ini_section].version_table,
            transaction_per_migration=True,
            amprenta_options={
                "dimension": arguments.get("dimension", settings.vector_dimension),
                "purge": arguments.get("purge", config.attributes.get("purge", False)),
            },
        )
        with context.begin_transaction():
            context.run_migrations()
    engine.dispose()


if config.config_file_name is not None:
    fileConfig(config.config_file_name, disable_existing_loggers=False)
try:
    run()
except AmprentaError as error:
    if config.cmd_opts is None:
        raise
    print(f"error: {error}", file=sys.stderr)  # noqa: T201 - Alembic itself would show a traceback
    sys.exit(error.exit_code)
