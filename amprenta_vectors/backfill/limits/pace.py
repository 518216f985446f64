"""How fast a source may be asked: the arithmetic of quotas that processes lease, without clock or storage.

A token bucket whose tokens may be sold a little ahead of time (GCRA, https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm):
each lease begins where the last one sold ends, so that several processes take turns and none sends in a burst. The rate
itself rises by a constant and falls by a factor (additive increase, multiplicative decrease), as in TCP's congestion
control (RFC 5681, section 3.1). All times are seconds on one clock, whichever; rates are units a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

Kind = Literal["list", "fetch", "read_units"]
"""What is metered by the second: requests of a route, or read units."""

LIST_PER_SECOND = 200.0
FETCH_PER_SECOND = 100.0
"""Requests a second that Pinecone takes of one index
(https://docs.pinecone.io/reference/api/database-limits/rate-limits)."""

LOWERED_TO = 0.7
"""What is left of the rate after a refusal: CUBIC's factor (RFC 9438, section 4.6), which AWS's adaptive retry uses."""
RAISED_BY = 0.01
"""Of the ceiling, what the rate gains in a second without refusals: 30 s after one at the ceiling it is back there."""
LOWERED_EVERY_SECONDS = 1.0
"""Refusals of one burst, seen by several threads and processes, lower the rate once."""
LEAST_RATE = 1.0
"""A rate is not lowered further: that is below every limit that Pinecone publishes, so something else is the matter."""
LEASE_SECONDS = 1.0
"""How far ahead quota is sold, how long it keeps, and about how often a process comes for more."""
BURST_SECONDS = 0.1
"""How much of what nobody took is kept for later; Pinecone counts by the second."""


@dataclass(frozen=True)
class Ceilings:
    """Limits that a person sets; None is no ceiling. ``max_read_units`` is for a whole run, retries included."""

    list_per_second: float | None = LIST_PER_SECOND
    fetch_per_second: float | None = FETCH_PER_SECOND
    read_units_per_second: float | None = None
    max_read_units: int | None = None

    def of(self, kind: Kind) -> float | None:
        """The ceiling of one kind."""
        ceiling: float | None = getattr(self, f"{kind}_per_second")
        return ceiling

    def under(self, limits: Mapping[str, Any]) -> Ceilings:
        """These with what was set for the run in their place; there 0 is no ceiling and null is not set."""
        ours = {field.name for field in fields(Ceilings)}
        changed = {name: value or None for name, value in limits.items() if name in ours and value is not None}
        return replace(self, **changed)


@dataclass(frozen=True)
class Quota:
    """What the processes of a run share of one kind.

    ``available`` below 0 was sold ahead. ``rate`` is infinite without a ceiling, until the first refusal.
    ``lowered_at`` stands while the rate is below its ceiling.
    """

    rate: float
    available: float = 0.0
    filled_at: float = 0.0
    lowered_at: float | None = None
    blocked_until: float | None = None


@dataclass(frozen=True)
class Lease:
    """What one process got: ``amount`` to spend at ``rate``, ``wait_seconds`` from now.

    Of an ``amount`` of 0, ``wait_seconds`` is when to ask again; ``blocked`` where the source asked for silence.
    """

    amount: float
    rate: float
    wait_seconds: float
    blocked: bool = False


def open_quota(ceiling: float | None, now: float) -> Quota:
    """A quota nobody has used: it begins at the ceiling."""
    return Quota(math.inf if ceiling is None else ceiling, filled_at=now)


def refill(quota: Quota, now: float, kind: Kind, ceiling: float | None) -> Quota:
    """The quota as it is ``now``: what time brought, and the rate risen where nothing was refused of late."""
    rate, lowered_at = quota.rate, quota.lowered_at
    most = math.inf if ceiling is None else ceiling
    if lowered_at is None:
        rate = most
    else:
        calm_since = max(quota.filled_at, lowered_at + LOWERED_EVERY_SECONDS, quota.blocked_until or 0.0)
        rate += RAISED_BY * (ceiling or published(kind)) * max(0.0, now - calm_since)
        if rate >= most:
            rate, lowered_at = most, None
    available = 0.0
    if not math.isinf(rate):
        gained = quota.rate * max(0.0, now - quota.filled_at) if not math.isinf(quota.rate) else 0.0
        available = min(quota.available + gained, rate * BURST_SECONDS)
    return replace(quota, rate=rate, available=available, filled_at=max(now, quota.filled_at), lowered_at=lowered_at)


def lend(quota: Quota, now: float, *, needed: float, wanted: float, turn_seconds: float) -> tuple[Quota, Lease]:
    """Sell from a refilled quota at least ``needed``, at most ``wanted`` and what ``turn_seconds`` bring.

    Sold ahead by `LEASE_SECONDS` already, it sells nothing: whoever comes then asks again.
    """
    blocked = (quota.blocked_until or now) - now
    if blocked > 0:
        return quota, Lease(0.0, quota.rate, blocked, blocked=True)
    if math.isinf(quota.rate):
        return quota, Lease(math.inf, math.inf, 0.0)
    ahead = max(0.0, -quota.available / quota.rate)
    if ahead >= LEASE_SECONDS:
        return quota, Lease(0.0, quota.rate, LEASE_SECONDS)
    amount = max(needed, min(wanted, quota.rate * turn_seconds))
    return replace(quota, available=quota.available - amount), Lease(amount, quota.rate, ahead)


def lower(quota: Quota, now: float, kind: Kind, retry_after: float | None) -> Quota:
    """A refilled quota after a refusal: nobody asks for ``retry_after`` seconds, and more slowly from then on.

    What is refused while there should be silence was asked before it began, and does not count.
    Without a ceiling the rate is not known; it begins from the published limit.
    """
    silent_until = quota.blocked_until or 0.0
    until = max(silent_until, now + (retry_after or 0.0))
    quota = replace(quota, blocked_until=until if until > now else None)
    if quota.lowered_at is not None and now < max(silent_until, quota.lowered_at + LOWERED_EVERY_SECONDS):
        return quota
    before = min(quota.rate, published(kind))
    rate = max(min(LEAST_RATE, before), before * LOWERED_TO)
    # What was sold ahead at the former rate is not a debt of the new one.
    return replace(quota, rate=rate, available=max(quota.available, -rate), lowered_at=now)


def published(kind: Kind) -> float:
    """The rate that is gone out from where there is no ceiling."""
    return LIST_PER_SECOND if kind == "list" else FETCH_PER_SECOND
