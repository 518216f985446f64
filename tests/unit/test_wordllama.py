from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from amprenta_vectors.embedders.protocol import Embedder
from amprenta_vectors.embedders.wordllama import MODEL, WordLlamaEmbedder


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return WordLlamaEmbedder()


def test_it_gives_one_float32_row_a_text_in_order(embedder: Embedder) -> None:
    vectors = embedder.embed(["open a file", "close a socket", "open a file"])
    assert vectors.shape == (3, MODEL.dimension)
    assert vectors.dtype == np.float32
    assert (vectors[0] == vectors[2]).all()
    assert (vectors[0] != vectors[1]).any()


def test_no_texts_give_no_rows(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, MODEL.dimension)


def test_a_texts_vector_does_not_depend_on_its_neighbours(embedder: Embedder) -> None:
    texts = [f"line {n} " * (n % 40 + 1) for n in range(200)]
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    assert (together == alone).all()


def test_an_empty_text_gives_a_zero_vector_which_cosine_quarantines(embedder: Embedder) -> None:
    assert not embedder.embed([""]).any()


def test_what_means_alike_lies_closer(embedder: Embedder) -> None:
    question, answer, other = embedder.embed(
        ["How do I read a file?", "Open the file and read its contents.", "Multiply two matrices."]
    )

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    assert cosine(question, answer) > cosine(question, other)


def test_it_needs_no_network_and_leaves_logging_alone() -> None:
    program = """
import logging, sys
def refuse(event, arguments):
    if event in {"socket.connect", "socket.getaddrinfo", "socket.sendto"}:
        raise SystemExit(f"network: {event} {arguments}")
sys.addaudithook(refuse)
from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder
WordLlamaEmbedder().embed(["text"])
assert logging.getLogger().handlers == []
assert logging.getLogger().level == logging.WARNING
"""
    environment = {"HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
