"""Ledgers, which keep the token buckets: with the run, for all its processes, or in memory, for a process alone."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import psycopg2
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backfill.limits.token_bucket import Kind, Lease, TokenBucket, lend, lower, published, refill
from amprenta_vectors.backfill.progress import figures, limits, runs
from amprenta_vectors.backfill.progress.charges import charge_of, to_money
from amprenta_vectors.backfill.progress.states import RunState
from amprenta_vectors.backfill.progress.transactions import transaction
from amprenta_vectors.errors import LimitReached
from amprenta_vectors.pg.errors import to_error
from amprenta_vectors.schema.kinds import Unit

UNLIMITED = Lease(math.inf, math.inf, 0.0)

Result = TypeVar("Result")


class Ledger(Protocol):
    """The limits on requests per second, and on read units or tokens in all. Safe to use from any thread."""

    def lease(self, kind: Kind, limit: float | None, *, needed: float, wanted: float, turn_seconds: float) -> Lease:
        """Lease requests, read units or tokens; see `token_bucket.lend`. Raises `TransientError`."""
        ...

    def lower(self, kind: Kind, limit: float | None, retry_after: float | None) -> None:
        """Lower the rate after the source refused a request; see `token_bucket.lower`. Raises `TransientError`."""
        ...

    def reserve(self, *, needed: int, wanted: int, limit: int | None) -> int:
        """Reserve ``needed`` units or more, and return how many.

        Raises `LimitReached` if ``needed`` would pass the limit, `TransientError`.
        """
        ...

    def give_back(self, units: int) -> None:
        """Give back units that were reserved and not spent; below 0, account for more. Raises `TransientError`."""
        ...


class RunLedger:
    """The ledger of a run, in `migration_limit` and `migration_run`; each call is one short transaction."""

    def __init__(self, engine: Engine, run_id: int) -> None:
        self._engine = engine
        self._run_id = run_id

    def lease(self, kind: Kind, limit: float | None, *, needed: float, wanted: float, turn_seconds: float) -> Lease:
        """Lease from the bucket that all processes of the run share."""

        def buy(connection: Connection) -> Lease:
            held = limits.lock_bucket(connection, self._run_id, kind)
            if held is None and limit is not None:
                limits.open_bucket(connection, self._run_id, kind, limit)
                held = limits.lock_bucket(connection, self._run_id, kind)
            if held is None:
                return UNLIMITED
            bucket, now = held
            bucket = refill(bucket, now, kind, limit)
            if math.isinf(bucket.rate):
                limits.drop_bucket(connection, self._run_id, kind)
                return UNLIMITED
            bucket, lease = lend(bucket, now, needed=needed, wanted=wanted, turn_seconds=turn_seconds)
            limits.store_bucket(connection, self._run_id, kind, bucket)
            return lease

        return self._briefly(f"leasing {kind} requests", buy)

    def lower(self, kind: Kind, limit: float | None, retry_after: float | None) -> None:
        """Slow every process of the run down."""

        def write(connection: Connection) -> None:
            limits.open_bucket(connection, self._run_id, kind, limit or published(kind))
            held = limits.lock_bucket(connection, self._run_id, kind)
            if held is not None:
                bucket, now = held
                bucket = lower(refill(bucket, now, kind, limit), now, kind, retry_after)
                limits.store_bucket(connection, self._run_id, kind, bucket)

        self._briefly(f"lowering the {kind} limit", write)

    def reserve(self, *, needed: int, wanted: int, limit: int | None) -> int:
        """Reserve from the units that the run may spend."""

        def write(connection: Connection) -> int:
            granted = limits.reserve_read_units(connection, self._run_id, needed=needed, wanted=wanted, limit=limit)
            if not granted and limit is not None:
                raise self._spent(connection, needed, limit)
            return granted

        return self._briefly("reserving what a request costs", write)

    def give_back(self, units: int) -> None:
        """Take the units off the run's sum."""
        self._briefly(
            "giving back what was not spent",
            lambda connection: limits.give_back_read_units(connection, self._run_id, units),
        )

    def _spent(self, connection: Connection, needed: int, limit: int) -> LimitReached:
        run = runs.load_run(connection, self._run_id)
        charge = charge_of(run)
        of_limit = f"{charge.spent:,} of {limit:,} {charge.name}"
        if charge.limit is not None and charge.cost is not None:
            of_limit += f" ({to_money(charge.cost)} of {to_money(charge.limit)})"
        option = {"read_units": "max-read-units", "tokens": "max-cost"}[charge.unit]
        if run.state == RunState.FINISHED:
            return LimitReached(
                f"run {run.id} is finished, but has spent {of_limit}, "
                f"and the next request of the comparison may cost {needed:,}",
                hint="amprenta-vectors verify compares within the limit of its own, "
                f"AMPRENTA_{option.replace('-', '_').upper()}",
            )
        left = run.planned_keys - figures.count(connection, self._run_id).keys_done
        listed = "the listing is complete" if run.planned_at else "more will be listed"
        return LimitReached(
            f"run {run.id} has spent or reserved {of_limit}, "
            f"and the next request may cost {needed:,}; {left:,} planned keys are not done, {listed}",
            hint=f"raise the limit, amprenta-vectors limits {run.id} --{option} N, then "
            "amprenta-vectors backfill --resume",
        )

    def _briefly(self, doing: str, step: Callable[[Connection], Result]) -> Result:
        try:
            with transaction(self._engine) as connection:
                return step(connection)
        except (DBAPIError, psycopg2.Error) as error:
            raise to_error(error, doing) from error


class OwnLedger:
    """The ledger of one process, in memory."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, unit: Unit = "read_units") -> None:
        self._clock = clock
        self._unit = unit
        self._lock = threading.Lock()
        self._buckets: dict[Kind, TokenBucket] = {}
        self._reserved = 0

    def lease(self, kind: Kind, limit: float | None, *, needed: float, wanted: float, turn_seconds: float) -> Lease:
        """Lease at the process's own rate."""
        with self._lock:
            now = self._clock()
            bucket = refill(self._bucket(kind, now), now, kind, limit)
            self._buckets[kind], lease = lend(bucket, now, needed=needed, wanted=wanted, turn_seconds=turn_seconds)
            return lease

    def lower(self, kind: Kind, limit: float | None, retry_after: float | None) -> None:
        """Slow the process down."""
        with self._lock:
            now = self._clock()
            self._buckets[kind] = lower(refill(self._bucket(kind, now), now, kind, limit), now, kind, retry_after)

    def reserve(self, *, needed: int, wanted: int, limit: int | None) -> int:
        """Reserve just ``needed``: there is no other process to share the limit with."""
        with self._lock:
            if limit is not None and self._reserved + needed > limit:
                name = self._unit.replace("_", " ")
                variable = {"read_units": "AMPRENTA_MAX_READ_UNITS", "tokens": "AMPRENTA_MAX_COST"}[self._unit]
                raise LimitReached(
                    f"{self._reserved:,} of {limit:,} {name} are spent, and the next request may cost {needed:,}",
                    hint=f"export {variable}=N with a higher N, and run the command again",
                )
            self._reserved += needed
            return needed

    def give_back(self, units: int) -> None:
        """Take the units off the sum."""
        with self._lock:
            self._reserved -= units

    def _bucket(self, kind: Kind, now: float) -> TokenBucket:
        return self._buckets.get(kind) or TokenBucket(math.inf, filled_at=now)
