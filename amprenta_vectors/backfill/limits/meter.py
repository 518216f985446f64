"""The meter that a process asks before each request to the source: for its turn, and for units to spend."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from amprenta_vectors.backends.protocol import Metered, Route, Source
from amprenta_vectors.backfill.limits.ledger import Ledger
from amprenta_vectors.backfill.limits.token_bucket import LEASE_SECONDS, Kind
from amprenta_vectors.config import SourceLimits
from amprenta_vectors.errors import TransientError
from amprenta_vectors.schema.kinds import Unit

WORTH_SAYING_SECONDS = 1.0
"""The least wait that the observer is told of: a shorter one is the pace itself, not a standstill to explain."""
FIRST_TURN_SECONDS = 0.25
LEAST_TURN_SECONDS = 0.02
LONGER_TURN_SECONDS = 0.02
SHORTER_TURN = 0.8


class LeasedMeter:
    """A `Meter` for all threads of a process, which leases requests about once a second for all of them.

    ``source_limits`` gives the limits in force; ``unit`` is what the source charges by. ``check`` is called before each
    request, and raises if none may be made; setting ``hold`` cuts a wait short. Raises `LimitReached`, and
    `TransientError` if the database is away.
    """

    def __init__(
        self,
        ledger: Ledger,
        source_limits: Callable[[], SourceLimits],
        hold: threading.Event,
        check: Callable[[], None],
        on_wait: Callable[[str | None], None] = lambda _: None,
        *,
        unit: Unit = "read_units",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = source_limits
        self._unit = unit
        self._hold = hold
        self._check = check
        self._on_wait = on_wait
        self._clock = clock
        kinds: tuple[Kind, ...] = ("list", "fetch", unit)
        self._shares = {kind: Share(ledger, kind, clock) for kind in kinds}
        self._purse = Purse(ledger, clock)

    def before(self, route: Route, units: int, likely: int | None = None) -> None:
        """Wait for the route's turn and for the units by the second, then reserve the units in all."""
        limits = self._limits()
        self._wait_for(route, 1.0, limits)
        if limits.of(self._unit) is not None:
            self._wait_for(self._unit, float(units if likely is None else likely), limits)
        self._check()
        self._purse.take(units, limits.most(self._unit))

    def settle(self, units: int, spent: int) -> None:
        """Put what a request did not cost back into the purse; take from it what it cost beyond its ``units``."""
        self._purse.put_back(units - spent)

    def limited(self, route: Route, retry_after: float | None) -> None:
        """Slow every process of the run down from now on, and stop them until ``retry_after`` seconds have passed."""
        self._shares[route].refused(retry_after, self._limits().of(route))

    def tidy(self) -> None:
        """Give back units that have not been used for a while; call it now and then."""
        self._purse.tidy()

    def close(self) -> None:
        """Give back the units that were not spent."""
        self._purse.empty()

    def _wait_for(self, kind: Kind, amount: float, limits: SourceLimits) -> None:
        share, limit = self._shares[kind], limits.of(kind)
        said = False
        try:
            while True:
                self._check()
                taken, seconds = share.take(amount, limit)
                if seconds >= WORTH_SAYING_SECONDS:
                    said = True
                    self._on_wait(share.reason(seconds))
                if seconds > 0:
                    self._hold.wait(seconds)
                if taken and not share.silent:
                    break
        finally:
            if said:
                self._on_wait(None)


class Share:
    """A process's lease of one kind; `take` and `refused` may be called from any thread, and return at once."""

    def __init__(self, ledger: Ledger, kind: Kind, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._kind = kind
        self._clock = clock
        self._lock = threading.Lock()
        self._left = 0.0
        self._bought = 0.0
        self._rate = math.inf
        self._begins = self._ends = -math.inf
        self._next = -math.inf
        """When the next request may be made."""
        self._ask_at = -math.inf
        """When the ledger is asked again, if it had nothing to lease."""
        self._silent_until = -math.inf
        self._told_at = -math.inf
        self._turn = FIRST_TURN_SECONDS
        self._used = 0.0

    @property
    def silent(self) -> bool:
        """Whether the source asked for a silence that is not over."""
        return self._clock() < self._silent_until

    def reason(self, seconds: float) -> str:
        """Return why there are so many ``seconds`` to wait."""
        if self.silent:
            return f"the source limits the rate of {_NAMES[self._kind]}; goes on in {math.ceil(seconds)} s"
        return f"held to {self._rate:,.3g} {_NAMES[self._kind]} a second"

    def take(self, amount: float, limit: float | None) -> tuple[bool, float]:
        """Take ``amount`` if it can be had; return if it was, and the seconds until its turn, or until asking again."""
        with self._lock:
            now = self._clock()
            if now < self._ask_at:
                return False, self._ask_at - now
            if now >= self._ends:
                self._left = 0.0
            if self._left < amount:
                self._lease(amount, limit, now)
                if self._left < amount:
                    return False, self._ask_at - now
            self._left -= amount
            self._used += amount
            at = max(now, self._begins, self._next)
            self._next = at + amount / self._rate
            return True, at - now

    def refused(self, retry_after: float | None, limit: float | None) -> None:
        """Stop asking for ``retry_after`` seconds, and tell the ledger: once for many refusals, not for each."""
        with self._lock:
            now = self._clock()
            until = now + (retry_after or 0.0)
            told = now < self._told_at + LEASE_SECONDS and until <= self._silent_until + LEASE_SECONDS
            self._silent_until = max(self._silent_until, until)
            self._ask_at = max(self._ask_at, until)
            self._left = 0.0
            if told:
                return
            self._told_at = now
            self._ledger.lower(self._kind, limit, retry_after)

    def _lease(self, amount: float, limit: float | None, now: float) -> None:
        lease = self._ledger.lease(
            self._kind,
            limit,
            needed=amount - self._left,
            wanted=self._wanted(now),
            turn_seconds=self._turn,
        )
        self._rate = lease.rate
        if not lease.amount:
            self._ask_at = now + lease.wait_seconds
            if lease.blocked:
                self._silent_until = max(self._silent_until, self._ask_at)
            return
        self._adjust_turn(now, now + lease.wait_seconds)
        self._left += lease.amount
        self._bought, self._used = lease.amount, 0.0
        self._begins = now + lease.wait_seconds
        self._ends = self._begins + LEASE_SECONDS
        if math.isfinite(lease.amount):
            self._ends = max(self._ends, self._begins + lease.amount / lease.rate)

    def _wanted(self, now: float) -> float:
        """Return as much as was used of the last lease; twice what was bought if it was used up before its time."""
        if math.isinf(self._bought):
            return 0.0
        return self._used if now >= self._ends else 2 * self._bought

    def _adjust_turn(self, now: float, begins: float) -> None:
        """Adjust the turn so that all processes have theirs in about a second, whatever their number.

        If another process leased before this one, the time since then shows how many there are. Adding a
        constant and taking off a share makes unequal turns equal (Chiu and Jain, 1989,
        https://doi.org/10.1016/0169-7552(89)90019-6).
        """
        alone = begins <= max(now, self._next) + LEAST_TURN_SECONDS
        if alone or begins - self._begins <= LEASE_SECONDS:
            self._turn = min(LEASE_SECONDS, self._turn + LONGER_TURN_SECONDS)
        else:
            self._turn = max(LEAST_TURN_SECONDS, self._turn * SHORTER_TURN)


class Purse:
    """The units that a process has reserved and not yet spent; below 0, those that it has spent and not reserved."""

    def __init__(self, ledger: Ledger, clock: Callable[[], float]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._lock = threading.Lock()
        self._left = self._used = self._demand = 0
        self._limit: int | None = None
        self._reserved_at = self._taken_at = -math.inf

    def take(self, units: int, limit: int | None) -> None:
        """Spend ``units``, reserving some ahead. Raises `LimitReached`, `TransientError`."""
        with self._lock:
            if limit != self._limit:
                self._give_back()
                self._limit = limit
            now = self._clock()
            if self._left < units:
                self._reserve(units, now)
            self._left -= units
            self._used += units
            self._taken_at = now

    def put_back(self, units: int) -> None:
        """Take back ``units`` of what was spent, to be spent on something else; below 0, account for more at once."""
        with self._lock:
            self._left += units
            self._used -= units
            if self._left < 0:
                self._give_back()

    def tidy(self) -> None:
        """Give back what has not been touched for `LEASE_SECONDS`."""
        with self._lock:
            if self._clock() >= self._taken_at + LEASE_SECONDS:
                self._give_back()

    def empty(self) -> None:
        """Give back what is left."""
        with self._lock:
            self._give_back()

    def _reserve(self, units: int, now: float) -> None:
        """Reserve as much ahead as is spent in a second; the demand doubles until it is."""
        early = now < self._reserved_at + LEASE_SECONDS
        self._demand = max(units, 2 * self._demand if early else self._used)
        self._left += self._ledger.reserve(needed=units - self._left, wanted=self._demand, limit=self._limit)
        self._reserved_at, self._used = now, 0

    def _give_back(self) -> None:
        """Give back what is left, once: if it is not known whether that arrived, the units stay counted as spent.

        What is lacking is accounted for at the next occasion if it is not known.
        """
        units, self._left = self._left, 0
        if units:
            try:
                self._ledger.give_back(units)
            except TransientError:
                self._left = min(0, units)


@contextmanager
def metered(source: Source, meter: LeasedMeter) -> Iterator[None]:
    """Make a source ask ``meter`` before each request, if its requests are counted."""
    if not isinstance(source, Metered):
        yield
        return
    # The meter stays with the source: a thread that outlives the run must not ask unmetered.
    source.meter = meter
    try:
        yield
    finally:
        meter.close()


_NAMES = {"list": "list requests", "fetch": "fetch requests", "read_units": "read units", "tokens": "tokens"}
