"""One simple vector store: what it holds, its way into the table, and whether its files may go."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import click
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from amprenta_vectors.backfill import progress
from amprenta_vectors.backfill.starting import Mode
from amprenta_vectors.backfill.throttle import Throttle
from amprenta_vectors.cli.backfill import CLEAN, FAILED, INTERRUPTED, SET_ASIDE, open_job, work_at
from amprenta_vectors.cli.model_check import declare_model
from amprenta_vectors.cli.options import scope_of
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import AmprentaError, RunConflict
from amprenta_vectors.schema.expressions import in_scope, to_clause
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.sources.simple import SimpleOrigin
from amprenta_vectors.sources.simple_backup import back_up

CONFLICT = 2
SHOWN = 20
"""Keys or reasons that are printed."""


@dataclass
class Move:
    """One store's way into the table; ``said`` is what became of it, in a line."""

    engine: Engine
    settings: Settings
    table: VectorTable
    origin: SimpleOrigin
    name: str
    mode: Mode
    throttle: Throttle
    stop: threading.Event
    said: str = ""

    def run(self) -> int:
        """Back the files up, work at the run and count; returns the exit code. What is amiss with it is its own."""
        if self.stop.is_set():
            self.said = "not begun"
            return INTERRUPTED
        try:
            return self._run()
        except AmprentaError as error:
            click.echo(f"error: {self.name}: {error}", err=True)
            self.said = f"failed: {error.message}"
            return CONFLICT if isinstance(error, RunConflict) else FAILED

    def _run(self) -> int:
        # Copied before they are read: a copy that is the same as the files later on is of nothing newer than was moved.
        copy, is_new = back_up(self.origin.root, self.origin.folder(self.name), datetime.now(UTC))
        job = open_job(self.settings, self.engine, self.table, self.origin, self.name, self.mode, "source")
        store = self.origin.store(self.name)
        if self.settings.log_format == "text":
            click.echo(f"{self.name}: {store.shape}")
            click.echo(f"  {'backed up to' if is_new else 'backed up before, in'} {copy}")
        declare_model(self.engine, self.settings, self.origin, self.name, job)
        code = work_at(self.engine, self.settings, job, self.mode, self.throttle, self.stop, verify=True)
        with self.engine.connect() as connection:
            aside = len(progress.set_aside_keys(connection, self.table.target, job.scope))
        rows, expected = _count_rows(self.engine, self.table, job.scope), len(store.ids) - aside
        self.said = f"{len(store.ids):,} documents in the files, {rows:,} rows in the table, {aside:,} set aside"
        if code == INTERRUPTED or rows >= expected:
            return code
        self.said += f": {expected - rows:,} are missing"
        return FAILED


def _count_rows(engine: Engine, table: VectorTable, scope: Mapping[str, str]) -> int:
    target = to_clause(table)
    statement = sa.select(sa.func.count()).select_from(target).where(*in_scope(table, target, scope))
    with engine.connect() as connection:
        return connection.execute(statement).scalar_one()


def describe(engine: Engine, table: VectorTable, origin: SimpleOrigin, name: str) -> int:
    """Say what a store holds and what is amiss with it; returns the exit code that moving it would end with."""
    try:
        source = origin.open(table, name, with_metadata=True)
    except AmprentaError as error:
        click.echo(f"{name}: {error}")
        return FAILED
    store, rows = origin.store(name), _count_rows(engine, table, scope_of(table, name))
    aside = source.fetch(store.ids).rejected
    click.echo(f"{name}: {len(store.ids):,} documents, {rows:,} rows in the table, {len(aside):,} to be set aside")
    click.echo(f"  {store.shape}")
    for row in aside[:SHOWN]:
        click.echo(f"  {row.reason}: {row.key!r}: {row.detail}")
    return SET_ASIDE if aside else CLEAN
