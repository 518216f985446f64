"""Paying for texts: what is asked of a service, of the limits and of those who share the texts, and in which order."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from amprenta_vectors.backends.rows.paying import PayingEmbedder
from amprenta_vectors.batch import Vectors
from amprenta_vectors.embedders.protocol import Embedded, Limits, Model
from amprenta_vectors.embedders.tokens import most_tokens
from amprenta_vectors.errors import KeysRefused, LimitReached, RateLimited, TransientError

TEXTS = [f"text {number}" for number in range(8)]
EACH = most_tokens(TEXTS[:1])


class Service:
    """Gives a vector a text and one token, or raises what it is given first."""

    def __init__(self, *errors: Exception) -> None:
        self.model = Model("any", 2, "any")
        self.limits = Limits(texts=4)
        self.asked: list[Sequence[str]] = []
        self.errors = list(errors)
        self.goes_on = threading.Event()
        self.goes_on.set()

    def embed(self, texts: Sequence[str]) -> Any:
        raise NotImplementedError

    def request(self, texts: Sequence[str]) -> Embedded:
        self.asked.append(texts)
        assert self.goes_on.wait(60)
        if self.errors:
            raise self.errors.pop(0)
        return Embedded(np.array([[len(text), 1] for text in texts], np.float32), len(texts))


class Till:
    """A meter with so many units, which notes what it is told."""

    def __init__(self, units: int = 10**6) -> None:
        self.left = units
        self.limits: list[float | None] = []
        self.refused = 0

    def before(self, route: str, units: int, likely: int | None = None) -> None:
        if units > self.left:
            self.refused += 1
            raise LimitReached("no more")
        self.left -= units

    def settle(self, units: int, spent: int) -> None:
        self.left += units - spent

    def limited(self, route: str, retry_after: float | None) -> None:
        self.limits.append(retry_after)


class Kept:
    """The texts of a run with nobody else at it."""

    def __init__(self) -> None:
        self.vectors: dict[bytes, Vectors] = {}
        self.given_back: set[bytes] = set()

    def take(self, digests: Collection[bytes]) -> tuple[set[bytes], dict[bytes, Vectors]]:
        found = {digest: self.vectors[digest] for digest in digests if digest in self.vectors}
        return set(digests) - found.keys(), found

    def publish(self, vectors: Mapping[bytes, Vectors]) -> None:
        self.vectors |= vectors

    def give_back(self, digests: Collection[bytes]) -> None:
        self.given_back |= set(digests)

    def wait(self) -> None:
        raise AssertionError("nobody else is there")


def paying(service: Service, till: Till, kept: Kept | None = None) -> PayingEmbedder:
    embedder = PayingEmbedder(service)
    embedder.meter = till  # type: ignore[assignment]
    embedder.shared = kept or Kept()
    return embedder


def test_each_text_gets_its_own_vector_and_what_was_counted_is_spent() -> None:
    till = Till(1000)
    found = paying(service := Service(), till).embed(TEXTS)
    assert [list(vector) for vector in found] == [[len(text), 1.0] for text in TEXTS]
    assert service.asked == [TEXTS[:4], TEXTS[4:]]
    assert till.left == 1000 - len(TEXTS)


@pytest.mark.parametrize(
    ("error", "spent"),
    [(RateLimited("later", retry_after=3.0), 0), (KeysRefused("no"), 0), (TransientError("cut"), 4 * EACH)],
)
def test_what_a_request_that_fails_is_taken_to_have_cost_and_what_becomes_of_the_others(
    error: Exception, spent: int
) -> None:
    till, kept = Till(1000), Kept()
    service = Service()
    embedder = paying(service, till, kept)
    embedder.embed(TEXTS[:2])
    service.errors = [error]
    with pytest.raises(type(error)):
        embedder.embed(TEXTS)
    # What others may embed now is all that was taken; what is kept stays kept.
    assert len(kept.given_back) == 6
    assert till.left == 1000 - 2 - spent
    assert till.limits == ([3.0] if isinstance(error, RateLimited) else [])
    embedder.embed(TEXTS)
    assert sorted(text for asked in service.asked[2:] for text in asked) == TEXTS[2:]


def test_near_the_limit_requests_become_smaller_until_not_one_text_fits() -> None:
    till, kept = Till(3 * EACH), Kept()
    service = Service()
    with pytest.raises(LimitReached):
        paying(service, till, kept).embed([*TEXTS[:4], "a longer text " * 9])
    assert service.asked == [TEXTS[:2], TEXTS[2:4]]
    assert len(kept.vectors) == 4
    assert till.left == 3 * EACH - 4


def test_who_finds_no_room_waits_for_a_request_that_may_give_some_back() -> None:
    till = Till(4 * EACH)
    service = Service()
    service.goes_on.clear()
    embedder = paying(service, till)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(embedder.embed, TEXTS[:4])
        while not service.asked:
            threading.Event().wait(0.01)
        second = pool.submit(embedder.embed, TEXTS[4:6])
        while not till.refused:
            threading.Event().wait(0.01)
        service.goes_on.set()
        assert (len(first.result(60)), len(second.result(60))) == (4, 2)
    assert service.asked == [TEXTS[:4], TEXTS[4:6]]
