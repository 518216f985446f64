"""The events that an observer of a run is told of while it goes on, as values that can be sent elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from pydantic_core import to_jsonable_python

from amprenta_vectors.backfill.progress.batches import Outcome
from amprenta_vectors.backfill.progress.figures import Counts
from amprenta_vectors.backfill.progress.runs import Run


@dataclass(frozen=True)
class MoveEvent:
    """An event of a move. ``name`` tells its kind in JSON, where the type is not at hand.

    ``shown`` says how output in JSON shows it: as a line of the log, a result, a text for whoever started it, or not.
    """

    name: ClassVar[str]
    shown: ClassVar[Literal["log", "result", "text"] | None] = None

    def to_json(self) -> dict[str, Any]:
        """Return the event as JSON values: what ``--json`` prints of it."""
        values = {field.name: to_jsonable_python(getattr(self, field.name)) for field in fields(self)}
        return {"event": self.name, **values}


Observer = Callable[[MoveEvent], None]
"""A function that is called with each event, from any thread, several at once; what it raises stops the run."""


def ignore(_: MoveEvent) -> None:
    """Observe nothing."""


@dataclass(frozen=True)
class RunStarted(MoveEvent):
    """The run was started or resumed by this process, which deferred the indexes named."""

    name, shown = "started", "log"
    run: Run
    deferred: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the fields that identify the run."""
        run = self.run
        about = {"run": run.id, "source": run.source, "target": run.target, "scope": run.scope}
        return {"event": self.name, **about, "deferred": self.deferred}


@dataclass(frozen=True)
class RunAdvanced(MoveEvent):
    """The figures of the run, from all its processes."""

    name, shown = "progress", "log"
    run: Run
    counts: Counts

    def to_json(self) -> dict[str, Any]:
        """Return the figures that change."""
        run = self.run
        figures = {"planned": run.planned_keys, "done": self.counts.keys_done, "written": self.counts.written}
        beside = {"read_units": run.read_units, "throttle_reason": run.throttle_reason}
        return {"event": self.name, "run": run.id, **figures, **beside}


@dataclass(frozen=True)
class BatchDone(MoveEvent):
    """This process committed a batch of the run."""

    name = "batch"
    run: int
    batch: int
    outcome: Outcome


@dataclass(frozen=True)
class Waiting(MoveEvent):
    """A step failed with a transient error and will be tried again; ``reason`` is None once it succeeded."""

    name, shown = "waiting", "log"
    run: int | None
    reason: str | None


@dataclass(frozen=True)
class IndexBuilding(MoveEvent):
    """Every row is written; the deferred index is being built."""

    name, shown = "building", "log"
    run: int
    target: str
