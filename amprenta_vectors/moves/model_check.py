"""The check, before a run starts, that its vectors and those in the column are of one model."""

from __future__ import annotations

import threading

from amprenta_vectors.backfill.engine.context import open_retry
from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.engine.observer import Observer
from amprenta_vectors.backfill.progress import runs
from amprenta_vectors.backfill.progress.keys_from import is_retry
from amprenta_vectors.backfill.verify.model_check import LEAST_TEXTS, SAMPLE, check_model, earlier_vectors_unknown
from amprenta_vectors.config import Settings
from amprenta_vectors.embedders.factory import open_embedder
from amprenta_vectors.moves.ends import Ends
from amprenta_vectors.moves.events import Noticed


def check_one_model(settings: Settings, ends: Ends, namespace: str, job: Job, observer: Observer) -> None:
    """Tell the observer if a model is unknown, and what was done about it.

    A run that is resumed was checked before, and so were the rows that a retry takes again. Raises `ModelMismatch` if
    texts embedded again give other vectors.
    """
    if is_retry(job.kind.keys_from):
        return
    with ends.engine.connect() as connection:
        begun = runs.unfinished_run(connection, job.slice.target, job.slice.scope)
        unknown_rows = begun is None and earlier_vectors_unknown(connection, job.slice)
    if begun is None and (job.model is None or unknown_rows):
        for text in _checked(settings, ends, namespace, job):
            observer(Noticed(text))


def _checked(settings: Settings, ends: Ends, namespace: str, job: Job) -> list[str]:
    unknown = f"the model of the vectors {'to be moved' if job.model is None else f'in {job.slice.target}'} is unknown"
    if settings.embedder is None:
        name = "set EMBEDDING_MODEL to its name, or " if job.model is None else ""
        return [f"{unknown} and unchecked; {name}set AMPRENTA_EMBEDDER to compare {SAMPLE} texts"]
    embedder = open_embedder(settings)
    retry = open_retry(job, threading.Event())
    source = ends.origin.open(job.slice.table, namespace, with_metadata=True)
    found = check_model(ends.engine, job, source, embedder, retry)
    if not found:
        return [f"{unknown} and unchecked: there are fewer than {LEAST_TEXTS} texts to embed again"]
    return [
        f"{checked.texts} texts of {checked.whose} embedded again by {embedder.model.name}: "
        f"median cosine {checked.median:.4f}"
        for checked in found
    ]
