"""What the tests of Chroma share: a folder and a server of the real thing, made as an application makes them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import chromadb
import numpy as np

from amprenta_vectors.batch import Vectors

COLLECTION = "products_all_products"


@contextmanager
def own_client(path: Path) -> Iterator[Any]:
    """Chroma's own client on a folder, which is made where it is not there."""
    with closing(
        chromadb.PersistentClient(str(path), settings=chromadb.Settings(anonymized_telemetry=False))
    ) as client:
        yield client


def fill(
    path: Path,
    ids: Sequence[str],
    vectors: Vectors,
    metadata: Sequence[Mapping[str, Any] | None] | None = None,
    texts: Sequence[str | None] | None = None,
    *,
    name: str = COLLECTION,
    space: str = "cosine",
) -> None:
    """A collection with those records."""
    with own_client(path) as client:
        collection = client.get_or_create_collection(
            name, configuration={"hnsw": {"space": space}}, embedding_function=None
        )
        for start in range(0, len(ids), 1000):
            part = slice(start, start + 1000)
            collection.add(
                ids=list(ids[part]),
                embeddings=np.asarray(vectors[part]),
                metadatas=None if metadata is None else list(metadata[part]),
                documents=None if texts is None else list(texts[part]),
            )


class ChromaServer:
    """``chroma run`` on a folder, in a process of its own, on a port that stays the same over restarts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Wait until it listens."""
        # What the program ``chroma`` calls, without the client, telemetry and models that it imports before.
        program = "import sys, chromadb_rust_bindings; chromadb_rust_bindings.cli(['chroma', *sys.argv[1:]])"
        options = ["--path", str(self._path), "--host", "127.0.0.1", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, "run", *options],
            cwd=self._path.parent,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                if time.monotonic() > until or self._process.poll() is not None:
                    raise
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """As a machine that fails."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = None
