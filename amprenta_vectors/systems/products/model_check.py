"""The check that the configured embedder is the model that made ChromaDB's vectors."""

from __future__ import annotations

import threading

from amprenta_vectors.backends.protocol import Source
from amprenta_vectors.backends.rows.source import RowsSource
from amprenta_vectors.backfill.engine.backoff import Backoff
from amprenta_vectors.backfill.engine.fetching import fetch_all
from amprenta_vectors.backfill.verify.model_check import LEAST_TEXTS, SAMPLE, Checked, compare_texts
from amprenta_vectors.config import Settings
from amprenta_vectors.embedders.protocol import Embedder
from amprenta_vectors.errors import ModelMismatch
from amprenta_vectors.schema.keymaps import KeyMap


def check_product_model(
    settings: Settings, embedder: Embedder, source: Source, key_map: KeyMap, rows: RowsSource
) -> Checked | None:
    """Embed up to 50 of Chroma's documents again and compare; return None if there are fewer than 5.

    ``source`` is opened with texts; the text of a record without a document is its product's own. Raises
    `ModelMismatch` saying what to set, `TransientError` if Chroma or the embedder is away.
    """
    retry = Backoff(settings.retry_seconds, threading.Event(), lambda _: None)
    page, _ = next(iter(source.iter_keys()), ((), None))
    sample = list(page[:: max(1, len(page) // SAMPLE)])[:SAMPLE]
    batch = key_map.apply(fetch_all(retry, source, sample)).validated(cosine=True)
    ids = [key[0] for key in batch.keys or ()]
    documents = batch.texts or [None] * len(batch)
    own = {} if all(documents) else rows.texts(ids)
    texts = [document or own.get(name, "") for document, name in zip(documents, ids, strict=True)]
    kept = [place for place, text in enumerate(texts) if text]
    if len(kept) < LEAST_TEXTS:
        return None
    try:
        return compare_texts(
            embedder, [texts[place] for place in kept], batch.vectors[kept], f"ChromaDB ({source.description.identity})"
        )
    except ModelMismatch as error:
        named = "OLLAMA_API_MODEL_EMBEDDING" if settings.embedder == "ollama" else "AMPRENTA_EMBEDDER"
        error.hint = (
            f"set {named} to the model that made them; to move what ChromaDB has and embed nothing: "
            "AMPRENTA_TABLE=products AMPRENTA_EMBEDDER= amprenta-vectors backfill --keys-from source"
        )
        raise
