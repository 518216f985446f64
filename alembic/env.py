"""The migration environment of every section: which database, which version table, and one upgrade at a time."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import StringIO
from logging.config import fileConfig
from typing import Any

import sqlalchemy as sa
from alembic import context
from alembic.migration import MigrationContext
from alembic.operations.ops import MigrationScript
from sqlalchemy.exc import DBAPIError

import amprenta_vectors.ddl  # noqa: F401 - registers the operations
from amprenta_vectors.config import Settings
from amprenta_vectors.db import check_direct, check_may_migrate, create_engine, migration_lock
from amprenta_vectors.ddl.options import check_index
from amprenta_vectors.ddl.own_model import comparison
from amprenta_vectors.ddl.programs import operations_of
from amprenta_vectors.ddl.script import begin_script
from amprenta_vectors.ddl.settle import settle_first
from amprenta_vectors.errors import AmprentaError, ConfigError
from amprenta_vectors.migrate import search_adopted
from amprenta_vectors.pg.connections import extended_path, like
from amprenta_vectors.pg.errors import to_error
from amprenta_vectors.sections import SECTIONS, Section
from amprenta_vectors.server import check_server, server_versions

config = context.config
log = logging.getLogger("amprenta_vectors.migrate")

ARGUMENTS = {"adopted", "dimension", "index", "purge", "schema"}
"""The names that ``-x NAME=VALUE`` takes."""


def run() -> None:
    """Connect directly, wait for the migration lock, and run what is left to run."""
    arguments = context.get_x_argument(as_dictionary=True)
    if unknown := sorted(arguments.keys() - ARGUMENTS):
        raise ConfigError(
            f"-x {unknown[0]} is not known",
            hint="one of: -x dimension=NUMBER, -x index=ivfflat, -x purge=true, -x schema=SCHEMA, -x adopted=TABLE",
        )
    settings = config.attributes.get("settings") or Settings.load()
    options = {
        "dimension": arguments.get("dimension", settings.vector_dimension),
        "index": check_index(arguments.get("index")),
        "purge": arguments.get("purge", config.attributes.get("purge", False)),
        "adopted": arguments.get("adopted"),
        "schema": arguments.get("schema", config.attributes.get("schema")),
        "section": section().name,
        "model": settings.embedding_model,
    }
    if context.is_offline_mode():
        write(options)
        return
    given: sa.Connection | sa.Engine | None = config.attributes.get("connection")
    engine = like(given.engine) if given is not None else create_engine(of_this_file(settings), migrations=True)
    try:
        if given is None:
            check_direct(engine)
        check_suitable(engine)
        options["schema"] = search_adopted(engine, section().name, options["schema"])
        with connected(engine, given, options["schema"]) as connection:
            context.configure(
                connection=connection,
                version_table=section().version_table,
                transaction_per_migration=True,
                amprenta_options=options,
                process_revision_directives=refuse_new_revision,
            )
            if command() not in {"upgrade", "downgrade", "current", "stamp"}:
                context.get_context().opts.update(comparing(engine))
            # `alembic current` changes nothing, and is asked just when an upgrade takes long.
            only_reads = context.get_context().opts.get("dont_mutate", False)
            if not only_reads:
                check_may_migrate(engine, section().version_table)
                settle_first(context.get_context(), context.script)
            lock = nullcontext() if only_reads else migration_lock(engine, settings.migration_lock_timeout)
            with lock, context.begin_transaction():
                context.run_migrations()
    except DBAPIError as error:
        raise to_error(error, "the database refused a statement") from error
    finally:
        engine.dispose()


@contextmanager
def connected(engine: sa.Engine, given: object, schema: str | None) -> Iterator[sa.Connection]:
    """Yield the connection to migrate, the given one or a new one; it finds the section's table in ``schema`` too."""
    if not isinstance(given, sa.Connection):
        with engine.connect() as connection:
            yield connection
        return
    if schema is None:
        yield given
        return
    began = given.in_transaction()
    before, path = given.execute(sa.text(f"SELECT current_setting('search_path'), {extended_path(schema)}")).one()
    set_search_path(given, path, commit=not began)
    try:
        yield given
    except BaseException:
        # The application's own transaction, which has failed, takes it back.
        if not began and not given.invalidated:
            set_search_path(given, before, commit=True)
        raise
    set_search_path(given, before, commit=not began)


def set_search_path(connection: sa.Connection, path: str, *, commit: bool) -> None:
    """Set the search path for the session; with ``commit``, commit it, so that Alembic's transaction starts anew."""
    connection.execute(sa.select(sa.func.set_config("search_path", path, False)))
    if commit:
        connection.commit()


def of_this_file(settings: Settings) -> Settings:
    """Return the settings with the database that the ini file names, if a section is mounted in one that names it."""
    url = config.get_main_option("sqlalchemy.url")
    if url is None or "settings" in config.attributes:
        return settings
    named = sa.make_url(url).set(drivername="postgresql")
    return Settings.load(database_url=named.render_as_string(hide_password=False), migration_database_url=None)


def command() -> str:
    """Return the name of the command that Alembic was called by; another name if it was called otherwise."""
    name: str = getattr(context.get_context()._migrations_fn, "__qualname__", "")
    return name.partition(".")[0]


def refuse_new_revision(_: MigrationContext, __: object, revisions: list[MigrationScript]) -> None:
    """Refuse to write a revision of an application's beside those of the package, in which it is mounted."""
    if revisions and command() == "revision" and config.get_main_option("amprenta_section") is not None:
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
    if options["schema"] is not None:
        path = f"SELECT set_config('search_path', {extended_path(options['schema'])}, false)"
        context.get_context().impl.static_output(f"{path};")
    beginning = script.tell()
    with context.begin_transaction():
        context.run_migrations()
    # All that is taken for granted is checked before anything is changed.
    written = script.getvalue()
    (config.output_buffer or sys.stdout).write(
        written[:beginning] + "".join(f"{check}\n\n" for check in checks) + written[beginning:]
    )


def section() -> Section:
    """Return the section to run: the one that ``amprenta_section`` names in the ini file, else that of its own name."""
    name = config.get_main_option("amprenta_section", config.config_ini_section)
    if name not in SECTIONS:
        raise ConfigError(f"there is no section {name!r}", hint=f"amprenta_section = one of: {', '.join(SECTIONS)}")
    return SECTIONS[name]


def check_suitable(engine: sa.Engine) -> None:
    """Refuse a server that cannot work before anything is changed; warn of one with known faults."""
    # On a connection of its own: one whose transaction has begun would not be committed by Alembic.
    with engine.connect() as connection:
        versions = server_versions(connection)
    for warning in check_server(*versions):
        log.warning(warning)


def comparing(engine: sa.Engine) -> dict[str, Any]:
    """Return what autogenerate compares with, as it depends on what the database already had."""
    operations = operations_of(context.script)
    with engine.connect() as connection:
        return {**comparison(connection, operations), "amprenta_operations": operations}


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
