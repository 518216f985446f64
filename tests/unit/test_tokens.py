"""The tokens of a text, estimated without a tokenizer, against one that comes in a wheel."""

from __future__ import annotations

import pytest

from amprenta_vectors.embedders.tokens import ERROR, estimate_tokens, likely_tokens, most_tokens
from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder
from amprenta_vectors.sandbox.corpus import read_corpus

STRANGE = [
    "",
    " ",
    "\n\n\t",
    "𝔘𝔫𝔦",
    "👩‍👩‍👧‍👦" * 20,
    "日本語のテキスト",
    "Ελληνικά",
    "aaaa" * 100,
    "1234567890" * 9,
    "<s></s>",
    "\x00\x01",
]


@pytest.fixture(scope="module")
def llama() -> WordLlamaEmbedder:
    return WordLlamaEmbedder()


def test_english_and_code_are_estimated_within_the_error_beside_what_llama_has_more(llama: WordLlamaEmbedder) -> None:
    texts = [chunk.text for chunk in read_corpus(3000)]
    # Llama 2's vocabulary is a third of the one that the weights were fitted to: it has some 20 % more tokens.
    assert sum(map(estimate_tokens, texts)) == pytest.approx(sum(llama.count_tokens(texts)) / 1.2, rel=0.1)


def test_no_text_has_more_tokens_than_what_is_reserved_for_it(llama: WordLlamaEmbedder) -> None:
    texts = [*STRANGE, *(chunk.text for chunk in read_corpus(2000))]
    assert [
        text for text, tokens in zip(texts, llama.count_tokens(texts), strict=True) if tokens > most_tokens([text])
    ] == []


def test_where_nobody_counts_the_estimate_and_its_error_are_taken_and_never_more_than_the_most() -> None:
    text = "The page about whatever it is that pages are about."
    assert likely_tokens([text] * 10) == pytest.approx((1 + ERROR) * 10 * estimate_tokens(text), abs=1)
    assert likely_tokens(["€" * 4]) <= most_tokens(["€" * 4])
    assert likely_tokens(["#a1" * 50]) <= most_tokens(["#a1" * 50])
