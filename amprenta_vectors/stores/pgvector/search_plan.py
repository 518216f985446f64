"""Explains in words which way a search takes, and why, for a person who wonders about its speed or its hits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from amprenta_vectors.pg.indexes import Index
from amprenta_vectors.pg.types import IndexMethod, IndexStorage
from amprenta_vectors.stores.pgvector.search import Found
from amprenta_vectors.stores.pgvector.search_settings import ITERATIVE_SCAN, SearchSettings


@dataclass(frozen=True)
class SearchPlan:
    """How a search was answered.

    ``index`` is the vector index that was scanned, with its ``method`` and its ``storage``, what it holds of a vector;
    None means that every matching row was read. ``rows_estimated`` is how many rows PostgreSQL expects to match scope
    and filter, ``rows_returned`` how many hits came back, the nearest of the ``candidates`` that the index was asked
    for. ``ef_search`` or ``probes``, and ``iterative_scan``, are the settings that it was scanned with. ``repeated``:
    the first search gave fewer hits than requested, so the search was repeated without the vector index, and that is
    the answer.
    """

    index: str | None
    method: IndexMethod | None
    storage: IndexStorage | None
    why: str
    rows_estimated: int
    rows_returned: int
    candidates: int | None
    ef_search: int | None
    probes: int | None
    iterative_scan: str | None
    repeated: bool


def to_search_plan(
    plan: dict[str, Any],
    found: Found,
    top_k: int,
    settings: SearchSettings,
    indexes: Sequence[Index],
    *,
    exact: bool,
) -> SearchPlan:
    """Explain in words PostgreSQL's ``plan`` and what was ``found``; ``indexes`` are those of the column."""
    name = _vector_index_of(plan)
    index = next((each for each in indexes if each.name == name), None)
    method = None if index is None else cast(IndexMethod, index.method)
    return SearchPlan(
        index=name,
        method=method,
        storage=None if index is None else index.storage,
        why=_reason(
            plan, found, top_k, exact=exact, indexed=any(each.serves(settings.table.distance) for each in indexes)
        ),
        rows_estimated=_estimate_of(plan),
        rows_returned=len(found.rows),
        candidates=None if index is None else settings.candidates(top_k),
        ef_search=settings.kept(top_k) if method == "hnsw" else None,
        probes=settings.lists_read if method == "ivfflat" else None,
        iterative_scan=None if index is None else ITERATIVE_SCAN,
        repeated=found.repeated,
    )


def _vector_index_of(plan: dict[str, Any]) -> str | None:
    """Return the index that the plan orders rows by distance with; None if there is none."""
    return next((node["Index Name"] for node in _iter_nodes(plan) if "Order By" in node), None)


def _estimate_of(plan: dict[str, Any]) -> int:
    """Return how many rows the plan expects to match: those that the innermost LIMIT cuts."""
    *_, innermost = (node for node in _iter_nodes(plan) if node["Node Type"] == "Limit")
    return int(innermost["Plans"][0]["Plan Rows"])


def _reason(plan: dict[str, Any], found: Found, top_k: int, *, exact: bool, indexed: bool) -> str:
    """Return in words why the search went as it did."""
    estimate, index = _estimate_of(plan), _vector_index_of(plan)
    if exact:
        return f"an exact search was asked for: about {estimate} rows were read"
    if index is not None and found.first < top_k:
        return f"index {index} gave {found.first} of {top_k}, so every matching row was read"
    if index is not None:
        return f"index {index} costs less than reading about {estimate} matching rows"
    if not indexed:
        return f"there is no valid vector index: about {estimate} matching rows were read"
    others = sorted({node["Index Name"] for node in _iter_nodes(plan) if "Index Name" in node})
    if not others:
        return f"reading the whole table for about {estimate} matching rows costs less than a vector index"
    return f"reading about {estimate} matching rows by index {', '.join(others)} costs less than a vector index"


def _iter_nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _iter_nodes(below)
