"""The check that a column and scope has one model: by what runs and rows say, else by embedding texts again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.backends.protocol import Source
from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.backfill.engine.fetching import fetch_all
from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.engine.keys import Keys, Pages
from amprenta_vectors.backfill.progress import runs
from amprenta_vectors.backfill.verify.row_sample import has_unnamed_vectors, some_rows
from amprenta_vectors.batch import Vectors
from amprenta_vectors.embedders.protocol import Embedder
from amprenta_vectors.errors import DimensionMismatch, ModelMismatch
from amprenta_vectors.schema.row_keys import EmptyRows
from amprenta_vectors.schema.slice import Slice

SAMPLE = 50
"""The most texts that are embedded again."""
LEAST_TEXTS = 5
"""The fewest texts that say something of a model."""
LEAST_COSINE = 0.99
"""The least median cosine of one model's vectors: how it was served (half precision, quantisation) makes far less
difference; another model makes far more."""
MOST_PAGES = 5
"""The most pages of keys that are listed to find texts."""


@dataclass(frozen=True)
class Checked:
    """The result of embedding texts again: how many texts, whose vectors they were compared with, the median cosine."""

    texts: int
    whose: str
    median: float


def earlier_vectors_unknown(connection: Connection, slice_: Slice) -> bool:
    """Return whether some rows of the scope hold vectors that no run wrote and whose model the row does not name."""
    return not runs.has_written(connection, slice_.target, slice_.scope) and has_unnamed_vectors(connection, slice_)


def check_model(engine: Engine, job: Job, texts_source: Source, embedder: Embedder, retry: Backoff) -> list[Checked]:
    """Embed up to 50 texts of each of source and column again, and compare those whose vectors have no known model.

    The source is compared if the job names no model; the column if its vectors are of unknown model and the job names
    none or the embedder's. ``texts_source`` is the job's source opened with texts. Fewer than 5 texts are not compared.
    Raises `ModelMismatch` if the median cosine is below 0.99, `DimensionMismatch` if the embedder's vectors are not as
    long as the column's.
    """
    name, dimension = embedder.model.name, embedder.model.dimension
    if dimension != job.slice.table.dimension:
        raise DimensionMismatch(
            f"AMPRENTA_EMBEDDER makes vectors of {dimension} dimensions, {job.slice.target} has "
            f"{job.slice.table.dimension}: they are not of one model",
            hint="set AMPRENTA_EMBEDDER to the model's own embedder, or leave it out and set EMBEDDING_MODEL",
        )
    found = []
    if job.model is None:
        found.append(compare_texts(embedder, *_of_source(engine, job, texts_source, retry), "the source"))
    with engine.connect() as connection:
        unknown = job.model in {None, name} and earlier_vectors_unknown(connection, job.slice)
        sample = _of_rows(connection, job.slice) if unknown else None
    if sample is not None:
        found.append(compare_texts(embedder, *sample, job.slice.table.target))
    return [checked for checked in found if checked is not None]


def compare_texts(embedder: Embedder, texts: Sequence[str], vectors: Vectors, whose: str) -> Checked | None:
    """Embed ``texts`` again and compare them with their ``vectors``; return None if there are fewer than 5.

    Raises `ModelMismatch` if the median cosine is below 0.99.
    """
    if len(texts) < LEAST_TEXTS:
        return None
    median = median_cosine(vectors, embedder.embed(texts))
    if median < LEAST_COSINE:
        raise ModelMismatch(
            f"the vectors of {whose} are not from {embedder.model.name}: of {len(texts)} texts embedded again the "
            f"median cosine is {median:.3f}, expected at least {LEAST_COSINE}",
            hint="set EMBEDDING_MODEL to the model that made them; AMPRENTA_EMBEDDER is for that model's own embedder",
        )
    return Checked(len(texts), whose, median)


def median_cosine(left: Vectors, right: Vectors) -> float:
    """Return the median over rows of the cosine between two matrices of one shape; 0 for a row without direction."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    products = np.einsum("ij,ij->i", left.astype(np.float64), right.astype(np.float64))
    return float(np.median(np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)))


def _of_source(engine: Engine, job: Job, source: Source, retry: Backoff) -> tuple[list[str], Vectors]:
    """Return texts and the source's vectors of them; the text of a record that has none is its row's own."""
    keys: Keys = source if job.inserts else EmptyRows(engine, job.slice)
    texts: list[str] = []
    vectors: list[Vectors] = []
    # A whole listing would start by looking for parts, which costs more than the sample.
    few = getattr(source, "some_keys", None) if job.inserts else None
    for page in [retry(few)] if few is not None else _first_pages(keys, retry):
        batch = job.slice.key_map.apply(fetch_all(retry, source, _spread(page)))
        batch = batch.validated(cosine=True, storage="vector")
        own = {} if batch.texts is not None and all(batch.texts) else _row_texts(engine, job, batch.keys or ())
        for row, key in enumerate(batch.keys or ()):
            text = (batch.texts[row] if batch.texts is not None else None) or own.get(key)
            if text and len(texts) < SAMPLE:
                texts.append(text)
                vectors.append(batch.vectors[row])
        if len(texts) == SAMPLE:
            break
    return texts, np.array(vectors, np.float32).reshape(-1, job.slice.table.dimension)


def _first_pages(keys: Keys, retry: Backoff) -> Iterator[Sequence[str]]:
    with closing(Pages(keys, None)) as pages:
        for _ in range(MOST_PAGES):
            page, following = retry.database("listing keys", pages.next)
            yield page
            if following is None:
                return


def _spread(keys: Sequence[str]) -> list[str]:
    """Return at most 50 keys from all over a page."""
    return list(keys[:: -(-len(keys) // SAMPLE)]) if keys else []


def _row_texts(engine: Engine, job: Job, keys: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """Return the text of the rows with target ``keys``."""
    slice_ = job.slice
    if slice_.table.text is None or not keys:
        return {}
    statement = sa.select(slice_.rows.c[slice_.table.text], *slice_.key_texts()).where(slice_.among(keys))
    with engine.connect() as connection:
        return {tuple(key): text for text, *key in connection.execute(statement) if text}


def _of_rows(connection: Connection, slice_: Slice) -> tuple[list[str], Vectors]:
    """Return texts and vectors of some rows of unknown model."""
    table = slice_.table
    if table.text is None:
        return [], slice_.received([])
    rows = some_rows(slice_, with_values=True)
    wanted = [rows.c.filled, rows.c.text.is_not(None), rows.c.text != ""]
    if table.model is not None:
        wanted.append(rows.c.model.is_(None))
    found = connection.execute(sa.select(rows.c.text, rows.c.vector).where(*wanted).limit(SAMPLE)).all()
    return [row.text for row in found], slice_.received([row.vector for row in found])
