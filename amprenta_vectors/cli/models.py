"""``amprenta-vectors models``: from one embedding model of a table to another, with the service up and a way back."""

from __future__ import annotations

import json
import threading
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from amprenta_vectors.cli.limit_options import limit_options
from amprenta_vectors.cli.options import (
    BATCHES_IN_HAND,
    NAMESPACE_HELP,
    json_option,
    log_options,
    stop_on_signal,
)
from amprenta_vectors.cli.printer import say
from amprenta_vectors.embedders.providers import PARAMETERS, PROVIDERS
from amprenta_vectors.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from amprenta_vectors.compare.models import ModelComparison
    from amprenta_vectors.moves.models.listing import ModelList
    from amprenta_vectors.pg.types import Storage

QUERIES = 100


@click.group()
def models() -> None:
    """Change the embedding model of a table: add, migrate, compare, switch; and switch back, or retire the old one.

    AMPRENTA_TABLE names the table. The service stays up: every write with a text is embedded for each model that is
    written, and every query uses the one model that is searched. docs/change-the-model.md tells the whole journey.
    """


@models.command("list")
@json_option()
def list_(as_json: bool) -> None:
    """Show the models of the table: the column of each, rows embedded, index, and the processes that use them."""
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.models.listing import list_models
    from amprenta_vectors.moves.models.tables import open_model_table

    found = list_models(open_model_table(Settings.load()))
    if as_json:
        say(json.dumps(asdict(found)))
        return
    _print_list(found)


@models.command()
@click.argument("name")
@click.option("--provider", type=click.Choice(PROVIDERS), help="The embedder that makes its vectors.")
@click.option("--dimension", type=click.IntRange(1, 16000), help="[default: what the provider says]")
@click.option("--column", help="Its column; one that is there is adopted.  [default: embedding_DIMENSION]")
@click.option("--storage", type=click.Choice(["vector", "halfvec"]), default="vector", show_default=True)
@click.option(
    "--parameter",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help=f"How the provider is asked, one of {', '.join(PARAMETERS)}; may be given several times.",
)
def add(
    name: str,
    provider: str | None,
    dimension: int | None,
    column: str | None,
    storage: Storage,
    parameters: tuple[str, ...],
) -> None:
    """Register model NAME for the table, with a column beside those that are there and an index that is deferred.

    From then on every write with a text is embedded for it too. The first model of a table is the one that its vectors
    are of: --column embedding registers it, if neither EMBEDDING_MODEL nor the last run names it. For a model that is
    registered, --provider and --parameter say anew how it is asked.
    """
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.models.adding import NewModel, add_model
    from amprenta_vectors.moves.models.tables import open_model_table

    settings = Settings.load()
    table = open_model_table(settings)
    new = NewModel(name, provider, _to_parameters(parameters) or None, dimension, column, storage)
    added = add_model(settings, table, new)
    say(f"{name}: {table.base.qualified_name}.{added.column}, {added.model.dimension} dimensions")
    if added.searched:
        say("it is the model that queries search")
        return
    say("every write with a text is embedded for it from now on; its index is deferred until the rows are filled")
    say(f"next: amprenta-vectors models migrate --to {name} --subset 1000")


@models.command()
@click.option("--to", "name", required=True, metavar="NAME", help="The model whose column is filled.")
@click.option("--subset", type=click.IntRange(min=1), help="So many rows of each namespace at most, to try it out.")
@click.option("--where", metavar="SQL", help="Only rows for which that condition on the table's columns holds.")
@click.option("--batch-size", type=int, help="Keys a batch, at first.  [env var: AMPRENTA_BATCH_SIZE; default: 1000]")
@click.option("--workers", type=int, help="Threads that embed and write.  [env var: AMPRENTA_WORKERS; default: 5]")
@click.option("--report", type=click.Path(path_type=Path), help="Folder for the report.  [env var: AMPRENTA_REPORT]")
@limit_options
@log_options
@click.pass_context
def migrate(
    ctx: click.Context,
    name: str,
    subset: int | None,
    where: str | None,
    batch_size: int | None,
    workers: int | None,
    report: Path | None,
    rates: dict[str, str | None],
    log_format: str | None,
) -> None:
    """Embed the texts of all rows for a model, in batches; the same command resumes what was interrupted.

    Rows whose text changes meanwhile are embedded again at the end. After a subset the index stays deferred.
    """
    from amprenta_vectors.cli.display import open_display
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.models.migrating import migrate_model
    from amprenta_vectors.moves.models.tables import open_model_table

    settings = Settings.load(batch_size=batch_size, workers=workers, report=report, log_format=log_format, **rates)
    stop = threading.Event()
    with closing(open_display(settings.log_format)) as show:
        table = open_model_table(settings, 2, show)
        model = table.named(name)
        with stop_on_signal(stop, waits_for=BATCHES_IN_HAND):
            ctx.exit(migrate_model(settings, table, model, show, stop, subset=subset, where=where))


@models.command()
@click.option("--from", "before", required=True, metavar="NAME", help="The model that is searched now, say.")
@click.option("--to", "after", required=True, metavar="NAME", help="The model that is to take its place.")
@click.option(
    "--judged",
    type=click.Path(path_type=Path),
    help='Queries, one JSON object a line: {"query": "…", "relevant": ["key", …]}, the second optional.  '
    "[default: the beginnings of stored texts]",
)
@click.option("--queries", type=click.IntRange(min=1), help=f"At most so many.  [default: all, or {QUERIES} texts]")
@click.option("--top-k", type=click.IntRange(1, 1000), default=10, show_default=True, help="Hits a query.")
@click.option("--namespace", help=NAMESPACE_HELP)
@click.option("--seed", type=int, default=0, show_default=True, help="Which stored texts are taken.")
@click.option(
    "--require",
    "required",
    multiple=True,
    metavar="MEASURE=VALUE",
    help="Exit 1 if --to has less: ndcg=0.40, mrr=…, recall=…, overlap=…; may be given several times.",
)
@json_option()
@click.pass_context
def compare(
    ctx: click.Context,
    before: str,
    after: str,
    judged: Path | None,
    queries: int | None,
    top_k: int,
    namespace: str | None,
    seed: int,
    required: tuple[str, ...],
    as_json: bool,
) -> None:
    """Ask both models the same and show what to decide by: recall, ranking, overlap, latency, size."""
    from amprenta_vectors.cli.queries import for_measuring
    from amprenta_vectors.compare.models import compare_models
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.models.comparing import judged_or_sampled
    from amprenta_vectors.moves.models.tables import open_model_table
    from amprenta_vectors.stores.factory import open_pgvector_store

    settings = for_measuring(Settings.load(namespace=namespace)).model_copy(update={"embedding_model": None})
    wanted = _to_required(required)
    table = open_model_table(settings)
    with table.engine.connect() as connection:
        pairs = [(model, table.resolved(connection, model)) for model in (table.named(before), table.named(after))]
    asked = judged_or_sampled(settings, table, pairs[1], judged, queries or (None if judged else QUERIES), seed)
    with closing(open_pgvector_store(settings)) as store:
        found = compare_models(table.engine, store, (pairs[0], pairs[1]), asked, top_k=top_k)
    if as_json:
        say(json.dumps(asdict(found)))
    else:
        _print_comparison(found)
    missed = _missed(found, wanted)
    for line in missed:
        say(line, err=True)
    ctx.exit(ExitCode.FAILED if missed else ExitCode.CLEAN)


@models.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Switch although rows, the index or a process are not ready.")
@click.option(
    "--wait", "seconds", type=click.FloatRange(min=0), default=30.0, show_default=True, help="For processes that load."
)
def switch(name: str, force: bool, seconds: float) -> None:
    """Have every query search model NAME, in every process within two seconds; the former model stays written.

    Refused, with what to do, while rows with a text are neither embedded nor quarantined, while no valid index serves,
    and while a process cannot load the model.
    """
    from amprenta_vectors.cli.move_text import MoveText
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.models.switching import switch_model
    from amprenta_vectors.moves.models.tables import open_model_table

    settings, show = Settings.load(), MoveText()
    table = open_model_table(settings, 2, show)
    done = switch_model(settings, table, table.named(name), show, force=force, loading_seconds=seconds)
    if done.before == done.after:
        return
    say(f"queries search {done.after}; {len(done.in_force)} processes in use have said so")
    for process in done.late:
        say(f"{process.name} has not yet: it looks before its next query", err=True)
    say(f"the way back: amprenta-vectors models switch {done.before}")
    say(f"once it is not needed: amprenta-vectors models retire {done.before}")


@models.command()
@click.argument("name")
@click.option(
    "--purge",
    is_flag=True,
    help="Drop its values, or delete the rows that are of this model alone, instead of keeping them.",
)
def retire(name: str, purge: bool) -> None:
    """Take model NAME out of use: it is written no more, its index is dropped, its values are kept under another name.

    `models add NAME` brings them back, those of rows that changed since as NULL.
    """
    from amprenta_vectors.cli.move_text import MoveText
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.models.switching import retire_model
    from amprenta_vectors.moves.models.tables import open_model_table

    settings, show = Settings.load(), MoveText()
    table = open_model_table(settings, 2, show)
    model = table.named(name)
    retire_model(settings, table, model, show, purge=purge)
    say(f"{name} is retired" + (", its values are dropped" if purge else ""))


@models.command()
@click.option("--yes", is_flag=True, help="The application that wrote the table before it was adopted is gone.")
def contract(yes: bool) -> None:
    """Rename the column that an adopted table had to embedding_DIMENSION, under a short lock.

    For a table with a row for each key and model; from then on no row gets a model by default.
    """
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.models.contracting import contract as contract_table
    from amprenta_vectors.moves.models.tables import open_model_table

    settings = Settings.load()
    table = open_model_table(settings)
    if not yes:
        raise ConfigError(
            f"an application that still writes {table.base.own_target} by that name would fail",
            hint="amprenta-vectors models contract --yes, once it is gone",
        )
    name = contract_table(settings, table)
    say(f"{table.base.own_target} is {name} now")


def _to_parameters(given: tuple[str, ...]) -> dict[str, str]:
    parameters = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in PARAMETERS:
            raise ConfigError(
                f"--parameter is {text!r}; expected one of {', '.join(PARAMETERS)}, and its value",
                hint="--parameter query_prefix='query: '",
            )
        parameters[name] = value
    return parameters


MEASURES = ("ndcg", "mrr", "recall", "overlap")


def _to_required(given: tuple[str, ...]) -> dict[str, float]:
    wanted = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if name not in MEASURES or not 0 <= number <= 1:
            raise ConfigError(
                f"--require is {text!r}; expected one of {', '.join(MEASURES)} and a number from 0 to 1",
                hint="--require ndcg=0.40",
            )
        wanted[name] = number
    return wanted


def _missed(found: ModelComparison, wanted: dict[str, float]) -> list[str]:
    after = found.models[1]
    missed = []
    for name, least in wanted.items():
        value = found.overlap if name == "overlap" else getattr(after, name)
        if value is None:
            missed.append(f"{after.name}: {name} is not known, {least} is required: --judged FILE has what is relevant")
        elif value < least:
            missed.append(f"{after.name}: {name} is {value:.4f}, {least} is required")
    return missed


def _print_list(found: ModelList) -> None:
    from amprenta_vectors.cli.table_text import print_table

    if not found.models:
        column = found.target.rpartition(".")[2]
        say(f"{found.target}: no model is registered; amprenta-vectors models add NAME --column {column}")
        return
    head = ("model", "dimension", "provider", "column", "queries", "writes", "rows", "left", "index")
    rows = [
        (
            state.column.model.name,
            str(state.column.model.dimension),
            state.column.model.provider or "–",
            f"{state.column.column} {state.storage}",
            "searched" if state.column.searched else "–",
            "written" if state.column.written else "–",
            f"{state.rows:,}",
            "–" if state.left is None else f"{state.left:,}",
            state.index,
        )
        for state in found.models
    ]
    print_table(head, rows, right=("dimension", "rows", "left"))
    for process in found.processes:
        failed = "; ".join(f"cannot load {name}: {why}" for name, why in process.failed.items())
        missed = f"; {process.missed:,} texts were not embedded for another model" if process.missed else ""
        say(f"{process.name} searches {process.searched}, has loaded {', '.join(process.loaded) or 'none'}{missed}")
        if failed:
            say(f"  {failed}")


def _print_comparison(found: ModelComparison) -> None:
    from amprenta_vectors.cli.table_text import print_table

    before, after = found.models
    measures = (
        ("dimension", "dimension", "{:d}"),
        ("rows with a vector", "rows", "{:,d}"),
        (f"recall@{found.top_k} of the index", "recall", "{:.4f}"),
        (f"nDCG@{found.top_k}, {found.judged} judged", "ndcg", "{:.4f}"),
        (f"MRR@{found.top_k}", "mrr", "{:.4f}"),
        ("embed a query, ms (median)", "embed_ms", "{:.2f}"),
        ("search, ms (median)", "search_p50_ms", "{:.2f}"),
        ("search, ms (p95)", "search_p95_ms", "{:.2f}"),
        ("column, bytes", "column_bytes", "{:,d}"),
        ("index, bytes", "index_bytes", "{:,d}"),
    )
    rows = [
        (name, *("–" if (value := getattr(each, field)) is None else form.format(value) for each in (before, after)))
        for name, field, form in measures
    ]
    print_table(("measure", before.name, after.name), rows, right=(before.name, after.name))
    if found.among is not None:
        say(f"nDCG, MRR and overlap are by exact search among {found.among:,} rows that both models have embedded")
    if found.overlap is not None:
        say(f"{found.queries} queries: of {found.top_k} hits, {found.overlap:.1%} are the same")
