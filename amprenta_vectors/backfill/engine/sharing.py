"""The vectors of texts that a run has paid for, shared by its batches and processes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backends.protocol import PaidSource, Source, Unshared
from amprenta_vectors.backfill.engine.context import RunContext
from amprenta_vectors.backfill.progress import texts
from amprenta_vectors.batch import Vectors
from amprenta_vectors.pg.errors import to_error, unless_away


class RunTexts:
    """The texts of one run, as one of its processes sees them. Safe to use from any thread."""

    def __init__(self, context: RunContext) -> None:
        self._context = context

    def take(self, digests: Collection[bytes]) -> tuple[set[bytes], dict[bytes, Vectors]]:
        """Take the texts that nobody of the run embeds now, and return the vectors of those that are embedded."""
        context = self._context
        try:
            with context.transaction() as connection:
                ours, found = texts.take(connection, context.run.id, context.owner, digests, context.job.lease_seconds)
        except DBAPIError as error:
            raise to_error(error, "looking for texts that are embedded") from error
        return ours, {digest: np.frombuffer(vector, "<f4") for digest, vector in found.items()}

    def publish(self, vectors: Mapping[bytes, Vectors]) -> None:
        """Keep vectors for the run, also while it is held: they are paid for."""
        context = self._context
        raw = {digest: vector.astype("<f4").tobytes() for digest, vector in vectors.items()}

        def step() -> None:
            with context.transaction() as connection:
                texts.publish(connection, context.run.id, raw)

        context.final_retry.database("keeping vectors", step)

    def give_back(self, digests: Collection[bytes]) -> None:
        """Give texts back if the database can be reached; otherwise their leases run out by themselves."""

        def step() -> None:
            with self._context.transaction() as connection:
                texts.give_back(connection, self._context.run.id, self._context.owner, digests)

        unless_away(step)

    def wait(self) -> None:
        """Wait as long as an idle worker does. Raises `Held` if nothing may go on."""
        self._context.hold.check()
        self._context.hold.held.wait(self._context.job.poll_seconds)

    def renew(self) -> None:
        """Renew the leases of the texts that this process holds."""

        def step() -> None:
            with self._context.transaction() as connection:
                texts.renew(connection, self._context.run.id, self._context.owner, self._context.job.lease_seconds)

        unless_away(step)


@contextmanager
def shared(source: Source, run_texts: RunTexts) -> Iterator[None]:
    """Make a source that pays for texts ask ``run_texts`` for their vectors."""
    if not isinstance(source, PaidSource):
        yield
        return
    source.shared = run_texts
    try:
        yield
    finally:
        # What is embedded from now on, to verify the run, is to be embedded again.
        source.shared = Unshared()
