"""The migration of simple vector stores, each by a move of its own: what is amiss with one stops no other."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

from amprenta_vectors.backends.simple.backup import Backup
from amprenta_vectors.backends.simple.source import SimpleOrigin
from amprenta_vectors.backfill.database.index import build_deferred
from amprenta_vectors.backfill.database.throttle import Throttle
from amprenta_vectors.backfill.engine.observer import Observer, ignore
from amprenta_vectors.backfill.engine.starting import Mode
from amprenta_vectors.backfill.progress import quarantine
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ExitCode, RunConflict, worst
from amprenta_vectors.moves.ends import Ends, slice_of
from amprenta_vectors.moves.indexing import build_settings, telling_plans, watching_builds
from amprenta_vectors.moves.move import Move
from amprenta_vectors.moves.readiness import open_throttle
from amprenta_vectors.reasons import STILL_WRITTEN
from amprenta_vectors.systems.documents.events import (
    QuarantinedDocument,
    StoreDescribed,
    StoreEnded,
    StoreOpened,
    StoreRefused,
)
from amprenta_vectors.systems.documents.stores import SHOWN, count_rows, said_of


class StoreMigration:
    """Moves the stores of one origin, one after another; a store's files are backed up before they are moved."""

    def __init__(
        self,
        settings: Settings,
        ends: Ends,
        *,
        mode: Mode = "resume",
        stop: threading.Event | None = None,
        observer: Observer = ignore,
    ) -> None:
        self._settings = settings
        self._ends = ends
        self._origin = cast("SimpleOrigin", ends.origin)
        self._mode: Mode = mode
        self._stop = stop or threading.Event()
        self._backup = Backup(self._origin.root, datetime.now(UTC))
        self._observer = observer

    def plan(self, stores: Sequence[str]) -> ExitCode:
        """Tell the observer what each store holds and what is amiss with it; return the code that a move would give."""
        return worst([self._describe(store) for store in stores])

    def run(self, stores: Sequence[str]) -> ExitCode:
        """Move the stores, tell the observer at the end what became of each, and return the worst code."""
        throttle = open_throttle(self._settings, self._ends, self._observer, insert=True)
        ended = [self._move(store, throttle) for store in stores]
        self._build_index()
        for store, (_, result) in zip(stores, ended, strict=True):
            self._observer(StoreEnded(store, result))
        return worst([code for code, _ in ended])

    def _build_index(self) -> None:
        """Build the index that the first store deferred, whatever became of any of them."""
        engine, table = self._ends.engine, self._ends.table
        if not self._stop.is_set():
            with watching_builds(engine, table, self._observer):
                build = build_settings(self._settings)
                build_deferred(engine, table, self._stop, settings=build, say=telling_plans(self._observer))

    def _describe(self, store: str) -> ExitCode:
        try:
            return self._describe_whole(store)
        except Exception as error:
            self._observer(StoreRefused("plan", store, said_of(error)[1]))
            return ExitCode.FAILED

    def _describe_whole(self, store: str) -> ExitCode:
        source = self._origin.open(self._ends.table, store, with_metadata=True)
        held, rows = self._origin.store(store), count_rows(self._ends.engine, slice_of(self._ends, store))
        quarantined = [row for row in source.fetch(held.ids).quarantined if row.reason not in STILL_WRITTEN]
        first = tuple(QuarantinedDocument(row.key, row.reason, row.detail) for row in quarantined[:SHOWN])
        self._observer(StoreDescribed(store, held.shape, len(held.ids), rows, len(quarantined), first))
        return ExitCode.QUARANTINED if quarantined else ExitCode.CLEAN

    def _move(self, store: str, throttle: Throttle) -> tuple[ExitCode, str]:
        """Move one store; return the code and what became of it."""
        if self._stop.is_set():
            return ExitCode.INTERRUPTED, "not begun"
        try:
            return self._complete(store, throttle)
        except Exception as error:
            # Whatever one store raises is that store's failure; an interrupt is no Exception.
            message, said = said_of(error)
            self._observer(StoreRefused("move", store, said))
            code = ExitCode.USAGE if isinstance(error, RunConflict) else ExitCode.FAILED
            return code, f"failed: {message}"

    def _complete(self, store: str, throttle: Throttle) -> tuple[ExitCode, str]:
        # The files are copied before they are read: a copy that still equals the files later has nothing newer than was
        # moved.
        copy, is_new = self._backup.add(self._origin.folder(store))
        move = Move(
            self._settings,
            namespace=store,
            mode=self._mode,
            keys_from="source",
            ends=self._ends,
            stop=self._stop,
            keep_deferred=True,
        )
        slice_, held = move.open_job().slice, self._origin.store(store)
        self._observer(StoreOpened(store, held.shape, str(copy), is_new))
        move.prepare(self._observer, throttle)
        code = move.complete(self._observer)
        with self._ends.engine.connect() as connection:
            reasons = quarantine.quarantined_keys(connection, slice_.target, slice_.scope).values()
        aside = sum(reason not in STILL_WRITTEN for reason in reasons)
        rows, expected = count_rows(self._ends.engine, slice_), len(held.ids) - aside
        result = f"{len(held.ids):,} documents in the files, {rows:,} rows in the table, {aside:,} quarantined"
        if code == ExitCode.INTERRUPTED or rows >= expected:
            return code, result
        return ExitCode.FAILED, f"{result}: {expected - rows:,} are missing"
