"""Failures that a test or a demo switches on while the emulator runs, and counts of what was asked of it."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter

ROUTES = (
    "describe",
    "stats",
    "namespaces",
    "list",
    "fetch",
    "fetch_by_metadata",
    "query",
    "upsert",
    "update",
    "delete",
)
EVERY_ROUTE = "*"


@dataclass(frozen=True)
class Fault:
    """What goes wrong with requests on a route. All times are seconds.

    ``latency``: the answer begins this much later. ``status``: this HTTP status is the answer, with ``Retry-After``
    where ``retry_after`` is given. ``reset``: the connection is reset before anything is done. ``truncate``: the
    request is carried out and its answer cut midway. ``stall``: the answer pauses midway. gRPC has no half of an
    answer, so there a reset and a truncated answer are UNAVAILABLE and a stall is a late answer.

    ``probability`` is how likely a request is to meet the fault; ``times``, after how many it is over. With ``rate``,
    only the requests above so many a second fail, with status 429 unless another failure is given.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    latency: float = 0.0
    status: int | None = None
    retry_after: float | None = None
    reset: bool = False
    truncate: bool = False
    stall: float = 0.0
    probability: float = 1.0
    times: int | None = None
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.times is not None and self.times < 1:
            raise ValueError(f"times is {self.times}, and must be at least 1")
        if self.rate is not None and self.rate <= 0:
            raise ValueError(f"rate is {self.rate}, and must be above 0")
        if self.status is not None and not 400 <= self.status <= 599:
            raise ValueError(f"status is {self.status}, and must be 400 to 599")


FAULTS = TypeAdapter(dict[str, Fault])
"""Reads faults by route from JSON."""


@dataclass
class _Armed:
    fault: Fault
    met: int = 0
    tokens: float = 0.0
    filled_at: float = 0.0


class Faults:
    """The faults in force, by route; a route's own fault goes before that of ``*``. Safe to use from any thread."""

    def __init__(self, seed: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a seed makes a run repeatable
        self._clock = clock
        self._lock = threading.Lock()
        self._armed: dict[str, _Armed] = {}

    def set(self, route: str, fault: Fault) -> None:
        """Put ``fault`` in force on ``route``, in place of the one that is there."""
        if route not in (*ROUTES, EVERY_ROUTE):
            raise ValueError(f"there is no route {route!r}; the routes are {', '.join(ROUTES)} and {EVERY_ROUTE}")
        with self._lock:
            self._armed[route] = _Armed(fault, tokens=_burst(fault), filled_at=self._clock())

    def clear(self) -> None:
        """End all faults."""
        with self._lock:
            self._armed.clear()

    def draw(self, route: str) -> Fault:
        """Return the fault that a request just come in on ``route`` meets; one without effect if it meets none."""
        with self._lock:
            name = route if route in self._armed else EVERY_ROUTE
            armed = self._armed.get(name)
            if armed is None or self._random.random() >= armed.fault.probability:
                return Fault()
            fault = armed.fault
            if fault.rate is not None:
                wait = self._seconds_to_wait(armed, fault.rate)
                if wait == 0.0:
                    return Fault(latency=fault.latency)
                fault = Fault(
                    latency=fault.latency,
                    status=None if fault.reset or fault.truncate or fault.stall else fault.status or 429,
                    # Whole seconds, as RFC 9110 has Retry-After.
                    retry_after=float(int(wait) + 1) if fault.retry_after is None else fault.retry_after,
                    reset=fault.reset,
                    truncate=fault.truncate,
                    stall=fault.stall,
                )
            armed.met += 1
            if armed.met == armed.fault.times:
                del self._armed[name]
            return fault

    def _seconds_to_wait(self, armed: _Armed, rate: float) -> float:
        now = self._clock()
        armed.tokens = min(_burst(armed.fault), armed.tokens + (now - armed.filled_at) * rate)
        armed.filled_at = now
        if armed.tokens >= 1.0:
            armed.tokens -= 1.0
            return 0.0
        return (1.0 - armed.tokens) / rate


def _burst(fault: Fault) -> float:
    return max(1.0, fault.rate or 0.0)


class Calls(Counter[str]):
    """How often each route was asked for, over both transports, failures included; and the read units spent.

    ``most_at_once`` is how many requests on a route were ever under way together.
    """

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        super().__init__(counts or {})
        self.read_units = 0
        self.most_at_once: Counter[str] = Counter()
        self._under_way: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def arrived(self, route: str) -> Iterator[None]:
        """Count one request, which is under way while inside."""
        with self._lock:
            self[route] += 1
            self._under_way[route] += 1
            self.most_at_once[route] = max(self.most_at_once[route], self._under_way[route])
        try:
            yield
        finally:
            with self._lock:
                self._under_way[route] -= 1

    def spend(self, read_units: int) -> None:
        """Add to the read units spent."""
        with self._lock:
            self.read_units += read_units

    def clear(self) -> None:
        """Count from 0 again."""
        with self._lock:
            super().clear()
            self.most_at_once.clear()
            self.read_units = 0
