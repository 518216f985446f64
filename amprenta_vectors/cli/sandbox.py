"""``amprenta-vectors sandbox``: everything the package needs, on this machine, with real data in it."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from amprenta_vectors.sandbox import control

_folder = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=control.DEFAULT_FOLDER,
    show_default=True,
    help="Where the sandbox keeps its data.",
)


@click.group()
def sandbox() -> None:
    """PostgreSQL with pgvector and a Pinecone index on this machine, to try everything out."""


@sandbox.command()
@_folder
@click.option("--rows", type=click.IntRange(min=1), help="Load the index with so many vectors.  [default: all]")
def start(folder: Path, rows: int | None) -> None:
    """Start the sandbox, loading the index the first time."""
    loaded = control.start(folder, rows)
    command = "amprenta-vectors sandbox env"
    if folder != control.DEFAULT_FOLDER:
        command += f" --folder {shlex.quote(str(folder))}"
    click.echo(f"The sandbox runs; its Pinecone index was loaded with {loaded:,} vectors.")
    click.echo(f'Point this shell at it: eval "$({command})"')


@sandbox.command()
@_folder
@click.option("--remove", is_flag=True, help="Delete the folder with everything in it.")
def stop(folder: Path, remove: bool) -> None:
    """Stop the sandbox; what it holds stays for the next start."""
    control.stop(folder, remove=remove)


@sandbox.command()
@_folder
def env(folder: Path) -> None:
    """Print the variables that point a shell at the sandbox."""
    for name, value in control.env(folder).items():
        click.echo(f"export {name}={shlex.quote(value)}")
