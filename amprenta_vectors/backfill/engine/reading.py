"""Reading a whole source beside any run: batches of its keys, fetched by several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from amprenta_vectors.backends.protocol import TokenRefused
from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.backfill.engine.keys import Keys, Pages
from amprenta_vectors.errors import SourceError, TransientError

MOST_READINGS = 3

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Reading:
    """One reading of all keys; ``name`` and ``command`` tell a person what was interrupted and how to repeat it."""

    keys: Keys
    retry: Backoff
    batch_size: int
    workers: int
    name: str
    command: str

    def whole(self, read: Callable[[], Result]) -> Result:
        """Return what ``read`` returns, starting over if the source refuses its own page tokens.

        Raises `SourceError` if it does so three times.
        """
        for _ in range(MOST_READINGS):
            try:
                return read()
            except TokenRefused:
                continue
        raise SourceError(f"the source refused its own page tokens {MOST_READINGS} times")

    def each(self, step: Callable[[Sequence[str]], Item]) -> Iterator[Item]:
        """Iterate over what ``step`` returns for each batch of keys, in their order.

        The steps are taken by several threads, with at most two per thread waiting. Raises `TransientError` if the
        retry was told to stop.
        """
        with ThreadPoolExecutor(self.workers, thread_name_prefix=self.name) as pool:
            waiting: deque[Future[Item]] = deque()
            for keys in self.batches():
                waiting.append(pool.submit(step, keys))
                if len(waiting) >= 2 * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def batches(self) -> Iterator[Sequence[str]]:
        """Iterate over all keys, a batch at a time. Raises `TransientError` if the retry was told to stop."""
        keys: list[str] = []
        with closing(Pages(self.keys, None)) as pages:
            token: str | None = ""
            while token is not None:
                if self.retry.stopped:
                    raise TransientError(f"the {self.name} was interrupted", hint=self.command)
                page, token = self.retry.database("listing keys", pages.next)
                keys.extend(page)
                if token is None or len(keys) >= self.batch_size:
                    for start in range(0, len(keys), self.batch_size):
                        yield keys[start : start + self.batch_size]
                    keys = []
