"""The rule by which a row's text is embedded: whole, cut or in chunks, or not at all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from amprenta_vectors.batch import Vectors
from amprenta_vectors.config import LongTexts
from amprenta_vectors.extras import require_extra
from amprenta_vectors.reasons import Reason

_WORD = re.compile(r"\w")


@dataclass(frozen=True)
class TextRule:
    """Says what becomes of a text of more than ``longest`` characters: it is refused, cut, or embedded in chunks.

    The vector of a text in chunks is the mean of theirs. Without ``longest``, every text is embedded whole.
    """

    longest: int | None = None
    long_texts: LongTexts = "refuse"

    def fault_of(self, text: str) -> tuple[Reason, str] | None:
        """Return why a text is not embedded, for the detail after ``nothing to embed``; None if it is."""
        if not text:
            return Reason.NO_TEXT, "no text"
        if not _WORD.search(text):
            return Reason.NO_WORDS, f"no letter and no digit in {len(text):,} characters"
        if self.long_texts == "refuse" and self._is_long(text):
            hint = "AMPRENTA_LONG_TEXTS=cut or chunk takes it"
            return Reason.TOO_LONG, f"{len(text):,} characters; AMPRENTA_TEXT_CHARACTERS is {self.longest:,}; {hint}"
        return None

    def pieces(self, text: str) -> Sequence[str]:
        """Return what of a text is embedded: itself, its beginning, or all its chunks."""
        if self.longest is None or not self._is_long(text):
            return [text]
        if self.long_texts == "cut":
            return [text[: self.longest]]
        splitters = require_extra("langchain_text_splitters", "chunks")
        splitter: Any = splitters.RecursiveCharacterTextSplitter(chunk_size=self.longest, chunk_overlap=0)
        return [piece for piece in splitter.split_text(text) if _WORD.search(piece)]

    def _is_long(self, text: str) -> bool:
        return self.longest is not None and len(text) > self.longest


EVERY_TEXT_WHOLE = TextRule()


def join_pieces(pieces: Sequence[Sequence[str]], vectors: dict[str, Any], dimension: int) -> Vectors:
    """Return a vector for each text: that of its only piece, or the mean of its pieces'; ``(n, dimension)`` float32."""
    means = [
        vectors[parts[0]] if len(parts) == 1 else np.mean([vectors[part] for part in parts], axis=0) for parts in pieces
    ]
    return np.array(means, np.float32).reshape(len(pieces), dimension)
