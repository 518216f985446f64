"""The models of a table as they stand: rows embedded, index, processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backends.rows.row_texts import text_columns_of
from amprenta_vectors.backfill.progress import indexes
from amprenta_vectors.moves.models.processes import Process, processes_in_use
from amprenta_vectors.moves.models.tables import ModelTable
from amprenta_vectors.schema.ann_indexes import ann_indexes, serving
from amprenta_vectors.schema.expressions import to_clause
from amprenta_vectors.schema.models import MODEL_SCOPE, ModelColumn


@dataclass(frozen=True)
class ModelState:
    """A model of a table: the rows that have its vector, and its index: ``serves``, ``deferred`` or ``none``.

    ``left`` are the rows with a text that have none; None where the rows of the table have no text.
    """

    column: ModelColumn
    storage: str
    rows: int
    left: int | None
    index: str


@dataclass(frozen=True)
class ModelList:
    """The models of a table, and the processes that use it now."""

    target: str
    models: tuple[ModelState, ...]
    processes: tuple[Process, ...]


def list_models(table: ModelTable) -> ModelList:
    """Count what every model of a table has."""
    with table.engine.connect() as connection:
        states = tuple(state_of(connection, table, model) for model in table.models)
        processes = tuple(processes_in_use(connection, table.base.own_target))
    return ModelList(table.base.own_target, states, processes)


def state_of(connection: Connection, table: ModelTable, model: ModelColumn) -> ModelState:
    """Count what a model has in the rows of its table."""
    resolved = table.resolved(connection, model)
    has_texts = not table.by_model and (resolved.text is not None or resolved.text_columns)
    columns = text_columns_of(resolved) if has_texts else ()
    rows = to_clause(resolved, *columns)
    embedding = rows.c[resolved.embedding]
    counts: list[Any] = [sa.func.count(embedding)]
    if columns:
        text = sa.func.concat_ws("", *(sa.cast(rows.c[name], sa.Text) for name in columns))
        counts.append(sa.func.count().filter(embedding.is_(None), text.op("~")(r"\w")))
    statement = sa.select(*counts).select_from(rows)
    if table.by_model:
        statement = statement.where(rows.c[MODEL_SCOPE] == model.model.id)
    count, *left = connection.execute(statement).one()
    served = serving(resolved, ann_indexes(connection, resolved), table.scope_of_model(model))
    index = "none" if served is None else "serves"
    if index == "none" and indexes.deferred_indexes(connection, resolved.target):
        index = "deferred"
    return ModelState(model, resolved.storage, count, left[0] if left else None, index)
