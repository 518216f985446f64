"""What an observer of moves of simple vector stores is told beside what each move says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from amprenta_vectors.backfill.engine.observer import MoveEvent


@dataclass(frozen=True)
class QuarantinedDocument:
    """A document that cannot be carried over."""

    key: str
    reason: str
    detail: str


@dataclass(frozen=True)
class StoreDescribed(MoveEvent):
    """What a store holds, and how many rows the table has of it; ``first_quarantined`` are examples."""

    name, shown = "store_described", "text"
    store: str
    shape: str
    documents: int
    rows: int
    quarantined: int
    first_quarantined: tuple[QuarantinedDocument, ...]


@dataclass(frozen=True)
class StoreOpened(MoveEvent):
    """A store is about to be moved; its files have been copied to ``backup``, now if it ``is_new``."""

    name = "store_opened"
    store: str
    shape: str
    backup: str
    is_new: bool


@dataclass(frozen=True)
class StoreRefused(MoveEvent):
    """A store cannot be read, moved or taken back, which stops no other."""

    name, shown = "store_refused", "text"
    doing: Literal["plan", "move", "rollback"]
    store: str
    message: str


@dataclass(frozen=True)
class StoreEnded(MoveEvent):
    """What became of a store, in a line."""

    name, shown = "store", "result"
    store: str
    result: str


@dataclass(frozen=True)
class StoreToRollBack(MoveEvent):
    """How many rows would be taken back, and which runs inserted them."""

    name, shown = "store_to_roll_back", "text"
    store: str
    rows: int
    runs: list[int]


@dataclass(frozen=True)
class StoreRolledBack(MoveEvent):
    """How many rows were taken back; those that were changed since were ``kept``, by their keys."""

    name, shown = "store_rolled_back", "text"
    store: str
    removed: int
    kept: list[tuple[str, ...]]
