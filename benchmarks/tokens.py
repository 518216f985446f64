"""How far the estimate of tokens is off, against OpenAI's cl100k_base: ``python benchmarks/tokens.py RANKS [FOLDER]``.

RANKS is OpenAI's file, https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken, which some packages
on PyPI carry, too; it needs ``pip install tiktoken``. FOLDER has other languages: Django's own folder
``django``, whose translations are read. English and code are Python's own standard library.
"""

from __future__ import annotations

import base64
import json
import random
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc_data import topics

from amprenta_vectors.embedders.tokens import estimate_tokens
from amprenta_vectors.sandbox.corpus import read_corpus

LANGUAGES = (
    "de",
    "fr",
    "es",
    "fi",
    "pl",
    "tr",
    "ru",
    "uk",
    "el",
    "ar",
    "he",
    "hi",
    "ja",
    "ko",
    "zh_Hans",
    "th",
    "vi",
    "hu",
)
NOT_FITTED_TO = ("it", "nl", "pt", "sv", "cs", "bg", "fa", "id", "ro", "da", "sk", "ca")
ROOT = Path(__file__).parents[1]
SPLIT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)


def texts_by_kind(folder: Path | None) -> Mapping[str, Sequence[str]]:
    """Return texts of each kind."""
    chunks = read_corpus()
    kinds = {
        "English prose": [part for topic in topics.topics.values() for part in topic.split("\n\n\n") if len(part) > 80],
        "docstrings": [chunk.text for chunk in chunks if "#docstring#" in chunk.id],
        "code": [chunk.text for chunk in chunks if "#source#" in chunk.id],
    }
    if folder is not None:
        kinds |= {language: translations(folder, language) for language in (*LANGUAGES, *NOT_FITTED_TO)}
    drawn = random.Random(1)
    kinds["pages of this project"] = [
        part for page in sorted((ROOT / "docs").glob("*.md")) for part in page.read_text().split("\n\n")
    ]
    kinds["base64"] = [base64.b64encode(drawn.randbytes(150)).decode() for _ in range(200)]
    return kinds


def translations(folder: Path, language: str) -> Sequence[str]:
    """Return the translated messages of a language."""
    found = []
    for file in sorted(folder.rglob(f"{language}/LC_MESSAGES/django.po")):
        for message in re.finditer(r'msgstr(?:\[\d\])? ((?:"(?:[^"\\]|\\.)*"\s*)+)', file.read_text()):
            text = "".join(json.loads(part) for part in re.findall(r'"(?:[^"\\]|\\.)*"', message[1]))
            if len(text) > 15 and "Project-Id" not in text:
                found.append(text)
    return found


def main(ranks: Path, folder: Path | None) -> None:
    """Print a row of a table for each kind of text."""
    import tiktoken

    lines = (line.split() for line in ranks.read_text().splitlines())
    mergeable = {base64.b64decode(token): int(rank) for token, rank in lines}
    encoding = tiktoken.Encoding("cl100k_base", pat_str=SPLIT, mergeable_ranks=mergeable, special_tokens={})
    print("| texts | tokens | estimate |\n|---|---|---|")
    for kind, texts in texts_by_kind(folder).items():
        tokens = sum(map(len, encoding.encode_ordinary_batch(list(texts))))
        print(f"| {kind} | {tokens:,} | {sum(map(estimate_tokens, texts)) / tokens - 1:+.0%} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
