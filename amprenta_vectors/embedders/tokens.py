"""The tokens of a text, estimated without any model's own tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence

ERROR = 0.25
"""The error of an estimate for many texts: within 5 % for English and code, within 25 % for 30 other languages.

Measured against OpenAI's cl100k_base (docs/embed-texts.md has the table; benchmarks/tokens.py makes it). What is no
language, such as base64, has up to twice the tokens that are estimated.
"""

_WORD = re.compile(r"[A-Za-z]+")
_DIGITS = re.compile(r"[0-9]{1,3}")
_SIGNS = re.compile(r"[^\w\s]+|_+")
_BREAKS = re.compile(r"\s{2,}|\n")
_OTHER_LATIN = re.compile("[\u0080-\u024f\u1e00-\u203f]")
_CYRILLIC = re.compile("[\u0400-\u052f]")
_OTHER = re.compile("[\u0250-\u03ff\u0530-\u1dff\u2040-\U0010ffff]")
_FREE_LETTERS = 5


def estimate_tokens(text: str) -> float:
    """Return about how many tokens a text has.

    The weights were fitted to cl100k_base: a word is 0.82 of a token and each letter beyond its fifth a third of one, a
    group of at most three digits is one and a half; other scripts are counted by the letter.
    """
    words = _WORD.findall(text)
    letters_beyond = sum(len(word) - _FREE_LETTERS for word in words if len(word) > _FREE_LETTERS)
    return (
        0.82 * len(words)
        + 0.32 * letters_beyond
        + 1.5 * len(_DIGITS.findall(text))
        + 0.92 * len(_SIGNS.findall(text))
        + 0.15 * len(_BREAKS.findall(text))
        + 1.0 * len(_OTHER_LATIN.findall(text))
        + 0.5 * len(_CYRILLIC.findall(text))
        + 0.9 * len(_OTHER.findall(text))
    )


_MARKS = 2
"""The tokens that a model may add to a text, one before it and one after it."""


def most_tokens(texts: Sequence[str]) -> int:
    """Return the most tokens that texts can have: one has a byte of UTF-8 at least, whatever the model."""
    return sum(len(text.encode()) + _MARKS for text in texts)


def likely_tokens(texts: Sequence[str]) -> int:
    """Return the tokens that texts are taken to have where nobody counts them: as estimated, and `ERROR` more."""
    return min(most_tokens(texts), round((1 + ERROR) * sum(map(estimate_tokens, texts))) + 1)
