"""The check of rows embedded from their own texts: none lacks its vector, and a sample embedded again agrees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from amprenta_vectors.backends.protocol import TextSource
from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.backfill.engine.fetching import fetch_all
from amprenta_vectors.backfill.engine.keys import Pages
from amprenta_vectors.backfill.verify.compare import KINDS, Difference, Verification
from amprenta_vectors.backfill.verify.model_check import LEAST_COSINE
from amprenta_vectors.batch import Vectors
from amprenta_vectors.errors import TransientError
from amprenta_vectors.schema.row_keys import EmptyRows
from amprenta_vectors.schema.slice import Slice

SAMPLE = 200
"""How many rows are embedded again: if one row in 50 is wrong, at least one of these is, 98 times in 100."""
MOST_APART = float(np.sqrt(2 - 2 * LEAST_COSINE))
"""How far a vector may lie from the one embedded again, as a share of that one's length: two vectors of one length
whose cosine is 0.99 lie so far apart."""


class SampleVerifier:
    """Compares the rows of one scope of a table from the catalogue with a source whose vectors are computed.

    It looks through all rows for those with a text and without a vector. It embeds `SAMPLE` of the rows with a vector
    again, by their text as it is now; if the table tells which rows were embedded from their own text, only of those.
    """

    def __init__(
        self,
        engine: Engine,
        slice_: Slice,
        source: TextSource,
        *,
        retry: Backoff,
    ) -> None:
        self._engine = engine
        self._slice = slice_
        self._source = source
        self._retry = retry

    def run(self, on_difference: Callable[[Difference], None]) -> Verification:
        """Compare the rows; return how many were embedded again, and how many differ.

        Raises `TransientError` if the retry was told to stop.
        """
        counts: dict[str, int] = dict.fromkeys(KINDS, 0)
        stored = self._retry.database("choosing rows to embed again", self._sample)
        for difference in (*self._lacking(), *self._differing(stored)):
            counts[difference.kind] += 1
            on_difference(difference)
        return Verification(len(stored), counts)

    def _lacking(self) -> Iterator[Difference]:
        empty = EmptyRows(self._engine, self._slice)
        with closing(Pages(empty, None)) as pages:
            token: str | None = ""
            while token is not None:
                if self._retry.stopped:
                    raise TransientError("the verification was interrupted", hint="amprenta-vectors verify")
                keys, token = self._retry.database("listing keys", pages.next)
                texts = self._retry(partial(self._source.texts, keys))
                yield from (Difference("missing", key) for key, text in texts.items() if text)

    def _sample(self) -> dict[str, Vectors]:
        """Return the vectors of `SAMPLE` rows, chosen by chance, by source key."""
        slice_ = self._slice
        wanted: list[sa.ColumnElement[bool]] = [slice_.embedding().is_not(None)]
        if slice_.table.text_hash is not None:
            wanted.append(slice_.embedded_here())
        chosen = (
            sa.select(*slice_.key_texts(), slice_.embedding())
            .where(*wanted, *slice_.in_scope())
            .order_by(sa.func.random())
            .limit(SAMPLE)
            .subquery()
        )
        *keys, embedding = chosen.c
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(slice_.send(embedding), *keys)).all()
        names = [slice_.key_map.to_source(tuple(key)) for _, *key in rows]
        return dict(zip(names, slice_.received([sent for sent, *_ in rows]), strict=True))

    def _differing(self, stored: Mapping[str, Vectors]) -> Iterator[Difference]:
        again = fetch_all(self._retry, self._source, list(stored))
        for key, vector in zip(again.source_keys, again.vectors, strict=True):
            length = float(np.linalg.norm(vector))
            apart = float(np.linalg.norm(stored[key] - vector)) / length if length else float("inf")
            if not apart <= MOST_APART:
                yield Difference("different", key, f"its text embedded again lies {apart:.2f} of its length apart")
        for error in again.quarantined:
            yield Difference("extra", error.key, f"{error.reason}: {error.detail}")
