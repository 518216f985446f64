"""``amprenta-vectors index``: the ANN index of the embedding column, outside revisions."""

from __future__ import annotations

import logging

import click
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.backfill import progress
from amprenta_vectors.backfill.index import build_deferred, defer_indexes, rebuild_indexes
from amprenta_vectors.cli.display import showing_index_progress
from amprenta_vectors.cli.options import open_database, open_table, stop_on_signal
from amprenta_vectors.config import Settings
from amprenta_vectors.ddl.vector_index import CreateVectorIndexOp, Method
from amprenta_vectors.schema.vector_table import VectorTable


@click.group()
def index() -> None:
    """Build, rebuild or drop the ANN index; readers and writers go on meanwhile."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)


@index.command()
@click.option("--method", type=click.Choice(["hnsw", "ivfflat"]), default="hnsw", show_default=True)
@click.option("--m", type=click.IntRange(2, 100), default=16, show_default=True, help="hnsw: links a row.")
@click.option(
    "--ef-construction", type=click.IntRange(4, 1000), default=64, show_default=True, help="hnsw: care in building."
)
@click.option("--lists", type=click.IntRange(1, 32768), help="ivfflat: lists.  [default: by the number of rows]")
def build(method: Method, m: int, ef_construction: int, lists: int | None) -> None:
    """Build the index that a load put off or that was dropped, as it was; where there is none, a new one."""
    engine, table = _open()
    with stop_on_signal() as stop, showing_index_progress(engine, table):
        built = build_deferred(engine, table, stop)
        if not built:
            with engine.connect() as connection:
                options = {"m": m, "ef_construction": ef_construction}
                if method == "ivfflat":
                    options = {"lists": lists or 0}
                name = f"idx_{table.table}_{table.embedding}_{method}"
                _create(
                    connection,
                    CreateVectorIndexOp(
                        name, table.table, table.embedding, method, table.distance, options, schema=table.schema
                    ),
                )
            built = [name]
    click.echo(f"{table.target} is indexed: {', '.join(built)}")


@index.command()
def rebuild() -> None:
    """Rebuild every ANN index of the column, as after many updates and deletes."""
    engine, table = _open()
    with stop_on_signal() as stop, showing_index_progress(engine, table):
        rebuilt = rebuild_indexes(engine, table, stop)
    click.echo(f"rebuilt: {', '.join(rebuilt)}" if rebuilt else "there is no index; amprenta-vectors index build")


@index.command()
def drop() -> None:
    """Drop every ANN index of the column; until `index build` brings it back, queries read the whole table."""
    engine, table = _open()
    dropped = defer_indexes(engine, table, force=True)
    click.echo(
        f"dropped: {', '.join(dropped)}; back with: amprenta-vectors index build" if dropped else "there was no index"
    )


def _open() -> tuple[Engine, VectorTable]:
    settings = Settings.load()
    engine = open_database(settings, 3)
    with engine.connect() as connection:
        progress.require_tables(connection)
        return engine, open_table(settings, connection)


def _create(connection: Connection, operation: CreateVectorIndexOp) -> None:
    """By the very operation that revisions use."""
    connection.rollback()
    context = MigrationContext.configure(connection, opts={"transactional_ddl": True})
    with context.begin_transaction(_per_migration=False):
        Operations(context).invoke(operation)
