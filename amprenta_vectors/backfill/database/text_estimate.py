"""The estimate of what embedding texts by a service will take: tokens, money, requests and time."""

from __future__ import annotations

from dataclasses import dataclass

from amprenta_vectors.backends.protocol import PaidSource
from amprenta_vectors.config import SourceLimits

REQUEST_SECONDS = (0.3, 3.0)
"""Seconds that a service is taken to need for a request, at best and at worst; --limit 1000 measures them."""


@dataclass(frozen=True)
class TextEstimate:
    """The estimate of a run over texts; ``different`` are embedded, each once, of ``texts`` in all.

    ``tokens`` may be off by the share ``error``. ``cost`` and ``max_cost`` are None where no price or no limit is set.
    """

    texts: int
    different: int
    tokens: int
    error: float
    requests: int
    seconds: tuple[float, float]
    price: float | None
    max_cost: float | None

    @property
    def cost(self) -> float | None:
        """The cost of the tokens."""
        return None if self.price is None else self.tokens / 1_000_000 * self.price


def estimate_texts(
    source: PaidSource, limits: SourceLimits, *, only_empty: bool, limit: int | None, batch_size: int, workers: int
) -> TextEstimate:
    """Estimate a run of one process over the rows of ``source``, at most ``limit`` of them.

    Every text is measured, and a sample of them is looked at for how many tokens a byte of theirs has.
    """
    found = source.survey(only_empty=only_empty)
    share = 1.0 if limit is None else min(1.0, limit / max(1, found.texts))
    texts, different = round(found.texts * share), round(found.different * share)
    requests = max(source.requests_for(different, round(found.bytes_ * share)), -(-texts // batch_size))
    tokens = round(found.bytes_ * share * found.tokens_per_byte)
    by_limits = max(
        0.0 if rate is None else amount / rate
        for amount, rate in ((tokens, limits.tokens_per_second), (requests, limits.fetch_per_second))
    )
    fast, slow = (max(by_limits, requests * seconds / workers) for seconds in REQUEST_SECONDS)
    return TextEstimate(
        texts, different, tokens, found.error, requests, (fast, slow), limits.token_price, limits.max_cost
    )
