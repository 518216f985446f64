"""The emulator: one index, its two servers, and what a test sets and reads."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.sandbox.pinecone.documents import to_record
from amprenta_vectors.sandbox.pinecone.faults import Calls, Faults
from amprenta_vectors.sandbox.pinecone.httpd import HttpServer
from amprenta_vectors.sandbox.pinecone.records import Record, Sparse
from amprenta_vectors.sandbox.pinecone.rest import RestApi
from amprenta_vectors.sandbox.pinecone.rpc import RpcServer
from amprenta_vectors.sandbox.pinecone.search import METRICS
from amprenta_vectors.sandbox.pinecone.service import IndexService
from amprenta_vectors.sandbox.pinecone.store import Description, Kind, Store, canonical


class PineconeEmulator:
    """A Pinecone index on 127.0.0.1; every index has an emulator, as it has a host in Pinecone.

    ``kind`` is ``serverless``; ``pod``, which cannot list ids; or ``documents``, whose records are JSON documents with
    a vector in each of ``vector_fields``.

    ``path`` is an SQLite file that keeps the index from one start to the next; what it says of the index goes before
    the arguments. Without it all is gone with the object. ``model`` is the embedding model that the description names.
    Port 0 is a free port, chosen at the first start and kept. Raises `ConfigError` where the file or port is in use.

    ``host`` is the data plane and, for this one index, the control plane; ``grpc_host`` the data plane over gRPC.
    ``faults`` makes requests fail; ``calls`` counts them. Faults also change over HTTP, from any process:
    ``PUT /_sandbox/faults`` with ``{"fetch": {"status": 503, "times": 2}}``, and ``DELETE``; ``GET /_sandbox/calls``
    shows the counts.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        name: str = "sandbox",
        dimension: int = 256,
        metric: str = "cosine",
        model: str | None = None,
        api_key: str = "sandbox-key",
        port: int = 0,
        grpc_port: int = 0,
        kind: Kind = "serverless",
        vector_fields: Sequence[str] = ("embedding",),
    ) -> None:
        if metric not in METRICS:
            raise ConfigError(f"metric is {metric!r}", hint=f"one of: {', '.join(METRICS)}")
        self.faults = Faults()
        self.calls = Calls()
        self._api_key = api_key
        self._port, self._grpc_port = port, grpc_port
        self._store = Store(path, Description(name, dimension, metric, model, kind, tuple(vector_fields)))
        self._stopping = threading.Event()
        self._http: HttpServer | None = None
        self._rpc: RpcServer | None = None

    @property
    def host(self) -> str:
        """The address of the HTTP server, ``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def grpc_host(self) -> str:
        """The address of the gRPC server, ``http://127.0.0.1:GRPC_PORT``."""
        return f"http://127.0.0.1:{self._grpc_port}"

    def start(self) -> Self:
        """Serve requests until `stop` is called."""
        self._store.open()
        self._stopping.clear()
        service = IndexService(self._store, self.calls)
        shared: Any = {
            "api_key": self._api_key,
            "faults": self.faults,
            "calls": self.calls,
            # A pause ends early when the server stops.
            "sleep": self._stopping.wait,
        }
        description = self._store.description
        try:
            self._http = HttpServer(self._port, open_api=lambda host: RestApi(service, description, host), **shared)
            self._rpc = RpcServer(self._grpc_port, service=service, description=description, **shared)
        except ConfigError:
            self.stop()
            raise
        self._port, self._grpc_port = self._http.port, self._rpc.port
        return self

    def stop(self) -> None:
        """Hang up on all clients and close the file. Does nothing if the emulator is stopped."""
        self._stopping.set()
        if self._http is not None:
            self._http.stop()
        if self._rpc is not None:
            self._rpc.stop()
        self._http = self._rpc = None
        self._store.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def load(
        self,
        namespace: str,
        ids: Sequence[str],
        vectors: ArrayLike,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
        sparse: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> None:
        """Put records in without asking whether Pinecone would take them, as an older server may have.

        ``vectors`` is ``(n, dimension)`` float32, or ``(n, 0)`` for records with sparse values only; an item of
        ``sparse`` has ``indices`` and ``values``. A query finds only records of the index's dimension.
        """
        self._store.open()
        rows = np.ascontiguousarray(vectors, dtype="<f4")
        records = [
            Record.build(id_, row.tobytes(), extra, Sparse(**weights) if weights is not None else None)
            for id_, row, extra, weights in zip(
                ids, rows, metadata or [None] * len(ids), sparse or [None] * len(ids), strict=True
            )
        ]
        self._store.put(canonical(namespace), records)

    def load_documents(self, namespace: str, documents: Sequence[Mapping[str, Any]]) -> None:
        """Put documents in, each with its ``_id``, without asking whether Pinecone would take them."""
        self._store.open()
        self._store.put(canonical(namespace), [to_record(document) for document in documents])
