"""The rate at which a source may be asked: a token bucket that processes lease from, without clock or storage.

Its tokens may be sold a little ahead of time (GCRA, https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm):
each lease starts where the last one sold ends, so that several processes take turns and none sends in a burst. The rate
itself rises by a constant and falls by a factor (additive increase, multiplicative decrease), as in TCP's congestion
control (RFC 5681, section 3.1). All times are seconds on one clock, whichever; rates are units a second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from amprenta_vectors.config import FETCH_PER_SECOND, LIST_PER_SECOND

Kind = Literal["list", "fetch", "read_units", "tokens"]
"""A kind of what is metered by the second: requests of a route, read units, or tokens."""

LOWERED_TO = 0.7
"""The share of the rate left after a refusal: CUBIC's factor (RFC 9438, section 4.6), which AWS's adaptive retry uses.
"""
RAISED_BY = 0.01
"""The share of the limit that the rate gains in a second without refusals: 30 s after one at the limit it is back."""
LOWERED_EVERY_SECONDS = 1.0
"""The time within which refusals count as one burst: seen by several threads and processes, they lower the rate once.
"""
LEAST_RATE = 1.0
"""The rate below which none is lowered: every limit that Pinecone publishes is above it, so the rate is not the cause.
"""
LEASE_SECONDS = 1.0
"""How far ahead requests are sold, how long they keep, and about how often a process comes for more."""
BURST_SECONDS = 0.1
"""The seconds of unused rate that are kept for later; Pinecone counts by the second."""


@dataclass(frozen=True)
class TokenBucket:
    """The bucket of one kind that the processes of a run share.

    ``available`` below 0 was sold ahead. ``rate`` is infinite without a limit, until the first refusal.
    ``lowered_at`` is set while the rate is below its limit.
    """

    rate: float
    available: float = 0.0
    filled_at: float = 0.0
    lowered_at: float | None = None
    blocked_until: float | None = None


@dataclass(frozen=True)
class Lease:
    """A process's lease: ``amount`` to spend at ``rate``, ``wait_seconds`` from now.

    If ``amount`` is 0, ``wait_seconds`` is when to ask again; ``blocked`` is True if the source asked for silence.
    """

    amount: float
    rate: float
    wait_seconds: float
    blocked: bool = False


def open_bucket(limit: float | None, now: float) -> TokenBucket:
    """Return an unused bucket, whose rate starts at the limit."""
    return TokenBucket(math.inf if limit is None else limit, filled_at=now)


def refill(bucket: TokenBucket, now: float, kind: Kind, limit: float | None) -> TokenBucket:
    """Return the bucket as it is ``now``: with what time brought, its rate raised if nothing was refused of late."""
    rate, lowered_at = bucket.rate, bucket.lowered_at
    most = math.inf if limit is None else limit
    if lowered_at is None:
        rate = most
    else:
        calm_since = max(bucket.filled_at, lowered_at + LOWERED_EVERY_SECONDS, bucket.blocked_until or 0.0)
        rate += RAISED_BY * (limit or published(kind)) * max(0.0, now - calm_since)
        if rate >= most:
            rate, lowered_at = most, None
    available = 0.0
    if not math.isinf(rate):
        gained = bucket.rate * max(0.0, now - bucket.filled_at) if not math.isinf(bucket.rate) else 0.0
        available = min(bucket.available + gained, rate * BURST_SECONDS)
    return replace(bucket, rate=rate, available=available, filled_at=max(now, bucket.filled_at), lowered_at=lowered_at)


def lend(
    bucket: TokenBucket, now: float, *, needed: float, wanted: float, turn_seconds: float
) -> tuple[TokenBucket, Lease]:
    """Lease from a refilled bucket at least ``needed``, at most ``wanted`` and what ``turn_seconds`` bring.

    A bucket that is sold ahead by `LEASE_SECONDS` already leases nothing: the caller asks again later.
    """
    blocked = (bucket.blocked_until or now) - now
    if blocked > 0:
        return bucket, Lease(0.0, bucket.rate, blocked, blocked=True)
    if math.isinf(bucket.rate):
        return bucket, Lease(math.inf, math.inf, 0.0)
    ahead = max(0.0, -bucket.available / bucket.rate)
    if ahead >= LEASE_SECONDS:
        return bucket, Lease(0.0, bucket.rate, LEASE_SECONDS)
    amount = max(needed, min(wanted, bucket.rate * turn_seconds))
    return replace(bucket, available=bucket.available - amount), Lease(amount, bucket.rate, ahead)


def lower(bucket: TokenBucket, now: float, kind: Kind, retry_after: float | None) -> TokenBucket:
    """Return a refilled bucket after a refusal: blocked for ``retry_after`` seconds, with a lower rate from then on.

    A request that is refused during the silence was made before it began, and does not count. Without a limit the rate
    is not known; it starts from the published limit.
    """
    silent_until = bucket.blocked_until or 0.0
    until = max(silent_until, now + (retry_after or 0.0))
    bucket = replace(bucket, blocked_until=until if until > now else None)
    if bucket.lowered_at is not None and now < max(silent_until, bucket.lowered_at + LOWERED_EVERY_SECONDS):
        return bucket
    before = min(bucket.rate, published(kind))
    rate = max(min(LEAST_RATE, before), before * LOWERED_TO)
    # What was sold ahead at the former rate is not a debt of the new one.
    return replace(bucket, rate=rate, available=max(bucket.available, -rate), lowered_at=now)


def published(kind: Kind) -> float:
    """Return the rate to start from if there is no limit."""
    return LIST_PER_SECOND if kind == "list" else FETCH_PER_SECOND
