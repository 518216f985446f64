"""``backfill --dry-run``: what a run would do, cost and need, without changing anything."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime

from amprenta_vectors.backends.opening import kind_of
from amprenta_vectors.backfill.database.text_estimate import TextEstimate
from amprenta_vectors.backfill.progress.charges import to_money
from amprenta_vectors.backfill.report.timeline import to_duration
from amprenta_vectors.cli.index_text import to_size
from amprenta_vectors.cli.printer import say
from amprenta_vectors.cli.source_text import backup_command, to_place
from amprenta_vectors.cli.table_text import print_pairs
from amprenta_vectors.config import Settings
from amprenta_vectors.db import engine_url
from amprenta_vectors.moves.plan import Plan
from amprenta_vectors.schema.registry import get_table
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.shown import show_url


def describe_offline(settings: Settings, keys_from: str) -> None:
    """Print what the settings come to; no connection is made. Raises `ConfigError` for what is missing."""
    url = engine_url(settings)
    table = get_table(settings.table, settings.config)
    place = to_place(settings, table)
    say(f"would fill {table.target} in {show_url(url.render_as_string(hide_password=False))}")
    say(f"from {place}, keys from the {keys_from}")
    say(f"with {settings.workers} workers, {settings.batch_size} keys a batch")
    say("Nothing was connected to and nothing was changed.")


def describe_plan(settings: Settings, plan: Plan) -> None:
    """Print what was found at both ends and estimated, and the backup commands filled in."""
    source, table, figures = plan.source, plan.table, plan.figures
    fast, slow = figures.seconds
    index = f", then {_to_range(*figures.index_seconds)} for the index" if any(figures.index_seconds) else ""
    time = f"{_to_range(fast, slow)}{index}"
    records = "vectors"
    if source.computed:
        time = f"as long as the embedder takes (--limit 1000 tells){index}"
        if plan.texts is not None:
            time = f"{_to_range(*plan.texts.seconds)} by one process (--limit 1000 tells){index}"
        records = "texts"
    lines = {
        "source": f"{source.kind} {source.identity}: {source.count or 0:,} {records}, {source.dimension} dimensions",
        "target": f"{table.target} {table.storage}({table.dimension}): {figures.empty_rows:,} rows without "
        f"an embedding in this scope, {figures.filled_rows:,} with one in all",
        "server": f"PostgreSQL {plan.server // 10000}.{plan.server % 10000}, pgvector {plan.pgvector}",
        "model": plan.model or "not declared (EMBEDDING_MODEL): embedding_model stays NULL",
        "to do": f"{figures.rows:,} vectors, keys from the {plan.keys_from}",
        "time": time,
        "disk": f"about {to_size(figures.disk_bytes)} for the vectors, as much again for an HNSW index",
        "memory": f"{to_size(figures.index_build_bytes)} of maintenance_work_mem for the fastest index build",
    }
    if plan.keys_from == "source" and not source.computed:
        lines["text"] = _text_of(settings, table)
    if plan.unused.columns:
        lines["not used"] = plan.unused.describe()
    if plan.metered:
        lines["read units"] = f"about {figures.read_units:,}, and {figures.comparison_read_units:,} for the comparison"
    if plan.texts is not None:
        lines |= _of_texts(plan.texts)
    print_pairs(lines)
    if plan.texts is not None and _passes(plan.texts):
        say("  the limit on the cost stops the run before its end; --resume with a higher one resumes it")
    if figures.absent_here:
        say(
            f"  at least {figures.absent_here:,} records of the source have no row here: they stay where they are, and "
            "the comparison counts them as missing (exit 1); --keys-from source inserts them"
        )
    if figures.absent_there:
        say(f"  at least {figures.absent_there:,} rows have no record at the source, and are quarantined")
    for role in plan.unused.candidates:
        say(f"  if one of those not used holds {role}, {plan.unused.to_add(table, role)}")
    if figures.other_models:
        say(
            f"warning: the column also holds vectors of model {', '.join(figures.other_models)}; "
            "a run of another model would mix them",
            err=True,
        )
    _print_backup(settings, table)
    say("Nothing was changed.")


def _of_texts(texts: TextEstimate) -> dict[str, str]:
    within = f"within {texts.error:.0%}"
    allowed = "" if texts.max_cost is None else f"; at most {to_money(texts.max_cost)} is allowed"
    if texts.cost is None:
        cost = "not known: export AMPRENTA_TOKEN_PRICE=… with the price of a million tokens"
    else:
        cost = f"about {to_money(texts.cost)} at {texts.price:,.10g} for a million tokens, {within}{allowed}"
    return {
        "tokens": f"about {texts.tokens:,}, {within}, in {texts.different:,} different texts of {texts.texts:,}, by "
        f"{texts.requests:,} requests or more",
        "cost": cost,
    }


def _passes(texts: TextEstimate) -> bool:
    return texts.cost is not None and texts.max_cost is not None and texts.cost > texts.max_cost


def _to_range(fast: float, slow: float) -> str:
    least, most = to_duration(fast), to_duration(slow)
    if slow < 1:
        return "less than 1 s"
    return most if least == most else f"{least} to {most}"


def _text_of(settings: Settings, table: VectorTable) -> str:
    """Return which part of a record is taken as its text, and where it goes."""
    field = repr(table.metadata_text_field or settings.text_field)
    taken = {"pinecone": f"metadata field {field}", "chroma": "the document"}.get(kind_of(settings, table), "its text")
    if table.text is not None:
        return f"{taken} becomes {table.text}"
    if table.metadata is not None:
        return f"{taken} stays in {table.metadata}: the table has no column for text"
    return f"{taken} stays at the source: the table has no column for text or metadata"


def _print_backup(settings: Settings, table: VectorTable) -> None:
    url = engine_url(settings)
    day = datetime.now(UTC).strftime("%Y%m%d")
    shown = show_url(url.render_as_string(hide_password=False))
    dump = ["pg_dump", "--format=custom", f"--file={url.database}_{day}.dump", f"--dbname={shown}"]
    say("  back up first:")
    say(f"    {shlex.join(dump)}")
    copied = backup_command(settings, kind_of(settings, table), day)
    if copied is not None:
        say(f"    {shlex.join(copied)}")
