"""The events that an observer of a move is told of, beside those of its run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from amprenta_vectors.backfill.database.index_plan import BuildPlan
from amprenta_vectors.backfill.engine.observer import MoveEvent
from amprenta_vectors.backfill.engine.run import Summary
from amprenta_vectors.backfill.progress.seen import Gone
from amprenta_vectors.backfill.verify.compare import Kind
from amprenta_vectors.errors import ExitCode
from amprenta_vectors.schema.kinds import unit_of


@dataclass(frozen=True)
class Warned(MoveEvent):
    """Something may be wrong with an end of the move."""

    name, shown = "warning", "text"
    text: str


@dataclass(frozen=True)
class Noticed(MoveEvent):
    """Something is worth knowing, and nothing is wrong with it."""

    name, shown = "notice", "log"
    text: str


@dataclass(frozen=True)
class IndexPlanned(MoveEvent):
    """An index is about to be built; ``plan`` says what that will take."""

    name, shown = "index", "log"
    plan: BuildPlan

    def to_json(self) -> dict[str, Any]:
        """Return the plan's own fields."""
        return {"event": self.name, **asdict(self.plan), "fits": self.plan.fits}


@dataclass(frozen=True)
class IndexProgress(MoveEvent):
    """The progress of an index build on ``target``, in blocks or tuples of the phase; ``total`` is 0 if unknown."""

    name = "index_progress"
    target: str
    phase: str
    done: int
    total: int


@dataclass(frozen=True)
class RunEnded(MoveEvent):
    """This process leaves the run, which has ended or was interrupted; ``source_count`` is the source's own figure."""

    name, shown = "finished", "result"
    summary: Summary
    source_count: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the run's figures; the event of an interrupted run has another name."""
        summary = self.summary
        return {
            "event": "interrupted" if summary.interrupted else self.name,
            "run": summary.run.id,
            "written": summary.counts.written,
            "skipped": summary.counts.skipped,
            "quarantined": summary.errors,
            unit_of(summary.run.source_kind): summary.run.read_units,
            "seconds": round(summary.seconds, 2),
            "indexes_built": summary.indexes_built,
        }


@dataclass(frozen=True)
class PassEnded(MoveEvent):
    """A pass of a reconciliation ended, or a dry run of one, which has no ``run``.

    ``refused`` says why rows that the source no longer has were not deleted, ``advice`` how more rows could be known to
    be unchanged.
    """

    name, shown = "reconciled", "result"
    run: int | None
    equal: int
    written: int
    replaced: int
    quarantined: Mapping[str, int]
    gone: Gone | None
    refused: str | None
    advice: str | None
    interrupted: bool = False

    @property
    def code(self) -> ExitCode:
        """The exit code with which the pass ended, or would end."""
        if self.interrupted:
            return ExitCode.INTERRUPTED
        if self.refused is not None:
            return ExitCode.FAILED
        return ExitCode.QUARANTINED if self.quarantined else ExitCode.CLEAN

    def to_json(self) -> dict[str, Any]:
        """Return the figures; the events of a dry run and of an interrupted pass have other names."""
        about: dict[str, Any] = {"event": "interrupted" if self.interrupted else self.name, "run": self.run}
        if self.run is None:
            about = {"event": "dry_run"}
        figures = {"equal": self.equal, "written": self.written, "replaced": self.replaced}
        gone = self.gone
        ends = {"gone": gone.gone, "deleted": gone.deleted, "emptied": gone.emptied} if gone is not None else {}
        return {**about, **figures, **ends, "quarantined": dict(self.quarantined), "refused": self.refused}


@dataclass(frozen=True)
class ComparisonStarted(MoveEvent):
    """Every vector is being compared; if the source's vectors are ``computed``, a sample is embedded again.

    A source for which ``lists`` is False is asked for the keys of the table's rows.
    """

    name = "comparing"
    computed: bool
    lists: bool


@dataclass(frozen=True)
class Differed(MoveEvent):
    """The sides disagree on a key; a missing key may be known to have been ``quarantined``."""

    name = "difference"
    kind: Kind
    key: str
    detail: str
    quarantined: bool


@dataclass(frozen=True)
class Verified(MoveEvent):
    """The result of a comparison; ``unexpected`` counts the differences but rows known to have been quarantined."""

    name, shown = "verified", "result"
    source: str
    computed: bool
    compared: int
    counts: Mapping[str, int]
    unexpected: int

    def to_json(self) -> dict[str, Any]:
        """Return the figures."""
        return {"event": self.name, "compared": self.compared, **self.counts, "unexpected": self.unexpected}


@dataclass(frozen=True)
class ComparisonInterrupted(MoveEvent):
    """The comparison after a run was told to stop; ``command`` is the command that makes it."""

    name, shown = "comparison_interrupted", "text"
    command: str


@dataclass(frozen=True)
class Reported(MoveEvent):
    """The run's report was written: as JSON and as a page."""

    name, shown = "reported", "result"
    run: int
    files: tuple[str, str]


@dataclass(frozen=True)
class NotReported(MoveEvent):
    """The run's report could not be written, which is no failure of the run."""

    name, shown = "not_reported", "text"
    run: int
    reason: str
