"""``amprenta-vectors tune``: the cheapest setting of the index that reaches a recall."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import click

from amprenta_vectors.cli.options import json_option, open_database
from amprenta_vectors.cli.printer import say
from amprenta_vectors.cli.queries import for_measuring, query_options, read_queries
from amprenta_vectors.errors import ExitCode

if TYPE_CHECKING:
    from amprenta_vectors.compare.tuning import Tuning
    from amprenta_vectors.config import Settings
    from amprenta_vectors.schema.search_settings import SearchSetting
    from amprenta_vectors.stores.pgvector.store import PgVectorStore


@click.command()
@click.option(
    "--recall", type=click.FloatRange(0, 1, min_open=True), default=0.99, show_default=True, help="The share to find."
)
@query_options
@click.option("--apply", is_flag=True, help="Store it for the vector table; without, it is only printed.")
@json_option()
@click.pass_context
def tune(
    ctx: click.Context,
    recall: float,
    queries: int | None,
    origin: str,
    top_k: int,
    namespace: str | None,
    seed: int,
    apply: bool,
    as_json: bool,
) -> None:
    """Find the cheapest ef_search that finds enough of the nearest rows.

    For an ivfflat index, probes is the setting; for an hnsw index that holds signs (bit), oversampling.

    Recall is measured against an exact search, by distance, so that equally near rows count as found. Exit 0 if it is
    reached, else 1.
    """
    from amprenta_vectors.compare.tuning import choices
    from amprenta_vectors.compare.tuning import tune as find_cheapest
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.ends import open_table
    from amprenta_vectors.schema.search_settings import store_setting

    settings = for_measuring(Settings.load(namespace=namespace))
    engine = open_database(settings, 1)
    with engine.connect() as connection:
        table = open_table(settings, connection)
        setting, values = choices(connection, table, top_k)
    asked = read_queries(settings, engine, table, origin, queries, seed)
    found = find_cheapest(partial(_open, settings, setting), setting, values, asked, top_k=top_k, target=recall)
    applied = apply and found.chosen is not None
    if applied and found.chosen is not None:
        with engine.begin() as connection:
            store_setting(connection, table.target, setting, found.chosen.value)
    if as_json:
        say(json.dumps({**asdict(found), "applied": applied}))
    else:
        _print(found)
        if applied:
            say(f"stored for {table.target}; stores use it within a minute")
    if origin == "stored":
        say("note: stored vectors are easier to find than what users ask: --from shadow, or --from FILE", err=True)
    if applied and (given := getattr(settings, setting)) is not None:
        say(f"warning: AMPRENTA_{setting.upper()} is {given}, which comes before what is stored", err=True)
    ctx.exit(ExitCode.FAILED if found.chosen is None else ExitCode.CLEAN)


def _open(settings: Settings, setting: SearchSetting, value: int) -> PgVectorStore:
    from amprenta_vectors.stores.factory import open_pgvector_store

    return open_pgvector_store(settings.model_copy(update={setting: value}))


def _print(found: Tuning) -> None:
    from amprenta_vectors.cli.table_text import print_table

    head = (found.setting, f"recall@{found.top_k}", "p50 ms")
    say(f"{found.queries:,} queries, top_k {found.top_k}")
    rows = [(str(trial.value), f"{trial.recall:.4f}", f"{trial.p50_ms:.2f}") for trial in found.trials]
    print_table(head, rows, right=head)
    if found.chosen is not None:
        say(f"{found.setting} {found.chosen.value} is the cheapest tried that reaches {found.target:g}")
    else:
        say(f"no {found.setting} reaches {found.target:g}; a denser index may: amprenta-vectors index build --help")
