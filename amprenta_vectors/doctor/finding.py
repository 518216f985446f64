"""The findings of a check, and what it is handed to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.progress.runs import Run, list_runs
from amprenta_vectors.backfill.progress.states import UNFINISHED
from amprenta_vectors.config import Settings
from amprenta_vectors.pg.names import qualified
from amprenta_vectors.schema.vector_table import VectorTable

Severity = Literal["serious", "advice", "note"]
SEVERITIES: tuple[Severity, ...] = ("serious", "advice", "note")
"""Worst first. A note is a figure to know, and needs no mending."""


@dataclass(frozen=True)
class Finding:
    """A fault or a figure that was found, and the command that mends it; ``check`` names the check that found it."""

    severity: Severity
    found: str
    mend: str = ""
    check: str = ""


@dataclass(frozen=True)
class Patient:
    """The vector table that the checks look at, as the catalogue has it, with its connection and the settings.

    ``relations`` are the oids of the table and its partitions.
    """

    connection: Connection
    settings: Settings
    table: VectorTable
    relations: list[int]

    @property
    def answers(self) -> bool:
        """Whether the application searches this table, rather than is about to."""
        return "pgvector" in used_backends(self.settings)

    @property
    def typed(self) -> str:
        """The table's name as a person types it."""
        return qualified(self.table.table, self.table.schema)

    def unfinished_runs(self) -> list[Run]:
        """Return the unfinished runs into this vector table, of whatever scope, the newest first."""
        runs = list_runs(self.connection)
        return [run for run in runs if run.target == self.table.target and run.state in UNFINISHED]


SettingsCheck = Callable[[Settings], Iterable[Finding]]
ServerCheck = Callable[[Connection, Settings], Iterable[Finding]]
TableCheck = Callable[[Patient], Iterable[Finding]]


def used_backends(settings: Settings) -> set[str]:
    """Return the stores that the settings name."""
    return {settings.vector_backend} | ({settings.vector_secondary} if settings.vector_secondary else set())
