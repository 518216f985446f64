"""Alembic run from code: where the revisions lie, and upgrade, downgrade and plan without an ini file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.config import Settings
from amprenta_vectors.ddl.plan import RevisionPlan, plan_upgrade
from amprenta_vectors.ddl.script import heads_of
from amprenta_vectors.ddl.sections import schema_to_adopt
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.pg.connections import search_also
from amprenta_vectors.sections import SECTIONS


def migrations_folder() -> Path:
    """Return the folder of the revisions: in the package; in a checkout, that is a link to the folder ``alembic``."""
    return Path(__file__).parent / "migrations"


def alembic_config(settings: Settings, section: str = "alembic") -> Config:
    """Return Alembic's configuration for ``section``. Raises `ConfigError` if there is no such section."""
    if section not in SECTIONS:
        raise ConfigError(f"there is no section {section!r}", hint=f"one of: {', '.join(SECTIONS)}")
    config = Config(ini_section=section)
    # Config interpolates: a percent sign in a path must be doubled.
    path = str(migrations_folder()).replace("%", "%%")
    config.set_main_option("script_location", path)
    config.set_main_option("path_separator", "newline")
    locations = [f"{path}/versions/{name}" for name in SECTIONS[section].folders]
    config.set_main_option("version_locations", "\n".join(locations))
    config.attributes["settings"] = settings
    return config


def search_adopted(engine: Engine, section: str, schema: str | None) -> str | None:
    """Let ``engine`` find the section's table in the schema off the search path that it was or is to be adopted in.

    ``schema`` is what ``-x schema=`` says, None if it is not given. Returns the schema, None for a table on the path.
    Raises `ConfigError` if the schema has no such table.
    """
    with engine.connect() as connection:
        found = schema_to_adopt(connection, SECTIONS[section].table, schema)
    if found is not None:
        search_also(engine, found)
    return found


def upgrade(settings: Settings, section: str = "alembic", revision: str = "head", *, schema: str | None = None) -> None:
    """Bring ``section`` to ``revision``, waiting for any other upgrade of this database.

    ``schema`` is where the table to adopt is, if that is off the search path.
    """
    config = alembic_config(settings, section)
    config.attributes["schema"] = schema
    with _alembic_errors():
        command.upgrade(config, revision)


def downgrade(settings: Settings, section: str = "alembic", revision: str = "base", *, purge: bool = False) -> None:
    """Take ``section`` back to ``revision``; columns and tables that hold values are kept unless ``purge``."""
    config = alembic_config(settings, section)
    config.attributes["purge"] = purge
    with _alembic_errors():
        command.downgrade(config, revision)


def print_upgrade(
    settings: Settings,
    connection: Connection,
    section: str = "alembic",
    revision: str = "head",
    *,
    schema: str | None = None,
) -> None:
    """Print what brings ``section`` to ``revision``, as SQL for the database as it is; nothing is changed.

    ``schema``, if given, has the section's table, and ``connection`` finds it there.
    """
    config = _for_script(settings, connection, section, schema)
    start = config.attributes["script_start"]
    with _alembic_errors():
        command.upgrade(config, f"{start}:{revision}", sql=True)


def print_downgrade(
    settings: Settings,
    connection: Connection,
    section: str = "alembic",
    revision: str = "base",
    *,
    purge: bool = False,
    schema: str | None = None,
) -> None:
    """Print what takes ``section`` back to ``revision``, as `print_upgrade` does."""
    config = _for_script(settings, connection, section, schema)
    config.attributes["purge"] = purge
    start = config.attributes["script_start"]
    if start == "base":
        raise ConfigError(
            f"section {section} is at base: there is nothing to downgrade", hint="amprenta-vectors db current"
        )
    with _alembic_errors():
        command.downgrade(config, f"{start}:{revision}", sql=True)


def _for_script(settings: Settings, connection: Connection, section: str, schema: str | None) -> Config:
    config = alembic_config(settings, section)
    config.attributes["schema"] = schema
    config.attributes["script_connection"] = connection
    config.attributes["script_start"] = ",".join(heads_of(connection, SECTIONS[section].version_table)) or "base"
    return config


def current(settings: Settings, section: str = "alembic") -> None:
    """Print the revision that ``section`` is at; never waits for an upgrade that runs."""
    with _alembic_errors():
        command.current(alembic_config(settings, section))


def plan(
    settings: Settings,
    connection: Connection,
    section: str = "alembic",
    revision: str = "head",
    *,
    schema: str | None = None,
) -> list[RevisionPlan]:
    """Return what an upgrade of ``section`` to ``revision`` would do; nothing is changed and no lock is waited for.

    ``schema``, if given, has the section's table, and ``connection`` finds it there.
    """
    script = ScriptDirectory.from_config(alembic_config(settings, section))
    options = {"dimension": settings.vector_dimension, "schema": schema, "section": section}
    version_table = SECTIONS[section].version_table
    return plan_upgrade(connection, script, revision, version_table=version_table, options=options)


@contextmanager
def _alembic_errors() -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        raise ConfigError(str(error), hint="amprenta-vectors db current") from error
