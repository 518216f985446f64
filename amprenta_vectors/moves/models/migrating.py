"""Filling a model's column from the texts of a table's rows, a subset first if it is asked for."""

from __future__ import annotations

import threading
import time
from functools import partial

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backfill.engine.observer import Observer, ignore
from amprenta_vectors.backfill.progress import runs
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError, ExitCode, worst
from amprenta_vectors.moves.ends import Ends, open_ends, slice_of
from amprenta_vectors.moves.models.tables import ModelTable
from amprenta_vectors.moves.move import Move, complete, prepare
from amprenta_vectors.pg.errors import for_a_log, is_transient
from amprenta_vectors.schema.models import MODEL_COLUMNS, ModelColumn

SEEN_SECONDS = 2.0
"""Seconds after which every process that writes has seen that a model is written."""


def migrate_model(
    settings: Settings,
    table: ModelTable,
    model: ModelColumn,
    observer: Observer = ignore,
    stop: threading.Event | None = None,
    *,
    subset: int | None = None,
    where: str | None = None,
) -> ExitCode:
    """Embed the texts of all rows that have no vector of a model yet, then those whose text changed meanwhile.

    ``subset`` is how many rows are embedded at most, in each namespace; ``where`` is a condition in SQL on the rows.
    After a part of the rows the index stays deferred. The same call resumes what was interrupted. Raises `ConfigError`
    for a condition that PostgreSQL does not take.
    """
    stop = stop or threading.Event()
    with table.engine.begin() as connection:
        if model.column != table.base.embedding:
            table.check_rows(connection)
        if not model.written:
            table.set_facts(connection, model, written=True, written_at=sa.func.clock_timestamp())
    ours = table.settings_for(settings, model)
    _wait_until_written(table, model, stop)
    ends = open_ends(ours, observer)
    try:
        names = _namespaces(ends, ours)
        open_move = partial(Move, ours, ends=ends, stop=stop)
        begun = [open_move(namespace=name, keep_deferred=True) for name in names if _is_of_a_part(ends, name)]
        code = complete(begun, observer, verify=False)
        if where is not None:
            keys = {name: found for name in names if (found := _keys(ends, name, where, subset))}
            moves = [open_move(namespace=name, keep_deferred=True, given_keys=keys[name]) for name in keys]
        else:
            part = subset is not None
            moves = [open_move(namespace=name, keep_deferred=part, limit=subset) for name in names]
        prepare(ours, ends, moves, observer)
        whole = subset is None and where is None
        code = worst([code, complete(moves, observer, verify=whole)])
        if not whole or stop.is_set() or code not in (ExitCode.CLEAN, ExitCode.QUARANTINED):
            return code
        if ends.table.text_hash is None:
            # Which text a vector was made from is not known.
            return code
        changed = [open_move(namespace=name, keys_from="reconcile") for name in names]
        return worst([code, complete(changed, observer, verify=False)])
    finally:
        ends.origin.close()
        ends.engine.dispose()


def _namespaces(ends: Ends, settings: Settings) -> list[str]:
    free = ends.table.namespace_columns
    if not free or settings.namespace:
        return [settings.namespace]
    return sorted(ends.origin.namespaces())


def _is_of_a_part(ends: Ends, namespace: str) -> bool:
    """Return whether a run over a part of the rows was begun and is to be ended first."""
    slice_ = slice_of(ends, namespace)
    with ends.engine.connect() as connection:
        run = runs.unfinished_run(connection, slice_.target, slice_.scope)
    return run is not None and (run.row_limit is not None or run.keys_from == "given")


def _wait_until_written(table: ModelTable, model: ModelColumn, stop: threading.Event) -> None:
    """Wait until every process writes the model: a text that one changed just before would be embedded as it was."""
    since = sa.select(sa.func.extract("epoch", sa.func.clock_timestamp() - MODEL_COLUMNS.c.written_at))
    of_model = MODEL_COLUMNS.c.target == table.base.own_target, MODEL_COLUMNS.c.model_id == model.model.id
    with table.engine.connect() as connection:
        seconds = float(connection.execute(since.where(*of_model)).scalar_one())
    end = time.monotonic() + max(0.0, SEEN_SECONDS - seconds)
    while time.monotonic() < end and not stop.wait(0.05):
        pass


def _keys(ends: Ends, namespace: str, where: str, most: int | None) -> list[str]:
    """Return the keys of the rows without a vector for which a condition of the operator's own holds."""
    slice_ = slice_of(ends, namespace)
    condition: sa.ColumnElement[bool] = sa.literal_column(f"({where})", sa.Boolean)
    listed, own_keys, in_scope = slice_.listed()
    keys = [sa.cast(key, sa.Text) for key in own_keys]
    wanted = sa.select(*keys).select_from(listed).where(slice_.lacks_embedding(), *in_scope, condition)
    try:
        with ends.engine.connect() as connection:
            rows = connection.execute(wanted.order_by(*keys).limit(most)).all()
    except DBAPIError as error:
        if is_transient(error):
            raise
        raise ConfigError(
            f"--where {where!r} is refused: {for_a_log(error)}",
            hint="a condition on the columns of the table, such as --where \"metadata->>'lang' = 'en'\"",
        ) from error
    return [slice_.key_map.to_source(tuple(row)) for row in rows]
