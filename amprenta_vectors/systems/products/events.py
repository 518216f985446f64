"""The events that an observer of a catalogue's move is told of, beside those of its runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amprenta_vectors.backfill.engine.observer import MoveEvent
from amprenta_vectors.backfill.verify.model_check import Checked
from amprenta_vectors.systems.products.state import State


@dataclass(frozen=True)
class StepBegun(MoveEvent):
    """One of the six steps starts; in the fourth, ``products`` are to be written."""

    name = "step"
    number: int
    products: int = 0


@dataclass(frozen=True)
class EndsReady(MoveEvent):
    """Both ends were reached."""

    name = "ready"
    collection: str


@dataclass(frozen=True)
class Analysed(MoveEvent):
    """Both ends were counted; ``state`` is what they have."""

    name = "analysed"
    state: State


@dataclass(frozen=True)
class Planned(MoveEvent):
    """The move was planned: so many products come from ChromaDB, and so many are embedded."""

    name = "planned"
    to_move: int
    to_embed: int


@dataclass(frozen=True)
class EmbedderChecked(MoveEvent):
    """Texts of ChromaDB's were embedded again; ``checked`` is None if it has too few."""

    name = "embedder"
    model: str | None
    checked: Checked | None


@dataclass(frozen=True)
class WouldMigrate(MoveEvent):
    """A dry run has ended."""

    name = "would_migrate"
    products: int


@dataclass(frozen=True)
class Interrupted(MoveEvent):
    """The move was told to stop between its runs."""

    name = "interrupted_between_runs"


@dataclass(frozen=True)
class LookedBack(MoveEvent):
    """The result was checked: products with an embedding, and how many there should be.

    ``spots`` were chosen by chance, each valid or not.
    """

    name = "looked_back"
    embedded: int
    expected: int
    spots: list[tuple[str, bool]]


@dataclass(frozen=True)
class Migrated(MoveEvent):
    """The move has ended; ``kept`` of the ``embedded_before`` products with an embedding kept it.

    ``compare_command`` verifies the products that were embedded anew, which ChromaDB's vectors cannot.
    """

    name, shown = "migrated", "result"
    products: int
    migrated: int
    embedded_before: int
    kept: int
    errors: int
    unmatched: int
    active: int
    coverage: float
    seconds: float
    compare_command: str | None

    def to_json(self) -> dict[str, Any]:
        """Return the figures."""
        figures = {"products": self.products, "migrated": self.migrated, "skipped": self.embedded_before}
        figures |= {"errors": self.errors, "unmatched": self.unmatched}
        share = {"coverage_percent": round(100 * self.coverage, 2), "seconds": round(self.seconds, 2)}
        return {"event": self.name, **figures, **share}
