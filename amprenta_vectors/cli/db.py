"""``amprenta-vectors db``: the package's own revisions, also where there is no alembic.ini."""

from __future__ import annotations

import logging

import click

from amprenta_vectors.config import Settings
from amprenta_vectors.migrate import SECTIONS
from amprenta_vectors.migrate import current as run_current
from amprenta_vectors.migrate import downgrade as run_downgrade
from amprenta_vectors.migrate import upgrade as run_upgrade

_section = click.option(
    "--section",
    type=click.Choice(list(SECTIONS)),
    default="alembic",
    show_default=True,
    help="Which system's revisions.",
)


@click.group()
def db() -> None:
    """Upgrade and downgrade the schema by the revisions that come with the package."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)-5.5s [%(name)s] %(message)s")
    for name in ("alembic", "amprenta_vectors"):
        logging.getLogger(name).setLevel(logging.INFO)


@db.command()
@_section
@click.argument("revision", default="head")
def upgrade(section: str, revision: str) -> None:
    """Bring the schema to REVISION (default: head). Several at once are safe: one works, the others wait."""
    run_upgrade(Settings.load(), section, revision)


@db.command()
@_section
@click.option("--purge", is_flag=True, help="Drop embeddings and tables that have values, instead of keeping them.")
@click.argument("revision", default="base")
def downgrade(section: str, revision: str, purge: bool) -> None:
    """Take the schema back to REVISION (default: base). What has values is kept and comes back with an upgrade."""
    run_downgrade(Settings.load(), section, revision, purge=purge)


@db.command()
@_section
def current(section: str) -> None:
    """Print the revision that the schema is at."""
    run_current(Settings.load(), section)
