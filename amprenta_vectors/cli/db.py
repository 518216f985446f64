"""``amprenta-vectors db``: the package's own revisions, also where there is no alembic.ini."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from amprenta_vectors.cli.printer import log_to_stderr, say
from amprenta_vectors.sections import SECTIONS

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from amprenta_vectors.config import Settings
    from amprenta_vectors.ddl.plan import RevisionPlan

_section = click.option(
    "--section",
    type=click.Choice(list(SECTIONS)),
    default="alembic",
    show_default=True,
    help="Which system's revisions.",
)
_schema = click.option(
    "--schema", help="Where the section's table is, to be adopted, if the search path does not find it."
)
_sql = click.option("--sql", is_flag=True, help="Print the SQL for the database as it is, instead of running it.")


@click.group()
def db() -> None:
    """Upgrade and downgrade the schema by the revisions that come with the package."""
    log_to_stderr(logging.WARNING, "%(levelname)-5.5s [%(name)s] %(message)s")
    for name in ("alembic", "amprenta_vectors"):
        logging.getLogger(name).setLevel(logging.INFO)
    # What Alembic says of itself when it is imported.
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)


@db.command()
@_section
@_schema
@_sql
@click.argument("revision", default="head")
def upgrade(section: str, schema: str | None, sql: bool, revision: str) -> None:
    """Bring the schema to REVISION (default: head). Several at once are safe: one works, the others wait."""
    from amprenta_vectors.config import Settings
    from amprenta_vectors.migrate import print_upgrade
    from amprenta_vectors.migrate import upgrade as run_upgrade

    settings = Settings.load()
    if not sql:
        run_upgrade(settings, section, revision, schema=schema)
        return
    with _reading(settings, section, schema) as (connection, found):
        print_upgrade(settings, connection, section, revision, schema=found)


@db.command()
@_section
@click.option("--purge", is_flag=True, help="Drop embeddings and tables that have values, instead of keeping them.")
@_sql
@click.argument("revision", default="base")
def downgrade(section: str, revision: str, purge: bool, sql: bool) -> None:
    """Take the schema back to REVISION (default: base). What has values is kept and comes back with an upgrade."""
    from amprenta_vectors.config import Settings
    from amprenta_vectors.migrate import downgrade as run_downgrade
    from amprenta_vectors.migrate import print_downgrade

    settings = Settings.load()
    if not sql:
        run_downgrade(settings, section, revision, purge=purge)
        return
    with _reading(settings, section) as (connection, found):
        print_downgrade(settings, connection, section, revision, purge=purge, schema=found)


@db.command()
@_section
def current(section: str) -> None:
    """Print the revision that the schema is at."""
    from amprenta_vectors.config import Settings
    from amprenta_vectors.migrate import current as run_current

    run_current(Settings.load(), section)


@db.command()
@_section
@_schema
@click.argument("revision", default="head")
def plan(section: str, schema: str | None, revision: str) -> None:
    """Say what an upgrade to REVISION (default: head) would do and lock. Changes nothing; counts values by reading."""
    from amprenta_vectors.config import Settings
    from amprenta_vectors.ddl.plan import publications_of
    from amprenta_vectors.ddl.steps import Step
    from amprenta_vectors.migrate import plan as run_plan
    from amprenta_vectors.pg.sessions import GIVE_UP_SECONDS, LOCK_SECONDS

    settings = Settings.load()
    with _reading(settings, section, schema) as (connection, found):
        plans = run_plan(settings, connection, section, revision, schema=found)
        publications = publications_of(connection, plans)
    for each in plans:
        for line in _described(each):
            say(line)
    if not plans:
        say("nothing to do: the schema is there already")
    elif any(isinstance(step, Step) and step.blocks != "nobody" for each in plans for step in each.steps):
        say(
            f"A lock that others wait for is asked for {LOCK_SECONDS:.0f} s at a time, for up to {GIVE_UP_SECONDS:.0f} "
            f"s: no statement queues behind it for longer than {LOCK_SECONDS:.0f} s."
        )
    for publication, tables in publications.items():
        say(
            f"Publication {publication} carries {', '.join(tables)}: before the upgrade, install pgvector on each "
            "subscriber's server and run there what this prints, or replication stops at the first embedding: "
            f"amprenta-vectors db upgrade --section {section} --sql {revision}"
        )


@contextmanager
def _reading(settings: Settings, section: str, schema: str | None = None) -> Iterator[tuple[Connection, str | None]]:
    """Open a connection that can change nothing; yield it and the schema in which it finds the section's table."""
    from amprenta_vectors.db import check_connection, create_engine
    from amprenta_vectors.migrate import search_adopted

    engine = create_engine(settings, migrations=True)
    check_connection(engine)
    found = search_adopted(engine, section, schema)
    with engine.connect().execution_options(postgresql_readonly=True) as connection:
        yield connection, found
    engine.dispose()


def _described(plan: RevisionPlan) -> Iterator[str]:
    from amprenta_vectors.ddl.steps import Done

    yield f"{plan.revision}  {plan.title}"
    for table in plan.tables:
        rows = "rows never counted (ANALYZE does)" if table.rows is None else f"about {table.rows:,} rows"
        yield f"    {table.name}: {rows}, {table.bytes / 2**20:,.1f} MB"
    for step in plan.steps:
        if isinstance(step, Done):
            yield f"  - {step.found}"
            continue
        yield f"  - {step.action}"
        if step.lock:
            where = f"{step.lock} on {step.object}" if step.object else step.lock
            waits = "nobody waits" if step.blocks == "nobody" else f"who waits: {step.blocks}"
            yield f"      lock: {where}; {waits}; {step.duration}"
