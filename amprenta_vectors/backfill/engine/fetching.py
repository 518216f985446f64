"""Fetching a batch from its source, which may refuse it as a whole because of some of its keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from amprenta_vectors.backends.protocol import Source
from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.bisect import ALWAYS_ISOLATED, Isolated, errors_of, isolate
from amprenta_vectors.errors import KeysRefused, RowError
from amprenta_vectors.reasons import Reason


def fetch_all(retry: Backoff, source: Source, keys: Sequence[str]) -> VectorBatch:
    """Return what ``source`` has of ``keys``; a key that it refuses to look up is in ``quarantined``.

    A refused request is halved until the refused keys stand alone: at most `bisect.most_tries` calls, and
    `bisect.budget` whatever happens. A call that is tried again after a transient error counts once. Call it outside
    any transaction. Raises `KeysRefused` if the source answered no call for a batch of more than 64 keys: then the
    keys are not the cause.
    """
    answers: list[VectorBatch] = []
    fetch: Callable[[Sequence[str]], VectorBatch] = source.fetch

    def attempt(start: int, end: int) -> KeysRefused | None:
        try:
            answers.append(retry(partial(fetch, keys[start:end])))
        except KeysRefused as error:
            return error
        return None

    found = isolate(len(keys), attempt)
    refusals = [error for _, error in found.alone] + [error for *_, error in found.unsettled]
    if refusals and not answers and len(keys) > ALWAYS_ISOLATED:
        raise refusals[0]
    if not refusals and len(answers) == 1:
        return answers[0]
    told = Isolated(
        [(row, error.message) for row, error in found.alone],
        [(start, end, error.message) for start, end, error in found.unsettled],
    )
    refused = errors_of(told, keys, Reason.ID_REFUSED)
    return _joined(answers, refused, source.description.dimension)


def _joined(answers: Sequence[VectorBatch], refused: Sequence[RowError], dimension: int) -> VectorBatch:
    """Join the answers to one batch; a source has texts, metadata and sparse values in all its answers or in none."""
    texts = [text for answer in answers for text in answer.texts or ()]
    metadata = [fields for answer in answers for fields in answer.metadata or ()]
    sparse = [values for answer in answers for values in answer.sparse or ()]
    return VectorBatch(
        source_keys=[key for answer in answers for key in answer.source_keys],
        vectors=np.concatenate([np.empty((0, dimension), np.float32), *(answer.vectors for answer in answers)]),
        texts=texts if any(answer.texts is not None for answer in answers) else None,
        metadata=metadata if any(answer.metadata is not None for answer in answers) else None,
        sparse=sparse if any(answer.sparse is not None for answer in answers) else None,
        quarantined=(*(error for answer in answers for error in answer.quarantined), *refused),
    )
