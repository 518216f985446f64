"""A real corpus that every machine has: the docstrings and function sources of Python's own standard library."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
import sysconfig
import textwrap
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from amprenta_vectors.embedders.wordllama import MODEL, WordLlamaEmbedder

CHUNK_CHARACTERS = 1000
"""A chunk ends at the last line that fits."""

_TEST_FOLDERS = {"test", "tests", "idle_test"}

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_Kind = Literal["docstring", "source"]


@dataclass(frozen=True)
class Chunk:
    """A piece of text. ``metadata`` is flat, as Pinecone wants it: strings, numbers, booleans and lists of strings."""

    id: str
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Corpus:
    """The chunks as columns of one length, with ``vectors`` ``(n, 256)`` float32 of model `MODEL`."""

    ids: Sequence[str]
    texts: Sequence[str]
    metadata: Sequence[dict[str, Any]]
    vectors: NDArray[np.float32]


def read_corpus(limit: int | None = None) -> list[Chunk]:
    """Return the first ``limit`` chunks, or all: about 27,000.

    The same Python gives the same chunks in the same order. An id reads ``json.decoder#JSONDecoder.decode#source#0``:
    module, qualified name, kind, number of the chunk.
    """
    modules = _iter_modules(Path(sysconfig.get_path("stdlib")))
    return list(islice((chunk for module, path in modules for chunk in _iter_chunks(module, path)), limit))


def embed_corpus(folder: Path, limit: int | None = None) -> Corpus:
    """Return `read_corpus` with its vectors, kept in ``folder`` so that the next call only reads them back."""
    # Everything that the result depends on is in the files' name: a file that exists is right.
    origin = repr((sys.version, MODEL, limit)).encode() + Path(__file__).read_bytes()
    stem = f"corpus-{hashlib.sha256(origin).hexdigest()[:16]}"
    columns_path, vectors_path = folder / f"{stem}.json", folder / f"{stem}.npy"
    if not (columns_path.exists() and vectors_path.exists()):
        chunks = read_corpus(limit)
        vectors = WordLlamaEmbedder().embed([chunk.text for chunk in chunks])
        columns = {
            "ids": [chunk.id for chunk in chunks],
            "texts": [chunk.text for chunk in chunks],
            "metadata": [chunk.metadata for chunk in chunks],
        }
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{stem}.{os.getpid()}.npy"
        np.save(unfinished, vectors)
        unfinished.replace(vectors_path)
        unfinished.write_text(json.dumps(columns), encoding="utf-8")
        unfinished.replace(columns_path)
    return Corpus(**json.loads(columns_path.read_text(encoding="utf-8")), vectors=np.load(vectors_path))


def _iter_modules(library: Path) -> Iterator[tuple[str, Path]]:
    paths: list[Path] = []
    for folder, folders, files in os.walk(library):
        # No module lies in site-packages, lib-dynload or config-3.13-x86_64-linux-gnu: they are no identifiers.
        folders[:] = [name for name in folders if name.isidentifier() and name not in _TEST_FOLDERS]
        paths += [Path(folder, name) for name in files if name.endswith(".py") and name[:-3].isidentifier()]
    for path in sorted(paths):
        parts = path.relative_to(library).with_suffix("").parts
        if parts[-1] not in _TEST_FOLDERS:
            yield ".".join(parts).removesuffix(".__init__"), path


def _iter_chunks(module: str, path: Path) -> Iterator[Chunk]:
    with tokenize.open(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like in somebody else's source
        source = file.read()
        tree = ast.parse(source)
    lines = source.splitlines()
    yield from _split(module, "", "docstring", ast.get_docstring(tree), 1, ["module"])
    seen: Counter[str] = Counter()
    for name, node, tags in _iter_definitions(tree, "", "function"):
        seen[name] += 1
        # A property's setter and the branches of an if define a name again.
        unique = name if seen[name] == 1 else f"{name}~{seen[name]}"
        yield from _split(module, unique, "docstring", ast.get_docstring(node), node.lineno, tags)
        if not isinstance(node, ast.ClassDef):
            text = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
            yield from _split(module, unique, "source", text, node.lineno, tags)


def _iter_definitions(parent: ast.AST, scope: str, what: str) -> Iterator[tuple[str, _Definition, list[str]]]:
    for node in _iter_statements(parent):
        if isinstance(node, _Definition):
            is_class = isinstance(node, ast.ClassDef)
            tags = ["class" if is_class else what]
            if isinstance(node, ast.AsyncFunctionDef):
                tags.append("async")
            if node.decorator_list:
                tags.append("decorated")
            yield scope + node.name, node, tags
            yield from _iter_definitions(node, f"{scope}{node.name}.", "method" if is_class else "function")
        else:
            yield from _iter_definitions(node, scope, what)


def _iter_statements(parent: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements within one, in their order; expressions, most of a tree, hold no definition."""
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        yield from getattr(parent, field, ())


def _split(module: str, name: str, kind: _Kind, text: str | None, line: int, tags: list[str]) -> Iterator[Chunk]:
    is_public = all(part.endswith("__") or not part.startswith("_") for part in f"{module}.{name}".split("."))
    for number, piece in enumerate(_iter_pieces(text or "")):
        yield Chunk(
            id="#".join(part for part in (module, name, kind, str(number)) if part),
            text=piece,
            metadata={
                "module": module,
                "package": module.partition(".")[0],
                "kind": kind,
                "line": line,
                "length": len(piece),
                "is_public": is_public,
                "tags": tags,
            },
        )


def _iter_pieces(text: str) -> Iterator[str]:
    piece = ""
    for line in text.splitlines(keepends=True):
        if piece.strip() and len(piece) + len(line) > CHUNK_CHARACTERS:
            yield piece.strip("\n")
            piece = ""
        piece += line
    if piece.strip():
        yield piece.strip("\n")
