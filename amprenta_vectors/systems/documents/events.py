"""The events that an observer of simple vector stores' moves is told of, beside those of each move."""

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
    """The contents of a store, and how many rows the table has of it; ``first_quarantined`` are examples."""

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
    """A store cannot be read, moved or rolled back, which stops no other store."""

    name, shown = "store_refused", "text"
    doing: Literal["plan", "move", "rollback"]
    store: str
    message: str


@dataclass(frozen=True)
class StoreEnded(MoveEvent):
    """The result of a store's move, in a line."""

    name, shown = "store", "result"
    store: str
    result: str


@dataclass(frozen=True)
class StoreToRollBack(MoveEvent):
    """A rollback would remove so many rows, which ``runs`` inserted."""

    name, shown = "store_to_roll_back", "text"
    store: str
    rows: int
    runs: list[int]


@dataclass(frozen=True)
class StoreRolledBack(MoveEvent):
    """A rollback removed so many rows; rows that were changed since were ``kept``, listed by their keys."""

    name, shown = "store_rolled_back", "text"
    store: str
    removed: int
    kept: list[tuple[str, ...]]
