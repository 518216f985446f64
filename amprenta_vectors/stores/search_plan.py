"""Which way a search takes, and why, in words for whoever wonders about its speed or its hits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from amprenta_vectors.schema.catalogue import relation
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.search import ITERATIVE_SCAN, Found


@dataclass(frozen=True)
class SearchPlan:
    """How a search was answered.

    ``index`` is the vector index that was scanned; None: every matching row was read. ``rows_estimated`` is how many
    rows PostgreSQL expects to match scope and filter, ``rows_returned`` how many hits came back. ``ef_search`` and
    ``iterative_scan`` are the settings that an index was scanned with. ``repeated``: what came first was fewer than
    were asked for, so it was asked again without the vector index, and that is the answer.
    """

    index: str | None
    why: str
    rows_estimated: int
    rows_returned: int
    ef_search: int | None
    iterative_scan: str | None
    repeated: bool


_VECTOR_INDEXES = sa.text("""
    SELECT count(*) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
    WHERE i.indrelid = to_regclass(:relation) AND i.indisvalid AND a.amname IN ('hnsw', 'ivfflat')
""")


def has_vector_index(connection: sa.Connection, table: VectorTable) -> bool:
    """Whether the table has any vector index that queries may use."""
    return bool(connection.scalar(_VECTOR_INDEXES, {"relation": relation(table)}))


def to_search_plan(
    plan: dict[str, Any], found: Found, top_k: int, ef_search: int, *, exact: bool, indexed: bool
) -> SearchPlan:
    """In words what PostgreSQL's ``plan`` and what was ``found`` say; ``indexed`` as `has_vector_index` has it."""
    index = _vector_index_of(plan)
    return SearchPlan(
        index=index,
        why=_reason(plan, first=found.first, top_k=top_k, exact=exact, indexed=indexed),
        rows_estimated=_estimate_of(plan),
        rows_returned=len(found.rows),
        ef_search=None if index is None else ef_search,
        iterative_scan=None if index is None else ITERATIVE_SCAN,
        repeated=found.repeated,
    )


def _vector_index_of(plan: dict[str, Any]) -> str | None:
    """The index of a plan whose order is the distance."""
    return next((node["Index Name"] for node in _iter_nodes(plan) if "Order By" in node), None)


def _estimate_of(plan: dict[str, Any]) -> int:
    """How many rows the plan expects to match, which is what the innermost LIMIT cuts."""
    *_, innermost = (node for node in _iter_nodes(plan) if node["Node Type"] == "Limit")
    return int(innermost["Plans"][0]["Plan Rows"])


def _reason(plan: dict[str, Any], *, first: int, top_k: int, exact: bool, indexed: bool) -> str:
    """Why the search went as it did; ``first`` is how many hits ``plan`` gave of ``top_k``."""
    estimate, index = _estimate_of(plan), _vector_index_of(plan)
    if exact:
        return f"an exact search was asked for: about {estimate} rows were read"
    if index is not None and first < top_k:
        return f"index {index} gave {first} of {top_k}, so every matching row was read"
    if index is not None:
        return f"index {index} costs less than reading about {estimate} matching rows"
    if not indexed:
        return f"there is no valid vector index: about {estimate} matching rows were read"
    others = sorted({node["Index Name"] for node in _iter_nodes(plan) if "Index Name" in node})
    by = f" by index {', '.join(others)}" if others else ""
    return f"reading about {estimate} matching rows{by} costs less than a vector index"


def _iter_nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _iter_nodes(below)
