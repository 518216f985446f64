"""Checks of the models that are registered for the table: their columns, rows and indexes, and who cannot load them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace

import sqlalchemy as sa

from amprenta_vectors.doctor.finding import Finding, Patient, TableCheck
from amprenta_vectors.doctor.indexes import missing_index
from amprenta_vectors.moves.models.listing import state_of
from amprenta_vectors.moves.models.tables import ModelTable
from amprenta_vectors.pg.names import compose, literal, qualified
from amprenta_vectors.schema.catalogue import columns_of, located
from amprenta_vectors.schema.expressions import to_clause
from amprenta_vectors.schema.models import ModelColumn, models_of, searched_of
from amprenta_vectors.schema.registry import get_table

LONG_DAYS = 30
"""Days after which a model that is written and not searched is taken to be forgotten."""

_AGES = sa.text("""
    SELECT model_id, extract(day FROM now() - written_at)::integer AS written,
           extract(day FROM now() - switched_at)::integer AS switched
    FROM model_column WHERE target = :target
""")
_FAILED = sa.text("""
    SELECT host, pid, failed FROM model_process
    WHERE target = :target AND failed <> '{}' AND seen_at > clock_timestamp() - interval '1 hour' ORDER BY host, pid
""")


def column_is_gone(patient: Patient) -> Iterator[Finding]:
    """Report models whose column is not there: every write that has a text for them fails."""
    table = _table_of(patient)
    for each in _gone(patient, table):
        model = each.model
        provider = "" if model.provider is None else f" --provider {model.provider}"
        yield Finding(
            "serious",
            f"model {model.name} is registered for column {each.column} of {table.base.qualified_name}, which is gone",
            f"amprenta-vectors models add {shlex.quote(model.name)} --column {each.column} --dimension "
            f"{model.dimension}{provider}",
        )


def models_in_one_column(patient: Patient) -> Iterator[Finding]:
    """Report columns with vectors of several models: their distances to a query mean nothing."""
    table = _table_of(patient)
    if table.by_model:
        return
    for each in table.models:
        alike = [other for other in table.models if other.column == each.column and other.model.id > each.model.id]
        for other in alike:
            needless = each if other.searched else other
            yield Finding(
                "serious",
                f"models {each.model.name} and {other.model.name} are both registered for column {each.column} of "
                f"{table.base.qualified_name}",
                f"amprenta-vectors models retire {shlex.quote(needless.model.name)}",
            )
        if each.column == table.base.embedding:
            yield from _of_others(patient, each)


def _of_others(patient: Patient, own: ModelColumn) -> Iterator[Finding]:
    """Yield what the rows themselves say of their model, where that is another than is registered."""
    table, name = patient.table, own.model.name
    if table.model is None:
        return
    rows = to_clause(table)
    others = (
        sa.select(rows.c[table.model].label("model"), sa.func.count().label("rows"))
        .where(rows.c[table.embedding].is_not(None), rows.c[table.model] != name)
        .group_by(rows.c[table.model])
        .order_by(rows.c[table.model])
    )
    for row in patient.connection.execute(others):
        empty = compose(
            "UPDATE {table} SET {column} = NULL WHERE {model} = {other}",
            table=patient.typed,
            column=qualified(table.embedding),
            model=qualified(table.model),
            other=literal(row.model),
        )
        yield Finding(
            "serious",
            f"model {name} is registered for {table.target}, and {row.rows:,} vectors there are of {row.model!r}",
            f"{empty}; amprenta-vectors models migrate --to {shlex.quote(name)}",
        )


def rows_of_models(patient: Patient) -> Iterator[Finding]:
    """Report rows with a text that a model has no vector of, but for the table's own column."""
    table = _table_of(patient)
    for each in _beside(patient, table):
        left = state_of(patient.connection, table, each).left
        if left:
            name = each.model.name
            mend = f"amprenta-vectors models migrate --to {shlex.quote(name)}"
            yield Finding(
                "serious" if each.searched and patient.answers else "advice",
                f"{left:,} rows of {table.base.qualified_name} with a text have no vector of {name} in {each.column}",
                f"{mend}; those that were quarantined are listed by: amprenta-vectors errors"
                if each.model.provider is not None
                else f"the application writes them: store.upsert(records, model={name!r})",
            )


def indexes_of_models(patient: Patient) -> Iterator[Finding]:
    """Report models whose rows are filled and whose column has no index that searches can use."""
    table = _table_of(patient)
    for each in _beside(patient, table):
        if state_of(patient.connection, table, each).left:
            # The run that fills them builds it.
            continue
        for finding in missing_index(replace(patient, table=table.resolved(patient.connection, each))):
            yield finding if each.searched or finding.severity == "note" else replace(finding, severity="advice")


def models_not_searched(patient: Patient) -> Iterator[Finding]:
    """Report models that every write is embedded for, and that no query has searched for long."""
    table = _table_of(patient)
    ages = {row.model_id: row for row in patient.connection.execute(_AGES, {"target": table.base.own_target})}
    searched = searched_of(table.models)
    if searched is None:
        return
    since = ages[searched.model.id].switched
    for each in table.models:
        days = ages[each.model.id].written if since is None else min(ages[each.model.id].written, since)
        if each.written and not each.searched and days >= LONG_DAYS:
            name = shlex.quote(each.model.name)
            yield Finding(
                "note",
                f"every write to {table.base.qualified_name} is embedded for {each.model.name} too, which no query has "
                f"searched for {days} days",
                f"amprenta-vectors models retire {name}; or amprenta-vectors models switch {name}",
            )


def models_not_loaded(patient: Patient) -> Iterator[Finding]:
    """Report processes that could not load a model within the last hour."""
    table = _table_of(patient)
    searched = searched_of(table.models)
    known = {each.model.name for each in table.models}
    for row in patient.connection.execute(_FAILED, {"target": table.base.own_target}):
        for name, why in row.failed.items():
            if name not in known:
                continue
            in_use = searched is not None and name == searched.model.name
            yield Finding(
                "serious" if in_use and patient.answers else "advice",
                f"pid {row.pid} on {row.host} cannot load model {name}: {why}",
                "give that process what the model needs, and start it again"
                + ("" if in_use else f"; or amprenta-vectors models retire {shlex.quote(name)}"),
            )


def _table_of(patient: Patient) -> ModelTable:
    """Return the table with its models; none where the patient is the column of one."""
    described = get_table(patient.settings.table, patient.settings.config)
    base = located(patient.connection, described)
    models = models_of(patient.connection, base) if described.own_column is None else ()
    return ModelTable(patient.connection.engine, base, models)


def _gone(patient: Patient, table: ModelTable) -> list[ModelColumn]:
    there = columns_of(patient.connection, table.base)
    return [each for each in table.models if each.column not in there]


def _beside(patient: Patient, table: ModelTable) -> list[ModelColumn]:
    """Return the models in columns of their own beside the table's, which other checks look at."""
    if table.by_model:
        return []
    gone = _gone(patient, table)
    return [each for each in table.models if each.column != table.base.embedding and each not in gone]


CHECKS: tuple[TableCheck, ...] = (
    column_is_gone,
    models_in_one_column,
    rows_of_models,
    indexes_of_models,
    models_not_searched,
    models_not_loaded,
)
