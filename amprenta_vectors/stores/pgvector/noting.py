"""A process notes itself in ``model_process`` with the models that it has loaded, for `models switch` to see."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Iterable, Mapping

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.pg.errors import for_a_log

log = logging.getLogger(__name__)

_MAY_NOTE = sa.text("""
    SELECT coalesce(bool_and(has_table_privilege(to_regclass('model_process'), privilege)), false)
           AND current_setting('transaction_read_only') = 'off'
    FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
""")
_NOTE = sa.text("""
    INSERT INTO model_process (process, target, host, pid, loaded, failed, searched, missed)
    VALUES (:process, :target, :host, :pid, :loaded, :failed, :searched, :missed)
    ON CONFLICT (process, target) DO UPDATE
    SET loaded = excluded.loaded, failed = excluded.failed, searched = excluded.searched, missed = excluded.missed,
        seen_at = clock_timestamp()
""").bindparams(sa.bindparam("loaded", type_=ARRAY(sa.Text)), sa.bindparam("failed", type_=JSONB))
_LEAVE = sa.text("DELETE FROM model_process WHERE process = :process")


class Noting:
    """What a store notes of its process; ``errors`` are the driver's own.

    A role that may not note itself, or only read, notes nothing: that fails no query and no write.
    """

    def __init__(self, engine: sa.Engine, errors: tuple[type[Exception], ...]) -> None:
        self._engine = engine
        # Where all connections of the pool are in use, the next look notes it.
        self._errors: tuple[type[Exception], ...] = (DBAPIError, sa.exc.TimeoutError, *errors)
        self._process = uuid.uuid4()
        self._may_note: bool | None = None
        self._noted = False

    def note(
        self, target: str, *, loaded: Iterable[str], failed: Mapping[str, str], searched: str | None, missed: int
    ) -> None:
        """Note which models are loaded, which failed and why, and the one that is searched here."""
        if self._may_note is False:
            return
        values = {
            "process": self._process,
            "target": target,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "loaded": sorted(loaded),
            "failed": dict(failed),
            "searched": searched,
            "missed": missed,
        }
        try:
            with self._engine.begin() as connection:
                if self._may_note is None:
                    self._may_note = bool(connection.scalar(_MAY_NOTE))
                if self._may_note:
                    connection.execute(_NOTE, values)
                    self._noted = True
        except self._errors as error:
            log.warning("which models are loaded here is not noted: %s", for_a_log(error))

    def leave(self) -> None:
        """Note that this process does not use the table any more."""
        if not self._noted:
            return
        try:
            with self._engine.begin() as connection:
                connection.execute(_LEAVE, {"process": self._process})
        except self._errors as error:
            log.warning("that this process is gone is not noted: %s", for_a_log(error))
        self._noted = False
