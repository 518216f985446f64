"""A summary of what ``VECTOR_MODE=shadow`` found; docs/compare.md says what each field means.

It holds figures, times and ids of queries only: no vector, no text, no filter, no key.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.engine import Connection, RowMapping

from amprenta_vectors.db import name_database
from amprenta_vectors.errors import ConfigError, NotUpgraded
from amprenta_vectors.sections import upgrade_command

SCHEMA = 1
"""The report's version, raised when a field changes its meaning or goes; new fields may come at any time."""
WORST = 20
MOST_BUCKETS = 120
SHARES = 10
"""The number of equal parts in which overlaps below 1 are counted."""
CURVE = (*range(100), 99.5, 99.9, 100)
"""The percentiles of the latencies that are plotted."""

_MOMENT = sa.TIMESTAMP(timezone=True)
_QUERY = sa.table(
    "shadow_query",
    sa.column("id", sa.BigInteger),
    sa.column("at", _MOMENT),
    *(sa.column(name, sa.Text) for name in ("primary_store", "secondary_store", "error")),
    *(sa.column(name, sa.BigInteger) for name in ("top_k", "hits", "dropped")),
    sa.column("filter", JSONB),
    sa.column("missing", ARRAY(sa.Text)),
    *(
        sa.column(name, sa.Double)
        for name in ("primary_ms", "secondary_ms", "overlap", "rank_agreement", "score_drift")
    ),
)
_KEPT = _QUERY.c


def collect_shadow_report(connection: Connection, since: datetime | None = None) -> dict[str, Any]:
    """Return the report on the queries kept since ``since``, or on all, in values that JSON has.

    ``pairs`` has an entry for each pair of stores that were compared, the latest first. Raises `NotUpgraded`, and
    `ConfigError` if no query was kept.
    """
    if connection.scalar(sa.text("SELECT to_regclass('shadow_query')")) is None:
        raise NotUpgraded("the database has no table shadow_query", hint=upgrade_command(connection))
    recent = sa.true() if since is None else _KEPT.at >= since
    pairs = connection.execute(_summary(recent)).mappings().all()
    if not pairs:
        raise ConfigError(
            "no shadow query was kept" + (f" since {since.isoformat()}" if since else ""),
            hint="VECTOR_MODE=shadow in the application keeps them" + ("; or an earlier --since" if since else ""),
        )
    return {
        "schema": SCHEMA,
        "made_at": connection.scalars(sa.select(sa.func.now())).one().isoformat(),
        "database": name_database(connection),
        "since": since.isoformat() if since else None,
        "pairs": [_pair(connection, pair, recent) for pair in pairs],
    }


def _pair(connection: Connection, found: RowMapping, recent: sa.ColumnElement[bool]) -> dict[str, Any]:
    of_pair = sa.and_(
        recent,
        _KEPT.primary_store == found["primary_store"],
        _KEPT.secondary_store == found["secondary_store"],
    )
    seconds = (found["last_at"] - found["first_at"]).total_seconds()
    width = max(seconds / MOST_BUCKETS, 1.0)
    return {
        "primary": found["primary_store"],
        "secondary": found["secondary_store"],
        "first_at": found["first_at"].isoformat(),
        "last_at": found["last_at"].isoformat(),
        "queries": found["queries"],
        "compared": found["compared"],
        "same_hits": found["same_hits"],
        "dropped": int(found["dropped"]),
        "errors": {row.type: row.queries for row in connection.execute(_errors(of_pair))},
        "overlap": _low(found, "overlap"),
        "rank_agreement": _low(found, "rank_agreement"),
        "score_drift": {
            "mean": found["drift_mean"],
            **dict(zip(("p50", "p95", "most"), found["drift"] or [None] * 3, strict=True)),
        },
        "primary_ms": _latencies(found, "primary_ms"),
        "secondary_ms": _latencies(found, "secondary_ms"),
        "overlap_shares": _shares(connection, of_pair),
        "bucket_seconds": width,
        "buckets": [dict(row) for row in connection.execute(_buckets(of_pair, found["first_at"], width)).mappings()],
        "worst": [{**row, "at": row["at"].isoformat()} for row in connection.execute(_worst(of_pair)).mappings()],
    }


def _low(found: RowMapping, name: str) -> dict[str, float | None]:
    low = dict(zip(("p1", "p5", "p50"), found[name] or [None] * 3, strict=True))
    return {"mean": found[f"{name}_mean"], **low}


def _latencies(found: RowMapping, name: str) -> dict[str, Any]:
    p50, p95, p99, *curve = found[name] or [None] * (3 + len(CURVE))
    return {"p50": p50, "p95": p95, "p99": p99, "curve": curve if p50 is not None else []}


def _shares(connection: Connection, of_pair: sa.ColumnElement[bool]) -> list[int]:
    """Return how many queries have each tenth of overlap; the last number counts those with an overlap of 1."""
    part = sa.func.floor(_KEPT.overlap * SHARES)
    rows = connection.execute(
        sa.select(part.label("part"), sa.func.count().label("queries"))
        .where(of_pair, _KEPT.overlap.is_not(None))
        .group_by(part)
    )
    shares = [0] * (SHARES + 1)
    for row in rows:
        shares[int(row.part)] = row.queries
    return shares


def _summary(recent: sa.ColumnElement[bool]) -> sa.Select[Any]:
    answered = _KEPT.error.is_(None)
    mean, count = sa.func.avg, sa.func.count
    low, latencies = (0.01, 0.05, 0.5), (0.5, 0.95, 0.99, *(percent / 100 for percent in CURVE))
    return (
        sa.select(
            _KEPT.primary_store,
            _KEPT.secondary_store,
            sa.func.min(_KEPT.at).label("first_at"),
            sa.func.max(_KEPT.at).label("last_at"),
            count().label("queries"),
            count(_KEPT.overlap).label("compared"),
            count().filter(_KEPT.overlap == 1).label("same_hits"),
            sa.func.sum(_KEPT.dropped).label("dropped"),
            mean(_KEPT.overlap).label("overlap_mean"),
            _percentiles(_KEPT.overlap, low).label("overlap"),
            mean(_KEPT.rank_agreement).label("rank_agreement_mean"),
            _percentiles(_KEPT.rank_agreement, low).label("rank_agreement"),
            mean(_KEPT.score_drift).label("drift_mean"),
            _percentiles(_KEPT.score_drift, (0.5, 0.95, 1.0)).label("drift"),
            _percentiles(_KEPT.primary_ms, latencies).label("primary_ms"),
            # How soon an error comes says nothing of how fast an answer is.
            _percentiles(_KEPT.secondary_ms, latencies).filter(answered).label("secondary_ms"),
        )
        .where(recent)
        .group_by(_KEPT.primary_store, _KEPT.secondary_store)
        .order_by(sa.func.max(_KEPT.at).desc())
    )


def _percentiles(column: sa.ColumnElement[float], shares: Sequence[float]) -> sa.WithinGroup[Any]:
    return sa.func.percentile_cont(sa.cast(list(shares), ARRAY(sa.Double))).within_group(column)


def _errors(of_pair: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Select the errors by their type, which stands before the message."""
    kind = sa.func.split_part(_KEPT.error, ":", 1).label("type")
    number = sa.func.count().label("queries")
    return (
        sa.select(kind, number)
        .where(of_pair, _KEPT.error.is_not(None))
        .group_by(sa.text("1"))
        .order_by(number.desc(), sa.text("1"))
    )


def _buckets(of_pair: sa.ColumnElement[bool], first_at: datetime, width: float) -> sa.Select[Any]:
    begin = sa.func.floor(sa.extract("epoch", _KEPT.at - sa.literal(first_at, _MOMENT)) / width)
    return (
        sa.select(
            (sa.cast(begin, sa.Double) * width).label("begin"),
            sa.func.count().label("queries"),
            sa.func.count(_KEPT.error).label("failed"),
            sa.func.avg(_KEPT.overlap).label("overlap"),
        )
        .where(of_pair)
        .group_by(sa.text("1"))
        .order_by(sa.text("1"))
    )


def _worst(of_pair: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Select the queries whose hits agree least; queries with the same hits in the same order are left out."""
    return (
        sa.select(
            _KEPT.id,
            _KEPT.at,
            _KEPT.overlap,
            _KEPT.rank_agreement,
            _KEPT.top_k,
            _KEPT.hits,
            sa.func.cardinality(_KEPT.missing).label("missing"),
            _KEPT.filter.is_not(None).label("filtered"),
        )
        .where(of_pair, sa.or_(_KEPT.overlap < 1, _KEPT.rank_agreement < 1 - 1e-9))
        .order_by(_KEPT.overlap, _KEPT.rank_agreement, _KEPT.id)
        .limit(WORST)
    )
