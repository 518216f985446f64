"""Static embeddings whose weights come inside the ``wordllama`` wheel: no key, no network, no download."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from amprenta_vectors.embedders.protocol import Model
from amprenta_vectors.extras import require_extra

MODEL = Model(name="wordllama-l2-supercat", dimension=256, provider="wordllama")
MODELS = {
    MODEL.dimension: MODEL,
    128: Model(name="wordllama-l2-supercat-128", dimension=128, provider="wordllama"),
    64: Model(name="wordllama-l2-supercat-64", dimension=64, provider="wordllama"),
}
"""The models by their dimension: the first values of a vector are a smaller model's (Matryoshka embeddings)."""


class WordLlamaEmbedder:
    """Means of token vectors, not normalised; a text without a token gives a zero vector.

    ``dimension`` is 256, 128 or 64. A text's vector does not depend on the texts beside it. Raises `MissingExtra` if
    wordllama is not installed.
    """

    def __init__(self, dimension: int = MODEL.dimension) -> None:
        self.model = MODELS[dimension]
        package = _import_quietly()
        # The wheel's own folder, because the package looks for its tokenizer under another name than it ships.
        folder = Path(str(package.__file__)).parent
        self._inference = package.WordLlama.load(
            dim=MODEL.dimension,
            trunc_dim=None if dimension == MODEL.dimension else dimension,
            cache_dir=folder,
            disable_download=True,
        )

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return ``(n, dimension)`` float32, one row a text, in order."""
        # wordllama pads every text to the longest of its batch: similar lengths together take two thirds of the time.
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = np.empty((len(texts), self.model.dimension), dtype=np.float32)
        vectors[order] = self._inference.embed([texts[i] for i in order])
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each text has by the model's own tokenizer, without the mark at its beginning."""
        encoded = self._inference.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [sum(each.attention_mask) for each in encoded]


def _import_quietly() -> ModuleType:
    # wordllama calls logging.basicConfig when imported; it does nothing where the root logger has a handler.
    guard = logging.NullHandler()
    logging.getLogger().addHandler(guard)
    try:
        return require_extra("wordllama", "sandbox")
    finally:
        logging.getLogger().removeHandler(guard)
