"""Models that run on this machine, through the official ``sentence-transformers`` package."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amprenta_vectors.embedders.answers import to_matrix
from amprenta_vectors.embedders.protocol import Model
from amprenta_vectors.errors import SourceNotFound
from amprenta_vectors.extras import require_extra

PROBE = "dimension"


class SentenceTransformersEmbedder:
    """The model of a name on huggingface.co, which the package fetches once and keeps, or of a folder.

    A text longer than the model reads is cut by it, as for every user of the package. Safe to share between threads,
    which take turns: the model itself uses every processor. Opening it embeds one word, to learn the dimension. Raises
    `MissingExtra`, and `SourceNotFound` for a model that is not there.
    """

    def __init__(self, name_or_path: str) -> None:
        package = require_extra("sentence_transformers", "sentence_transformers")
        try:
            self._transformer: Any = package.SentenceTransformer(name_or_path)
        except (OSError, ValueError) as error:
            raise SourceNotFound(
                f"sentence-transformers finds no model {name_or_path!r}: {type(error).__name__}",
                hint="export SENTENCE_TRANSFORMERS_MODEL=… with a name on huggingface.co, or the path of a folder",
            ) from error
        self._turn = threading.Lock()
        # A folder's own name is the model's, wherever it lies on this host.
        folder = Path(name_or_path)
        name = folder.resolve().name if folder.is_dir() else name_or_path
        self.model = Model(name, len(self._vectors([PROBE])[0]), "sentence_transformers")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return ``(n, dimension)`` float32, one row a text, in order. Raises `SourceError` for other vectors."""
        return to_matrix(self._vectors(texts), len(texts), self.model.dimension, "sentence_transformers")

    def _vectors(self, texts: Sequence[str]) -> list[list[float]]:
        with self._turn:
            found = self._transformer.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        vectors: list[list[float]] = np.asarray(found, np.float32).tolist()
        return vectors
