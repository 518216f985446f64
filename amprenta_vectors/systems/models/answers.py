"""A chunk that a search of the models system found."""

from __future__ import annotations

from dataclasses import dataclass

from amprenta_vectors.service.api import Result


@dataclass(frozen=True)
class SearchResult(Result):
    """A chunk that was found. A search of several models scores by rank, and ``models`` are those that found it."""

    models: tuple[str, ...] = ()
