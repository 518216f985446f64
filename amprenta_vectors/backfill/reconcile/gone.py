"""Rows that the source has no record of any more: finding them by one join, and deleting those that are ours."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backfill.engine.context import RunContext
from amprenta_vectors.backfill.engine.fetching import fetch_all
from amprenta_vectors.backfill.engine.hold import Held, RunOver, WorkLeft
from amprenta_vectors.backfill.progress import proof, runs
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.progress.seen import Gone, gone_after, list_gone, seen_keys, settle_gone
from amprenta_vectors.backfill.progress.states import RunState
from amprenta_vectors.backfill.reconcile.row_state import Kept, RowStates
from amprenta_vectors.batch import Key
from amprenta_vectors.bisect import isolate
from amprenta_vectors.pg.errors import is_row_refusal
from amprenta_vectors.schema.keymaps import Uuid5
from amprenta_vectors.schema.slice import Slice
from amprenta_vectors.schema.vector_table import VectorTable

MOST_DELETED = 0.5
"""The share of a scope's rows beyond which the source is taken to be wrong, and nothing is deleted."""
PAGE = 500
"""How many rows are asked for at the source, and deleted, at a time."""
POLL_SECONDS = 0.2

Result = TypeVar("Result")

_FILTERED = sa.text("SET LOCAL statement_timeout = 0")
_BRIEF = sa.text("SELECT set_config('lock_timeout', '800ms', true), set_config('statement_timeout', '1min', true)")


def find_gone(
    connection: Connection,
    slice_: Slice,
    fill: Callable[[Connection, sa.Table], object],
) -> tuple[Gone, sa.Select[str]]:
    """Return figures and keys, as text, of the rows that are gone; ``fill`` writes the source's keys into its table.

    A key of several columns is a JSON list. Both temporary tables last until the transaction's end. A row that was
    embedded from its own text does not come from the source, and is not looked at. If the source has nothing at all,
    the figures are ``refused``: that is more often another source than an empty one.
    """
    connection.execute(_FILTERED)
    width = len(slice_.table.key)
    seen = _temporary("amprenta_seen", width)
    seen.create(connection)
    fill(connection, seen)
    connection.execute(sa.text("ANALYZE amprenta_seen"))
    stored = (slice_.embedding().is_not(None), sa.not_(slice_.embedded_here()), *slice_.in_scope())
    parts = slice_.key_texts()
    text = parts[0] if width == 1 else sa.cast(sa.func.json_build_array(*parts), sa.Text)
    gone = _temporary("amprenta_gone", 1)
    gone.create(connection)
    missing = sa.select(text).where(*stored, ~sa.exists().where(*slice_.has_key(connection, seen)))
    connection.execute(sa.insert(gone).from_select(["key_0"], missing))
    rows = connection.execute(sa.select(sa.func.count()).select_from(slice_.rows).where(*stored)).scalar_one()
    found = connection.execute(sa.select(sa.func.count()).select_from(gone)).scalar_one()
    figures = Gone(rows, found)
    if rows and connection.execute(sa.select(seen.c.key_0).limit(1)).first() is None:
        figures = replace(figures, refused=f"the source listed nothing; {slice_.target} has {rows:,} rows of it")
    return figures, sa.select(gone.c.key_0)


def too_many(found: Gone) -> str | None:
    """Return why so many rows are not deleted; None if they may be."""
    if found.gone <= found.rows * MOST_DELETED:
        return None
    return f"the source has no record of {found.gone:,} of {found.rows:,} rows, more than half; none was deleted"


def fate_of(slice_: Slice, row: Kept) -> Literal["delete", "empty"] | str:
    """Return what is to become of a row whose record is gone: one that the engine only filled loses what it was given.

    Any other text says why the row stays as it is.
    """
    if row.is_embedded_here:
        return "the source has no such record; embedded here, from its own text"
    if not row.embedding_is_ours:
        return "the source has no such record; changed here, or written by the application"
    if not slice_.key_map.makes_keys or (row.text_hash is None and _may_be_theirs(slice_.table)):
        return "empty"
    if row.text_hash is not None and not row.content_is_ours:
        return "the source has no such record; its text or metadata was changed here"
    return "delete"


def _may_be_theirs(table: VectorTable) -> bool:
    """Return whether a row without the hash of its content was there before the engine: in a table of ours none was."""
    return table.text_hash is not None or table.rows == "application"


class GoneRows:
    """The rows that are gone, once a run has done all its batches; any process of the run may settle them, several too.

    ``until_free`` waits until the run may go on; it raises `Held` if this process is to stop, and `RunOver`.
    """

    def __init__(self, context: RunContext, until_free: Callable[[], None]) -> None:
        self._context = context
        self._slice = context.job.slice
        self._until_free = until_free
        self._states = RowStates(self._slice, computed=False)

    def settle(self, *, delete: bool) -> Gone:
        """List every row that is gone, and with ``delete`` delete those that still hold what the engine wrote.

        Waits while the run is paused. Raises `RunOver`, `WorkLeft`, and `Held` if this process is to stop.
        """
        found = self._while_free(
            partial(self._context.final_retry.database, "looking for rows that are gone", self._list)
        )
        if not delete or found.refused or not found.gone:
            return found
        refused = too_many(found)
        if refused is not None:
            return replace(found, refused=refused)
        last: str | None = None
        while keys := self._context.final_retry.database("deleting rows", partial(self._page, last)):
            last = keys[-1]
            deleted, emptied = self._while_free(partial(self._settle_page, keys))
            found = replace(found, deleted=found.deleted + deleted, emptied=found.emptied + emptied)
        return found

    def _while_free(self, step: Callable[[], Result]) -> Result:
        while True:
            self._until_free()
            with suppress(Held):
                return step()
            time.sleep(POLL_SECONDS)

    def _check(self, run: Run) -> None:
        """Raise `Held` if the run is not to go on now, `RunOver` if it is not to go on at all."""
        if RunState.PAUSED in (run.state, run.desired_state) and run.desired_state != RunState.CANCELLED:
            raise Held
        if (run.state, run.desired_state) != (RunState.RUNNING, RunState.RUNNING):
            raise RunOver

    def _list(self) -> Gone:
        def fill(connection: Connection, seen: sa.Table) -> None:
            columns = [column.name for column in seen.columns]
            keys = seen_keys(self._context.run.id, len(columns))
            connection.execute(sa.insert(seen).from_select(columns, keys))

        with self._context.engine.begin() as connection:
            found, keys = find_gone(connection, self._slice, fill)
            # Not before: the look takes long, and whoever cancels the run would wait for it. If the run still goes on,
            # no other process has ended it and deleted the keys that were seen.
            self._check(runs.lock_run(connection, self._context.run.id))
            if runs.work_left(connection, self._context.run.id):
                raise WorkLeft
            if not found.refused:
                list_gone(connection, self._context.run, keys)
        return found

    def _page(self, last: str | None) -> list[str]:
        with self._context.transaction() as connection:
            return gone_after(connection, self._context.run.id, last, PAGE)

    def _settle_page(self, listed: Sequence[str]) -> tuple[int, int]:
        """Settle listed rows; return how many were deleted and emptied.

        The source is asked once more: a listing is not one moment, and what it left out may be there.
        """
        keys = [parse_key(text, len(self._slice.table.key)) for text in listed]
        moment, names = self._context.final_retry.database("deleting rows", partial(self._named, keys))
        back: set[str] = set()
        if names is not None:
            asked = [name for name in dict.fromkeys(names.values()) if name]
            if asked:
                answer = fetch_all(self._context.final_retry, self._context.job.source, asked)
                back = {*answer.source_keys, *(error.key for error in answer.quarantined)}
        store_keys = [key[0] if names is None else names.get(key, "") for key in keys]
        there = {text for text, name in zip(listed, store_keys, strict=True) if name in back}
        step = partial(self._delete, listed, keys, store_keys, there, moment)
        return self._context.final_retry.database("deleting rows", step)

    def _named(self, keys: Sequence[Key]) -> tuple[datetime, dict[Key, str] | None]:
        """Return the database's time, and the rows' source keys; None for those if the target keys do not tell."""
        slice_, key_map = self._slice, self._slice.key_map
        with self._context.transaction() as connection:
            moment = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
            if isinstance(key_map, Uuid5):
                return moment, None
            if key_map.source_columns is None:
                return moment, {key: key_map.to_source(key) for key in keys}
            told = [sa.cast(slice_.rows.c[name], sa.Text) for name in key_map.source_columns]
            width = len(slice_.table.key)
            rows = connection.execute(sa.select(*slice_.key_texts(), *told).where(slice_.among(keys))).all()
            # A column that holds no id by now names no record.
            return moment, {tuple(row[:width]): key_map.to_source(tuple(row[width:])) or "" for row in rows}

    def _delete(
        self,
        listed: Sequence[str],
        keys: Sequence[Key],
        store_keys: Sequence[str],
        there: set[str],
        moment: datetime,
    ) -> tuple[int, int]:
        """Delete or empty listed rows in one short transaction; return how many of each.

        It holds the locks that keep an application's writes of these keys out. Whoever pauses or cancels the run waits
        for its end.
        """
        with self._context.engine.begin() as connection:
            connection.execute(_BRIEF)
            self._check(runs.share_run(connection, self._context.run.id))
            self._context.outbox.lock(connection, [name for name in store_keys if name], "delete")
            newer = self._context.outbox.newer_than(connection, store_keys, moment)
            kept = dict(self._states.read(connection, keys, lock=True))
            whole, embedding = list[int](), list[int]()
            left: dict[str, str] = {}
            for place, text in enumerate(listed):
                row = kept.get(place)
                if text in there or row is None:
                    continue
                fate = fate_of(self._slice, row)
                if store_keys[place] in newer:
                    left[text] = "written here meanwhile"
                elif fate == "delete":
                    whole.append(place)
                elif fate == "empty":
                    embedding.append(place)
                else:
                    left[text] = fate
            target = self._slice.rows
            refused = self._each(connection, [keys[place] for place in whole], whole, sa.delete(target))
            emptied = sa.update(target).values(dict.fromkeys(self._ours(), sa.null()))
            refused |= self._each(connection, [keys[place] for place in embedding], embedding, emptied)
            left |= {listed[place]: why for place, why in refused.items()}
            if whole or embedding:
                proof.forget(connection, self._context.run.target, self._context.run.scope)
            settled = [text for text in listed if text not in left]
            settle_gone(connection, self._context.run.id, settled, left)
        return len(set(whole) - set(refused)), len(set(embedding) - set(refused))

    def _ours(self) -> list[str]:
        table = self._slice.table
        return [name for name in (table.embedding, table.sparse, table.hash) if name is not None]

    def _each(
        self, connection: Connection, keys: Sequence[Key], places: Sequence[int], statement: sa.Delete | sa.Update
    ) -> dict[int, str]:
        """Execute ``statement`` for those keys; return, by place, why PostgreSQL refused it for some."""

        def attempt(start: int, end: int) -> str | None:
            try:
                with connection.begin_nested():
                    connection.execute(statement.where(self._slice.among(keys[start:end])))
            except DBAPIError as error:
                if not is_row_refusal(error):
                    raise
                return "PostgreSQL refuses to delete it, or to empty it"
            return None

        found = isolate(len(keys), attempt) if keys else None
        if found is None:
            return {}
        alone = {places[position]: why for position, why in found.alone}
        return alone | {places[row]: why for start, end, why in found.unsettled for row in range(start, end)}


def parse_key(text: str, width: int) -> Key:
    """Return a key from its text, as `find_gone` gives it."""
    return (text,) if width == 1 else tuple(json.loads(text))


def _temporary(name: str, width: int) -> sa.Table:
    columns = [sa.Column(f"key_{position}", sa.Text) for position in range(width)]
    return sa.Table(name, sa.MetaData(), *columns, prefixes=["TEMPORARY"], postgresql_on_commit="DROP")
