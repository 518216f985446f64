"""``amprenta-vectors verify``: every vector of the source against the table."""

from __future__ import annotations

import json
from contextlib import closing
from typing import IO, TYPE_CHECKING

import click

from amprenta_vectors.cli.options import dimension_option, namespace_options, source_option
from amprenta_vectors.errors import ExitCode

if TYPE_CHECKING:
    from amprenta_vectors.backfill.engine.observer import MoveEvent
    from amprenta_vectors.schema.kinds import SourceKind


@click.command()
@source_option
@dimension_option
@namespace_options
@click.option("--workers", type=int, help="Threads that fetch.  [env var: AMPRENTA_WORKERS; default: 5]")
@click.option("--output", type=click.File("w"), help="Write every differing key there, one JSON object a line.")
@click.pass_context
def verify(
    ctx: click.Context,
    source: SourceKind | None,
    dimension: int | None,
    namespace: str | None,
    all_namespaces: bool,
    workers: int | None,
    output: IO[str] | None,
) -> None:
    """Compare every vector of the source with the table, bit for bit; exit 1 if any is missing, extra or different.

    If the rows are their own source, 200 of them chosen by chance are embedded again and compared within what one
    model's vectors of a text differ by; every row with a text and without a vector is missing.
    """
    from amprenta_vectors.cli.display import open_display
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.ends import choose_namespaces, open_ends
    from amprenta_vectors.moves.events import Differed
    from amprenta_vectors.moves.move import Move

    settings = Settings.load(workers=workers, source=source, dimension=dimension)
    with closing(open_display(settings.log_format)) as show:

        def observe(event: MoveEvent) -> None:
            if output is not None and isinstance(event, Differed):
                line = {"kind": event.kind, "key": event.key, "detail": event.detail, "quarantined": event.quarantined}
                output.write(json.dumps(line) + "\n")
            show(event)

        ends = open_ends(settings, observe)
        names = choose_namespaces(settings, ends, namespace, all_namespaces)
        found = [Move(settings, namespace=name, ends=ends).verify(observe) for name in names]
    ctx.exit(ExitCode.FAILED if any(each.unexpected for each in found) else ExitCode.CLEAN)
