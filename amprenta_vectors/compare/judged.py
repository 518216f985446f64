"""Queries in words, with the rows that a person judged relevant, and how well an answer ranks those."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.stores.filters.language import parse_filter
from amprenta_vectors.stores.protocol import Filter

_FORM = (
    'one JSON object a line: {"query": "…", "relevant": ["key", …]}, or with grades "relevant": {"key": 2, …}; '
    '"relevant" and "filter" are optional'
)
_FIELDS = {"query", "relevant", "filter"}


@dataclass(frozen=True)
class JudgedQuery:
    """A query in words; ``relevant`` are the grades, above 0, of the rows that were judged, by key."""

    text: str
    relevant: Mapping[str, float] = field(default_factory=dict)
    filter: Filter | None = None


def read_judged(path: Path, most: int | None = None) -> list[JudgedQuery]:
    """Return the queries of a file of JSON lines, the first ``most`` or all. Raises `ConfigError` naming the line."""
    queries: list[JudgedQuery] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if len(queries) == most:
                    break
                if line.strip():
                    queries.append(_of_line(f"{path}, line {number}", line))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", hint=_FORM) from None
    if not queries:
        raise ConfigError(f"{path} has no query", hint=_FORM)
    return queries


def ndcg(keys: Sequence[str], relevant: Mapping[str, float], top_k: int) -> float:
    """Return the normalised discounted cumulative gain of an answer, from 0 to 1, with gains of 2^grade - 1.

    Source: Burges et al., Learning to Rank using Gradient Descent, ICML 2005; the discount is that of Järvelin and
    Kekäläinen, Cumulated gain-based evaluation of IR techniques, ACM TOIS 20 (4), 2002.
    """
    best = _gain(sorted(relevant.values(), reverse=True)[:top_k])
    return _gain([relevant.get(key, 0.0) for key in keys[:top_k]]) / best if best else 0.0


def reciprocal_rank(keys: Sequence[str], relevant: Mapping[str, float], top_k: int) -> float:
    """Return 1 / the rank of the first relevant row of an answer, 0 without one."""
    return next((1.0 / rank for rank, key in enumerate(keys[:top_k], 1) if relevant.get(key, 0.0) > 0), 0.0)


def _gain(grades: Sequence[float]) -> float:
    return sum((math.pow(2.0, grade) - 1.0) / math.log2(rank + 1) for rank, grade in enumerate(grades, 1))


def _of_line(place: str, line: str) -> JudgedQuery:
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        raise ConfigError(f"{place} is no JSON", hint=_FORM) from None
    if not isinstance(found, dict) or not isinstance(found.get("query"), str) or found.keys() - _FIELDS:
        raise ConfigError(f"{place} is no query", hint=_FORM)
    if not found["query"].strip():
        raise ConfigError(f"{place}: the query has no words", hint=_FORM)
    asked_filter = found.get("filter") or None
    if asked_filter is not None:
        parse_filter(asked_filter)
    return JudgedQuery(found["query"], _grades(place, found.get("relevant", {})), asked_filter)


def _grades(place: str, given: Any) -> dict[str, float]:
    graded = dict.fromkeys(given, 1.0) if isinstance(given, list) and all(map(_is_key, given)) else given
    if not isinstance(graded, dict) or not all(map(_is_grade, graded.values())):
        raise ConfigError(f"{place}: relevant is neither a list of keys nor an object of grades", hint=_FORM)
    return {str(key): float(grade) for key, grade in graded.items()}


def _is_key(value: Any) -> bool:
    return isinstance(value, str)


def _is_grade(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= 100
