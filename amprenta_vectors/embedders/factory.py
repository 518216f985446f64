"""The embedder of a name."""

from __future__ import annotations

from typing import Literal

from amprenta_vectors.embedders.protocol import Embedder

EmbedderName = Literal["wordllama"]


def open_embedder(name: EmbedderName) -> Embedder:
    """Load what ``AMPRENTA_EMBEDDER`` names. Raises `MissingExtra`."""
    # Imported here: a model is loaded only where it is asked for.
    from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder

    return {"wordllama": WordLlamaEmbedder}[name]()
