"""Checks of what is in the table, and what is still to come: rows, models, runs, and writes for the other store."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import sqlalchemy as sa

from amprenta_vectors.backfill.progress import figures
from amprenta_vectors.backfill.progress.states import RunState
from amprenta_vectors.ddl.gate import unverified_runs
from amprenta_vectors.doctor.finding import Finding, Patient, Severity, TableCheck
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.schema.catalogue import check_visible
from amprenta_vectors.schema.expressions import to_clause
from amprenta_vectors.schema.held import check_namespace
from amprenta_vectors.schema.models import MODEL_SCOPE, models_of
from amprenta_vectors.stores.outbox import count_pending

LATE_SECONDS = 300.0
"""The application that made an intent older than this has failed to bring it to the other store."""

_OLD_SHADOWS = sa.text("SELECT count(*) FROM shadow_query WHERE at < now() - interval '30 days'")


def visible_rows(patient: Patient) -> Iterator[Finding]:
    """Raise `ServerUnsuitable` if row security hides rows, so that the other figures would be too low."""
    check_visible(patient.connection, patient.table)
    yield from ()


def namespace(patient: Patient) -> Iterator[Finding]:
    """Report a namespace that a table without a column for it does not hold: every query would be refused."""
    try:
        check_namespace(patient.connection, patient.table, patient.settings.namespace)
    except ConfigError as error:
        yield Finding("serious", error.message, error.hint or "")


def rows_without_embedding(patient: Patient) -> Iterator[Finding]:
    """Report rows without an embedding, which no search finds; of rows of models, those of this column's."""
    target = to_clause(patient.table)
    embedding = target.c[patient.table.embedding]
    counts = sa.select(sa.func.count().label("rows"), sa.func.count(embedding).label("filled")).select_from(target)
    mend = "amprenta-vectors backfill --resume"
    if MODEL_SCOPE in patient.table.scope:
        models = [each.model for each in models_of(patient.connection, patient.table) if each.column == embedding.name]
        if models:
            counts = counts.where(target.c[MODEL_SCOPE].in_([model.id for model in models]))
            mend = "; ".join(f"amprenta-vectors models migrate --to {shlex.quote(model.name)}" for model in models)
    row = patient.connection.execute(counts).one()
    if row.filled < row.rows:
        yield Finding(
            "serious" if patient.answers and not row.filled else "advice",
            f"{row.rows - row.filled:,} of {row.rows:,} rows of {patient.table.qualified_name} have no embedding: no "
            "search finds them",
            f"{mend}; those that were quarantined are listed by: amprenta-vectors errors",
        )


def other_models(patient: Patient) -> Iterator[Finding]:
    """Report vectors of another model than the settings name: their distances to a query mean nothing."""
    table, model = patient.table, patient.settings.embedding_model
    if table.model is None or model is None:
        return
    target = to_clause(table)
    others = (
        sa.select(target.c[table.model], sa.func.count())
        .where(target.c[table.embedding].is_not(None), target.c[table.model] != model)
        .group_by(target.c[table.model])
        .order_by(target.c[table.model])
    )
    for name, rows in patient.connection.execute(others):
        yield Finding(
            "serious",
            f"EMBEDDING_MODEL is {model!r}, and {rows:,} vectors of {table.target} are of {name!r}",
            f"export EMBEDDING_MODEL={name}, or embed those rows again",
        )


def threshold(patient: Patient) -> Iterator[Finding]:
    """Report a similarity threshold that no row can reach."""
    least = patient.settings.pgvector_similarity_threshold
    if patient.answers and patient.table.distance == "cosine" and least is not None and least > 1:
        yield Finding(
            "serious",
            f"PGVECTOR_SIMILARITY_THRESHOLD is {least}, and a cosine similarity is 1 at most: no search has a hit",
            "unset PGVECTOR_SIMILARITY_THRESHOLD, or set it below 1",
        )


def unfinished_runs(patient: Patient) -> Iterator[Finding]:
    """Report backfills that were queued or started and have not ended."""
    workers = {run.id: figures.count(patient.connection, run.id).owners for run in patient.unfinished_runs()}
    for run in patient.unfinished_runs():
        if workers[run.id]:
            yield Finding("note", f"run {run.id} is being worked on by {workers[run.id]} process(es)")
            continue
        queued = run.state == RunState.PLANNED
        if queued and any(workers.values()):
            yield Finding("note", f"run {run.id} is queued behind another into the same column")
            continue
        state = "queued" if queued else run.state
        yield Finding(
            "serious" if patient.answers and not queued else "advice",
            f"run {run.id} into {run.target} is {state} and nobody works on it"
            + (f"; stopped by: {run.last_error}" if run.last_error else ""),
            f"amprenta-vectors backfill --resume, or amprenta-vectors cancel {run.id}",
        )


def unverified(patient: Patient) -> Iterator[Finding]:
    """Report what runs wrote and no whole comparison has verified since: the gate refuses it."""
    for run_id in unverified_runs(patient.connection, patient.table.target):
        yield Finding(
            "advice",
            f"what run {run_id} left in {patient.table.target} is not verified: nobody has compared it since",
            "amprenta-vectors backfill --resume, or amprenta-vectors verify",
        )


def pending_writes(patient: Patient) -> Iterator[Finding]:
    """Report intents of dual writes that the other store has not got."""
    pending = count_pending(patient.connection, patient.table.target)
    if not pending.pending:
        return
    age = pending.oldest_seconds or 0.0
    late = bool(pending.failing) or age > LATE_SECONDS
    severity: Severity = "serious" if late else "note"
    yield Finding(
        severity,
        f"{pending.pending:,} write(s) to {patient.table.target} are not in the other store, {pending.failing:,} after "
        f"a failure, the oldest for {age:,.0f} s",
        "amprenta-vectors outbox drain" if late else "",
    )


def old_shadow_queries(patient: Patient) -> Iterator[Finding]:
    """Report what shadow mode recorded long ago: each row holds a vector, and nothing takes it away."""
    rows = patient.connection.scalar(_OLD_SHADOWS)
    if rows:
        yield Finding(
            "advice",
            f"{rows:,} row(s) of shadow_query are older than 30 days",
            "amprenta-vectors prune --older-than 30d",
        )


CHECKS: tuple[TableCheck, ...] = (
    visible_rows,
    namespace,
    rows_without_embedding,
    other_models,
    threshold,
    unfinished_runs,
    unverified,
    pending_writes,
    old_shadow_queries,
)
