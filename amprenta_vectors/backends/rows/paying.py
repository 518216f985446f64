"""Embedding texts by a service that charges for it: each text once, and no request beyond the limit on the cost."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

from amprenta_vectors.backends.protocol import Meter, TextVectors, Unmetered, Unshared
from amprenta_vectors.batch import Vectors
from amprenta_vectors.embedders.protocol import Embedded, EmbeddingService
from amprenta_vectors.embedders.requests import iter_requests
from amprenta_vectors.embedders.tokens import likely_tokens, most_tokens
from amprenta_vectors.errors import CredentialsRefused, KeysRefused, LimitReached, RateLimited, SourceNotFound

FREE = (RateLimited, KeysRefused, CredentialsRefused, SourceNotFound)
"""The answers by which a service says that it embedded nothing."""
LOOK_SECONDS = 0.5


class PayingEmbedder:
    """Embeds texts for all threads of a process by one service, within the limits that ``meter`` knows of.

    Vectors are asked of ``shared`` first, and given to it as soon as they are there: what comes after their request may
    fail, and is tried again without another one.
    """

    def __init__(self, service: EmbeddingService) -> None:
        self.meter: Meter = Unmetered()
        self.shared: TextVectors = Unshared()
        self._service = service
        self._changed = threading.Condition()
        self._under_way = 0

    def embed(self, texts: Sequence[str]) -> list[Vectors]:
        """Return a vector for each of different ``texts``. Raises as the service does, and `LimitReached`.

        Nobody waits for others while they wait for him: all that is taken is embedded before the first wait.
        """
        # A thread that outlives the run keeps what it was given at its start.
        shared = self.shared
        digests = [hashlib.sha256(text.encode()).digest() for text in texts]
        lacking = dict(zip(digests, texts, strict=True))
        vectors: dict[bytes, Vectors] = {}
        while lacking:
            ours, found = shared.take(lacking.keys())
            vectors |= found
            if ours:
                vectors |= self._embed_ours(
                    shared, {digest: text for digest, text in lacking.items() if digest in ours}
                )
            lacking = {digest: text for digest, text in lacking.items() if digest not in vectors}
            if lacking and not (ours or found):
                shared.wait()
        return [vectors[digest] for digest in digests]

    def _embed_ours(self, shared: TextVectors, texts: dict[bytes, str]) -> dict[bytes, Vectors]:
        vectors: dict[bytes, Vectors] = {}
        digests = iter(texts)
        try:
            for asked in iter_requests(list(texts.values()), self._service.limits):
                vectors |= self._paid(shared, {next(digests): text for text in asked})
        except BaseException:
            shared.give_back(texts.keys())
            raise
        return vectors

    def _paid(self, shared: TextVectors, texts: dict[bytes, str]) -> dict[bytes, Vectors]:
        """Return the vectors of texts by one request, or by smaller ones if the limit does not leave enough for it."""
        try:
            answer = self._request(list(texts.values()))
        except LimitReached:
            if len(texts) == 1:
                raise
            pairs = list(texts.items())
            middle = len(pairs) // 2
            return self._paid(shared, dict(pairs[:middle])) | self._paid(shared, dict(pairs[middle:]))
        vectors = dict(zip(texts, answer.vectors, strict=True))
        shared.publish(vectors)
        return vectors

    def _request(self, texts: Sequence[str]) -> Embedded:
        """Reserve the most that a request can cost, make it, and settle what it did cost.

        Where nobody says whether it was charged, because the answer was lost, it is taken to have cost the most.
        """
        meter, most, likely = self.meter, most_tokens(texts), likely_tokens(texts)
        self._reserve(meter, most, likely)
        spent = most
        try:
            answer = self._service.request(texts)
            spent = likely if answer.tokens is None else answer.tokens
        except FREE as error:
            spent = 0
            if isinstance(error, RateLimited):
                meter.limited("fetch", error.retry_after)
            raise
        finally:
            meter.settle(most, spent)
            self._ended()
        return answer

    def _reserve(self, meter: Meter, most: int, likely: int) -> None:
        """Wait for the meter. Raises `LimitReached` if no request of this process is under way that may give back."""
        while True:
            with self._changed:
                self._under_way += 1
            try:
                meter.before("fetch", most, likely)
            except LimitReached:
                with self._changed:
                    self._ended()
                    if not self._under_way:
                        raise
                    self._changed.wait(LOOK_SECONDS)
            except BaseException:
                self._ended()
                raise
            else:
                return

    def _ended(self) -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()
