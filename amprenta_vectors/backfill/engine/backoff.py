"""Trying a step again after a transient error: one policy for the source and for the database."""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import copy
from typing import TypeVar

import psycopg2
from sqlalchemy.exc import DBAPIError
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_delay,
)
from tenacity.nap import sleep_using_event
from tenacity.wait import wait_random_exponential

from amprenta_vectors.backfill.engine.hold import Held
from amprenta_vectors.errors import RateLimited, TransientError
from amprenta_vectors.pg.errors import to_error

FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 20.0

Result = TypeVar("Result")


class Backoff:
    """Runs a step again while it fails with a `TransientError`, for ``seconds`` in all, until ``stop`` is set.

    ``check`` is called before each try; with it, `Held` is raised if ``stop`` put an end to the tries.

    The wait is random below a bound that doubles from 0.2 s to ``longest_wait_seconds`` (full jitter,
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), and at least what the source asked for.
    """

    def __init__(
        self,
        seconds: float,
        stop: threading.Event,
        on_wait: Callable[[str | None], None],
        check: Callable[[], None] | None = None,
        *,
        longest_wait_seconds: float = LONGEST_WAIT_SECONDS,
    ) -> None:
        self._seconds = seconds
        self._stop = stop
        self._on_wait = on_wait
        self._check = check
        self._jitter = wait_random_exponential(multiplier=FIRST_WAIT_SECONDS, max=longest_wait_seconds)
        self._passed_on: type[TransientError] | tuple[()] = ()

    def passing_on(self, kind: type[TransientError]) -> Backoff:
        """Return a retry like this one that raises errors of ``kind`` at once."""
        other = copy(self)
        other._passed_on = kind
        return other

    @property
    def stopped(self) -> bool:
        """Whether ``stop`` is set."""
        return self._stop.is_set()

    def __call__(self, step: Callable[[], Result]) -> Result:
        """Return the step's result. Raises its last error when time runs out or ``stop`` is set."""
        waited = cut_off = False
        out_of_time = stop_after_delay(self._seconds)

        def attempt() -> Result:
            if self._check is not None:
                self._check()
            return step()

        def is_over(state: RetryCallState) -> bool:
            nonlocal cut_off
            cut_off = self._stop.is_set()
            return cut_off or out_of_time(state)

        def say(state: RetryCallState) -> None:
            nonlocal waited
            waited = True
            error = state.outcome.exception() if state.outcome is not None else None
            self._on_wait(getattr(error, "message", None))

        retrying = Retrying(
            retry=retry_if_exception_type(TransientError) & retry_if_not_exception_type(self._passed_on),
            stop=is_over,
            wait=self._wait,
            sleep=sleep_using_event(self._stop),
            before_sleep=say,
            reraise=True,
        )
        try:
            result = retrying(attempt)
        except TransientError as error:
            if cut_off and self._check is not None:
                raise Held from error
            raise
        if waited:
            self._on_wait(None)
        return result

    def database(self, doing: str, step: Callable[[], Result]) -> Result:
        """Return the result of a database step, tried again after transient errors. Raises `AmprentaError`."""

        def attempt() -> Result:
            try:
                return step()
            except (DBAPIError, psycopg2.Error) as error:
                raise to_error(error, doing) from error

        return self(attempt)

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after if isinstance(error, RateLimited) and error.retry_after else 0.0
        return asked + self._jitter(state)
