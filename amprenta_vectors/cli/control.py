"""``amprenta-vectors pause``, ``resume``, ``cancel`` and ``limits``: steer a run from any terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from amprenta_vectors.cli.options import open_database
from amprenta_vectors.cli.printer import say

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

    from amprenta_vectors.backfill.progress.states import Order

_SAID = {
    "workers": "workers of each process",
    "list_per_second": "list requests a second",
    "fetch_per_second": "fetch requests a second",
    "read_units_per_second": "read units a second",
    "max_read_units": "read units in all",
    "tokens_per_second": "tokens a second",
    "token_price": "price",
    "max_cost": "cost",
}

run_argument = click.argument("run", type=int, required=False)


@click.command()
@run_argument
def pause(run: int | None) -> None:
    """Pause RUN, by default the only one unfinished, and wait up to 60 seconds until no process works at it.

    Its processes stay and wait for `resume`.
    """
    from amprenta_vectors.backfill.progress.states import Order
    from amprenta_vectors.moves import orders

    engine, run_id = _open(run, Order.PAUSE)
    say(f"run {run_id}: waiting until nobody works at it (at most {orders.WAIT_SECONDS:.0f} s)", err=True)
    orders.pause(engine, run_id)
    say(f"run {run_id} is paused: nobody works at it; resume with: amprenta-vectors resume {run_id}")


@click.command()
@run_argument
def resume(run: int | None) -> None:
    """Resume RUN, by default the only one paused."""
    from amprenta_vectors.backfill.progress.states import Order
    from amprenta_vectors.moves import orders

    engine, run_id = _open(run, Order.RESUME)
    orders.resume(engine, run_id)
    say(f"run {run_id} goes on; where no process waits for it: amprenta-vectors backfill --resume")


@click.command()
@run_argument
def cancel(run: int | None) -> None:
    """End RUN for good, by default the only one unfinished. The rows that it wrote stay."""
    from amprenta_vectors.backfill.progress import figures, indexes, runs
    from amprenta_vectors.backfill.progress.states import Order
    from amprenta_vectors.backfill.progress.transactions import transaction
    from amprenta_vectors.cli.display import open_display
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves import orders
    from amprenta_vectors.moves.reports import leave_report

    engine, run_id = _open(run, Order.CANCEL)
    orders.cancel(engine, run_id)
    with transaction(engine) as connection:
        written = figures.count(connection, run_id).written
        run_cancelled = runs.load_run(connection, run_id)
        waiting = indexes.deferred_indexes(connection, run_cancelled.target)
    say(f"run {run_id} is cancelled; the {written:,} rows that it wrote stay")
    for index in waiting:
        say(f"  the index {index.index_name} waits to be built: amprenta-vectors index build")
    if run_cancelled.started_at is not None:
        settings = Settings.load()
        leave_report(engine, run_id, settings.report, open_display(settings.log_format))


@click.command()
@run_argument
@click.option("--workers", type=click.IntRange(min=1), help="Workers of each process, of those it was started with.")
@click.option("--list-per-second", type=click.FloatRange(min=0), help="List requests, of all processes.")
@click.option("--fetch-per-second", type=click.FloatRange(min=0), help="Fetch requests, of all processes.")
@click.option("--read-units-per-second", type=click.FloatRange(min=0), help="Read units, of all processes.")
@click.option("--max-read-units", type=click.IntRange(min=0), help="Read units that the run may spend in all.")
@click.option("--tokens-per-second", type=click.FloatRange(min=0), help="Tokens of a service, of all processes.")
@click.option("--token-price", type=click.FloatRange(min=0, min_open=True), help="What a million tokens cost.")
@click.option("--max-cost", type=click.FloatRange(min=0), help="What embedding may cost in all.")
@click.option("--clear", is_flag=True, help="Lift every limit that was set here, before those given are set.")
def limits(run: int | None, clear: bool, **given: float | None) -> None:
    """Show the limits set on RUN, by default the only one unfinished, or set some.

    Its processes follow them within a second; they come before those that the processes were started with. 0 is no
    limit.
    """
    from amprenta_vectors.backfill.progress import runs
    from amprenta_vectors.backfill.progress.orders import change_limits
    from amprenta_vectors.backfill.progress.transactions import transaction

    engine, run_id = _open(run)
    changes = {name: value for name, value in given.items() if value is not None}
    with transaction(engine) as connection:
        if changes.get("max_cost") and "token_price" not in ({} if clear else runs.load_run(connection, run_id).limits):
            _require_price(changes)
        if changes or clear:
            in_force: Mapping[str, float] = change_limits(connection, run_id, changes, clear=clear)
        else:
            in_force = runs.load_run(connection, run_id).limits
    listed = ", ".join(_said(name, in_force[name]) for name in _SAID if name in in_force)
    say(f"run {run_id}: {listed or 'no limits but those that its processes were started with'}")


def _require_price(changes: Mapping[str, float]) -> None:
    from amprenta_vectors.errors import ConfigError

    if "token_price" not in changes:
        raise ConfigError(
            f"the cost is to be at most {changes['max_cost']:,.10g}, and the run has no price of tokens",
            hint="--token-price P beside it, with the price of a million tokens",
        )


def _said(name: str, value: float) -> str:
    if name == "token_price":
        return f"a price of {value:,.10g} for a million tokens"
    if name == "max_cost":
        return f"a cost of at most {value:,.10g} in all" if value else "any cost"
    return f"at most {value:,.10g} {_SAID[name]}" if value else f"any number of {_SAID[name]}"


def _open(run_id: int | None, order: Order | None = None) -> tuple[Engine, int]:
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves import orders

    engine = open_database(Settings.load(), 1)
    with engine.connect() as connection:
        return engine, orders.choose_run(connection, run_id, order).id
