"""``amprenta-vectors index``: the ANN index of the embedding column, outside revisions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from amprenta_vectors.cli.options import stop_on_signal
from amprenta_vectors.cli.printer import log_to_stderr, say

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from amprenta_vectors.backfill.database.index_plan import BuildSettings
    from amprenta_vectors.cli.move_text import MoveText
    from amprenta_vectors.pg.types import CoarserStorage, IndexMethod
    from amprenta_vectors.schema.vector_table import VectorTable

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group()
def index() -> None:
    """Build, rebuild or drop the ANN index; readers and writers continue meanwhile."""
    log_to_stderr(logging.INFO, "%(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)


def build_options(command: Command) -> Command:
    """Add the options of a build: how many workers and how much memory of the server it gets."""
    for option in (
        click.option(
            "--index-workers",
            type=int,
            help="Workers beside the session that builds, as far as the server's limits let them.  "
            "[env var: AMPRENTA_INDEX_WORKERS; default: the server's max_parallel_maintenance_workers]",
        ),
        click.option(
            "--maintenance-work-mem",
            help="Memory for this build, such as 2GB; a graph that outgrows it is built on disk.  "
            "[env var: AMPRENTA_MAINTENANCE_WORK_MEM; default: the server's]",
        ),
    ):
        command = option(command)
    return command


@index.command()
@click.option("--method", type=click.Choice(["hnsw", "ivfflat"]), default="hnsw", show_default=True)
@click.option("--m", type=click.IntRange(2, 100), default=16, show_default=True, help="hnsw: links a row.")
@click.option(
    "--ef-construction", type=click.IntRange(4, 1000), default=64, show_default=True, help="hnsw: care in building."
)
@click.option("--lists", type=click.IntRange(1, 32768), help="ivfflat: lists.  [default: by the number of rows]")
@click.option(
    "--storage",
    type=click.Choice(["halfvec", "bit"]),
    help="Index half-precision values, or only the sign of each.  [default: the finest that the column allows]",
)
@build_options
def build(
    method: IndexMethod,
    m: int,
    ef_construction: int,
    lists: int | None,
    storage: CoarserStorage | None,
    maintenance_work_mem: str | None,
    index_workers: int | None,
) -> None:
    """Build the index that a load deferred or that was dropped, as it was; if there was none, a new one."""
    from amprenta_vectors.backfill.database.index import build_deferred
    from amprenta_vectors.moves.indexing import build_new, telling_plans, watching_builds

    engine, table, given, show = _open(maintenance_work_mem=maintenance_work_mem, index_workers=index_workers)
    options = {"lists": lists or 0} if method == "ivfflat" else {"m": m, "ef_construction": ef_construction}
    with stop_on_signal(waits_for="PostgreSQL to give up the build") as stop, watching_builds(engine, table, show):
        built = build_deferred(engine, table, stop, given, telling_plans(show))
        built = built or [build_new(engine, table, given, method, options, storage, show)]
    say(f"{table.target} is indexed: {', '.join(built)}")


@index.command()
@build_options
def rebuild(maintenance_work_mem: str | None, index_workers: int | None) -> None:
    """Rebuild every ANN index of the column, as after many updates and deletes."""
    from amprenta_vectors.backfill.database.index import rebuild_indexes
    from amprenta_vectors.moves.indexing import telling_plans, watching_builds

    engine, table, given, show = _open(maintenance_work_mem=maintenance_work_mem, index_workers=index_workers)
    with stop_on_signal(waits_for="PostgreSQL to give up the build") as stop, watching_builds(engine, table, show):
        rebuilt = rebuild_indexes(engine, table, stop, given, telling_plans(show))
    say(f"rebuilt: {', '.join(rebuilt)}" if rebuilt else "there is no index; amprenta-vectors index build")


@index.command()
def drop() -> None:
    """Drop every ANN index of the column; until `index build` brings it back, queries read the whole table."""
    from amprenta_vectors.backfill.database.index import defer_indexes

    engine, table, *_ = _open()
    dropped = defer_indexes(engine, table, force=True)
    say(f"dropped: {', '.join(dropped)}; back with: amprenta-vectors index build" if dropped else "there was no index")


def _open(**options: object) -> tuple[Engine, VectorTable, BuildSettings, MoveText]:
    from amprenta_vectors.cli.move_text import MoveText
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.ends import open_target
    from amprenta_vectors.moves.indexing import build_settings

    settings, show = Settings.load(**options), MoveText()
    engine, table = open_target(settings, 3, show)
    return engine, table, build_settings(settings), show
