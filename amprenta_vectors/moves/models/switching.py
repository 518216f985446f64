"""Having queries search another model, and taking one out of use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from amprenta_vectors.backfill.database.index import defer_indexes
from amprenta_vectors.backfill.engine.observer import Observer, ignore
from amprenta_vectors.config import Settings
from amprenta_vectors.db import migration_lock
from amprenta_vectors.ddl.backfill import CancelBackfillOp
from amprenta_vectors.ddl.model_column import DropModelColumnOp
from amprenta_vectors.ddl.vector_index import DropVectorIndexOp
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.moves.events import Noticed
from amprenta_vectors.moves.models.adding import invoke_on
from amprenta_vectors.moves.models.completeness import completeness_of
from amprenta_vectors.moves.models.processes import Process, prune, wait_until, wait_until_seen
from amprenta_vectors.moves.models.tables import ModelTable
from amprenta_vectors.pg.indexes import indexes_of
from amprenta_vectors.schema.expressions import to_clause
from amprenta_vectors.schema.models import MODEL_COLUMNS, MODEL_SCOPE, MODELS, ModelColumn

IN_FORCE_SECONDS = 2.0
"""Seconds after which every process in use searches the model that was switched to."""
LOADING_SECONDS = 30.0
"""Seconds that processes are waited for which still load a model."""


class NotReady(ConfigError):
    """A model is not fit to be searched."""


@dataclass(frozen=True)
class Switched:
    """The outcome of a switch: the model that was searched before, the processes that search the new one, the rest."""

    before: str
    after: str
    in_force: Sequence[Process]
    late: Sequence[Process]


def switch_model(
    settings: Settings,
    table: ModelTable,
    model: ModelColumn,
    observer: Observer = ignore,
    *,
    force: bool = False,
    loading_seconds: float = LOADING_SECONDS,
) -> Switched:
    """Have every query search another model from now on; the former one stays written, and can be switched back to.

    Unless ``force``, raises `NotReady` while rows with a text are neither embedded nor quarantined, while its index
    does not serve, for processes that cannot load it, and with a secondary store that has vectors of the former model.
    """
    before, target = table.searched(), table.base.own_target
    if before.model.name == model.model.name:
        observer(Noticed(f"{model.model.name} is what queries search already"))
        return Switched(before.model.name, model.model.name, (), ())
    wrong = list(_faults(settings, table, model))
    name = model.model.name
    if not wrong or force:
        wrong += _not_loaded(table, model, loading_seconds)
    if wrong and not force:
        raise NotReady(
            f"queries are not switched to {name}: {'; '.join(fault for fault, _ in wrong)}",
            hint=f"{'; '.join(dict.fromkeys(mend for _, mend in wrong))}; or --force",
        )
    for fault, _ in wrong:
        observer(Noticed(f"forced: {fault}"))
    with table.engine.begin() as connection:
        # One switch at a time; the index on the model that is searched allows no second one for a moment.
        locked = sa.select(MODEL_COLUMNS.c.model_id).where(MODEL_COLUMNS.c.target == target)
        connection.execute(locked.order_by(MODEL_COLUMNS.c.model_id).with_for_update()).all()
        connection.execute(sa.update(MODEL_COLUMNS).where(MODEL_COLUMNS.c.target == target).values(searched=False))
        table.set_facts(connection, model, searched=True, written=True, switched_at=sa.func.clock_timestamp())
        prune(connection)
    ready, late = wait_until(table.engine, target, lambda process: process.searched == name, IN_FORCE_SECONDS)
    return Switched(before.model.name, name, ready, late)


def _faults(settings: Settings, table: ModelTable, model: ModelColumn) -> Iterator[tuple[str, str]]:
    """Yield what makes a model unfit to be searched, each with what mends it."""
    name = model.model.name
    found = completeness_of(settings, table, model)
    if found.left:
        some = ", ".join(map(repr, found.examples))
        yield (
            f"{found.left:,} rows with a text are neither embedded as it is now nor quarantined, such as {some}",
            f"amprenta-vectors models migrate --to {name}",
        )
    if not found.indexed:
        column = table.column_table(model).name
        deferred = f"index {', '.join(found.waiting)} is deferred" if found.waiting else "no valid index serves"
        yield (
            f"{deferred} on column {model.column}, so that every query would read every row",
            f"AMPRENTA_TABLE={column} amprenta-vectors index build",
        )
    if settings.vector_mode != "single":
        yield (
            f"VECTOR_SECONDARY {settings.vector_secondary} has vectors of the former model: the way back to it closes",
            "VECTOR_MODE=single once it is not needed",
        )


def _not_loaded(table: ModelTable, model: ModelColumn, seconds: float) -> list[tuple[str, str]]:
    """Wait for the processes that load a model; return those that cannot, or have not after so many seconds."""
    name = model.model.name
    if model.model.provider is None:
        return []
    ready, left = wait_until(
        table.engine, table.base.own_target, lambda process: name in process.loaded or name in process.failed, seconds
    )
    failed = [process for process in ready if name in process.failed]
    mend = f"what {name} needs, there: its package, its key, its address"
    return [(f"{process.name} cannot load it: {process.failed[name]}", mend) for process in failed] + [
        (f"{process.name} has not loaded it after {seconds:.0f} s", "wait, and switch again") for process in left
    ]


def retire_model(
    settings: Settings, table: ModelTable, model: ModelColumn, observer: Observer = ignore, *, purge: bool = False
) -> None:
    """Take a model out of use: nothing writes it any more, its index is dropped, its values are kept aside.

    With ``purge`` they are dropped, or the rows deleted that are of this model alone, and the model is forgotten where
    no other table has it. The table's own column keeps its name and values, without an index. Raises `ConfigError` for
    the model that is searched.
    """
    name, base = model.model.name, table.base
    if model.searched:
        others = ", ".join(each.model.name for each in table.models if each is not model) or "none"
        raise ConfigError(
            f"{name} is the model that queries search", hint=f"amprenta-vectors models switch, to one of: {others}"
        )
    with table.engine.begin() as connection:
        table.set_facts(connection, model, written=False)
    wait_until_seen(table.engine, base.own_target, IN_FORCE_SECONDS)
    if purge and table.by_model:
        _delete_rows(table, model)
    shared = any(each.column == model.column and each.model.id != model.model.id for each in table.models)
    with migration_lock(table.engine, settings.migration_lock_timeout), table.engine.connect() as connection:
        if not shared:
            invoke_on(connection, CancelBackfillOp(base.table, model.column, None, base.schema))
        drop = DropModelColumnOp(base.table, model.column, name, base.embedding, schema=base.schema)
        invoke_on(connection, drop, purge=purge)
        for index in _own_indexes(table, model) if shared else ():
            invoke_on(connection, DropVectorIndexOp(index, base.schema))
    if model.column == base.embedding and not shared:
        with table.engine.connect() as connection:
            resolved = table.resolved(connection, model)
        dropped = defer_indexes(table.engine, resolved, force=True)
        listed = f"; index {', '.join(dropped)} is dropped" if dropped else ""
        observer(Noticed(f"{base.own_target} is the table's own column: its values stay in it{listed}"))
    if purge:
        _forget(table, model)


def _delete_rows(table: ModelTable, model: ModelColumn) -> None:
    rows = to_clause(table.base)
    with table.engine.begin() as connection:
        connection.execute(sa.delete(rows).where(rows.c[MODEL_SCOPE] == model.model.id))


def _own_indexes(table: ModelTable, model: ModelColumn) -> list[str]:
    """Return the indexes of one model on a column that models share, which stays."""
    with table.engine.connect() as connection:
        found = indexes_of(connection, table.base.table, table.base.schema)
    predicate = f"{MODEL_SCOPE} = {model.model.id}"
    return [index.name for index in found if model.column in index.columns and index.predicate == predicate]


def _forget(table: ModelTable, model: ModelColumn) -> None:
    used = sa.select(MODEL_COLUMNS.c.model_id).where(MODEL_COLUMNS.c.model_id == model.model.id)
    with table.engine.begin() as connection:
        connection.execute(sa.delete(MODELS).where(MODELS.c.id == model.model.id, ~used.exists()))
