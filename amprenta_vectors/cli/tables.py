"""``amprenta-vectors tables``: the tables of ``amprenta.toml`` against the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from amprenta_vectors.cli.options import open_database
from amprenta_vectors.cli.printer import say
from amprenta_vectors.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from amprenta_vectors.schema.check import Finding
    from amprenta_vectors.schema.vector_table import VectorTable


@click.group()
def tables() -> None:
    """Check the vector tables of your own that amprenta.toml declares.

    The file is amprenta.toml in the working directory, or AMPRENTA_CONFIG. AMPRENTA_TABLE=NAME has every other command
    work on that table.
    """


@tables.command()
@click.argument("name", required=False)
@click.pass_context
def check(ctx: click.Context, name: str | None) -> None:
    """Compare table NAME, or every table declared, with the database; change nothing.

    Looks at the table, its columns and their types, the unique index on exactly scope and key, dimension, storage, the
    vector index and its operator class, and columns that an insert would have to fill. Each finding says what was
    expected, what was found, and the SQL to type. Exit 0 if all is as declared, else 2.
    """
    from amprenta_vectors.config import Settings
    from amprenta_vectors.schema.registry import CONFIG_FILE, declared_tables

    settings = Settings.load()
    declared = declared_tables(settings.config)
    if name is not None and name not in declared:
        raise ConfigError(
            f"{name!r} is no table of {settings.config or CONFIG_FILE}; declared there: "
            f"{', '.join(declared) or 'none'}",
            hint="those of the package are compared by: alembic check",
        )
    chosen = [table for table in declared.values() if name in (None, table.name)]
    if not chosen:
        say(f"no table is declared: there is no {CONFIG_FILE} here, or it is empty (docs/tables.md shows one)")
        return
    with open_database(settings, 1).connect() as connection:
        clean = [_check(connection, table) for table in chosen]
    ctx.exit(ExitCode.CLEAN if all(clean) else ExitCode.USAGE)


def _check(connection: Connection, table: VectorTable) -> bool:
    from amprenta_vectors.schema.check import check_table
    from amprenta_vectors.schema.unused import unused_columns

    findings = check_table(connection, table)
    blocking = [finding for finding in findings if finding.blocking]
    column = f"{table.target} {table.storage}({table.dimension}), {table.distance}"
    number = f"{len(blocking)} to mend" if blocking else "as declared"
    say(f"{table.name}: {column}: {number}")
    for finding in findings:
        _print(finding)
    unused = unused_columns(connection, table)
    if unused.columns:
        say(f"  note: not used: {unused.describe()}")
        for role in unused.candidates:
            say(f"    if one holds {role}, {unused.to_add(table, role)}")
    return not blocking


def _print(finding: Finding) -> None:
    note = "" if finding.blocking else "note: "
    say(f"  {note}expected {finding.expected}; found {finding.found}")
    say(f"    {finding.sql};")
