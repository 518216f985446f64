"""``amprenta-vectors compare``: what shadow mode found, and why a hit of the source is missing in PostgreSQL."""

from __future__ import annotations

import json
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from amprenta_vectors.cli.options import json_option, open_database, to_moment
from amprenta_vectors.cli.printer import say
from amprenta_vectors.cli.queries import for_measuring, query_options, read_queries
from amprenta_vectors.compare.why import Why
from amprenta_vectors.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from amprenta_vectors.compare.missing import Comparison

MEANINGS = {
    Why.LOST: "no row of the table has the key",
    Why.OTHER_SCOPE: "a row of another namespace or scope has the key; this one has none",
    Why.NO_VECTOR: "the row has no vector, or under cosine a zero one",
    Why.OTHER_VECTOR: "the row has another vector, which is farther away",
    Why.FILTERED: "the row does not match the filter",
    Why.RECALL: "near enough, but the index did not find it; an exact search does",
    Why.FARTHER: "nearer rows were found here, which the source did not give",
    Why.TIE: "as near as the last hit that was given",
}
MENDS = {
    Why.LOST: "amprenta-vectors backfill --keys-from source, then compare again",
    Why.NO_VECTOR: "amprenta-vectors backfill, then compare again",
    Why.OTHER_VECTOR: "amprenta-vectors verify names every row that differs",
    Why.RECALL: "amprenta-vectors tune --recall 0.99 --apply",
}


class _RunByDefault(click.Group):
    """A group in which ``compare --queries N`` is short for ``compare run --queries N``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, with the command ``run`` put in front if they begin with an option of it."""
        if args and args[0].startswith("-") and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_RunByDefault)
def compare() -> None:
    """Show why a hit is missing, and what shadow queries found; `compare --queries N` is `compare run --queries N`."""


@compare.command()
@query_options
@json_option()
@click.pass_context
def run(
    ctx: click.Context,
    queries: int | None,
    origin: str,
    top_k: int,
    namespace: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Ask the source and PostgreSQL the same, and say of every hit that only the source has why it is missing.

    Exit 0 if the table has the vector of every one of them, 1 if some are lost, in another scope, without a vector or
    with another one. Similarity thresholds are not applied.
    """
    from amprenta_vectors.compare.missing import Comparer
    from amprenta_vectors.compare.whereabouts import Whereabouts
    from amprenta_vectors.config import Settings
    from amprenta_vectors.moves.ends import open_table, scope_of
    from amprenta_vectors.schema.held import check_namespace
    from amprenta_vectors.schema.slice import open_slice
    from amprenta_vectors.stores.factory import open_pgvector_store, open_source_store, text_field_of

    settings = for_measuring(Settings.load(namespace=namespace))
    engine = open_database(settings, 2)
    with engine.connect() as connection:
        table = open_table(settings, connection)
        check_namespace(connection, table, settings.namespace)
    slice_ = open_slice(engine, table, scope_of(table, settings.namespace))
    asked = read_queries(settings, engine, table, origin, queries, seed)
    with ExitStack() as stack:
        pgvector = stack.enter_context(closing(open_pgvector_store(settings)))
        source = stack.enter_context(closing(open_source_store(settings)))
        whereabouts = Whereabouts(engine, slice_, text_field_of(settings))
        found = Comparer(source, pgvector, whereabouts, table).compare(asked, top_k)
    if as_json:
        say(json.dumps(_to_json(found)))
    else:
        _print_comparison(found, source.name)
    ctx.exit(ExitCode.FAILED if found.amiss else ExitCode.CLEAN)


def _to_json(found: Comparison) -> dict[str, Any]:
    return {
        "queries": found.queries,
        "top_k": found.top_k,
        "hits": found.hits,
        "found": found.found,
        "amiss": found.amiss,
        "missing": {why.value: {"hits": found.missing[why], "keys": found.keys[why]} for why in Why},
    }


def _print_comparison(found: Comparison, source: str) -> None:
    from amprenta_vectors.cli.table_text import print_table
    from amprenta_vectors.compare.missing import AMISS, LISTED

    share = f" ({found.found / found.hits:.2%})" if found.hits else ""
    say(
        f"{found.queries:,} queries, top_k {found.top_k}: {source} gave {found.hits:,} hits, PostgreSQL "
        f"{found.found:,} of them{share}"
    )
    missing = [why for why in Why if found.missing[why]]
    if not missing:
        say("no hit is missing")
        return
    rows = [(why.value, f"{found.missing[why]:,}", MEANINGS[why]) for why in missing]
    print_table(("missing because", "hits", "what that means"), rows, right=("hits",))
    for why in missing:
        keys = found.keys[why]
        say(f"{why.value}: {', '.join(map(repr, keys))}" + (", …" if len(keys) == LISTED else ""))
    for why in missing:
        if why in MENDS:
            say(f"{why.value}: {MENDS[why]}")
    if not found.amiss:
        say(f"nothing is lost: no hit is {', '.join(sorted(why.value for why in AMISS))}")


@compare.command()
@click.option(
    "--since", metavar="WHEN", help="Queries from then on: 2026-05-31T12:00+00:00, or how long ago: 30m, 24h, 7d."
)
@json_option()
@click.option("--output", type=click.Path(path_type=Path), help="Write shadow.json and shadow.html there too.")
def report(since: str | None, as_json: bool, output: Path | None) -> None:
    """Sum up what VECTOR_MODE=shadow recorded: agreement, errors, latencies and the worst queries."""
    from amprenta_vectors.compare.shadow_report import collect_shadow_report
    from amprenta_vectors.config import Settings

    engine = open_database(Settings.load(), 1)
    with engine.connect() as connection:
        collected = collect_shadow_report(connection, None if since is None else to_moment("--since", since))
    if as_json:
        say(json.dumps(collected))
    else:
        _print_report(collected)
    if output is not None:
        for path in _write(collected, output):
            say(path, err=as_json)


def _write(collected: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    from amprenta_vectors.compare.shadow_page import render_shadow_page

    paths = folder / "shadow.json", folder / "shadow.html"
    texts = json.dumps(collected, indent=1, ensure_ascii=False), render_shadow_page(collected)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"the report cannot be written into {folder}: {error.strerror}",
            hint="name a folder that may be written: --output FOLDER",
        ) from None
    return paths


def _print_report(collected: dict[str, Any]) -> None:
    from amprenta_vectors.cli.table_text import print_table
    from amprenta_vectors.compare.shadow_page import verdict

    for pair in collected["pairs"]:
        say(f"{pair['primary']}, shadowed by {pair['secondary']}, {pair['first_at']} to {pair['last_at']}")
        say(verdict(pair))
        _print_agreement(pair)
        _print_latencies(pair)
        if pair["errors"]:
            print_table(("error", "queries"), [(name, f"{number:,}") for name, number in pair["errors"].items()])
        if pair["worst"]:
            say("where they agree least:")
            head = [name.replace("_", " ") for name in pair["worst"][0]]
            print_table(head, [list(map(_cell, {**row, "at": row["at"][:19]}.values())) for row in pair["worst"]])


def _print_agreement(pair: dict[str, Any]) -> None:
    from amprenta_vectors.cli.table_text import print_table

    figures = ("mean", "p1", "p5", "p50", "p95", "most")
    rows = [
        (name.replace("_", " "), *(_cell(pair[name].get(figure, "")) for figure in figures))
        for name in ("overlap", "rank_agreement", "score_drift")
    ]
    print_table(("measure", *figures), rows, right=figures)


def _print_latencies(pair: dict[str, Any]) -> None:
    from amprenta_vectors.cli.table_text import print_table

    figures = ("p50", "p95", "p99")
    rows = [
        (pair[role], *(_cell(pair[f"{role}_ms"][figure]) for figure in figures)) for role in ("primary", "secondary")
    ]
    print_table(("ms", *figures), rows, right=figures)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
