"""A namespace of a Pinecone index as a source: listed and fetched over gRPC, or over REST through the official SDK."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc
import numpy as np

from amprenta_vectors.batch import Reason, VectorBatch
from amprenta_vectors.config import Settings, normalize_namespace
from amprenta_vectors.errors import ConfigError, RowError, SchemaMismatch, SourceError, SourceNotFound
from amprenta_vectors.sources import pinecone_wire as wire
from amprenta_vectors.sources.pinecone_client import (
    DISTANCES,
    MAX_QUERY_CHARACTERS,
    MAX_RECORDS,
    REQUEST_SECONDS,
    PineconeIndex,
    query_characters,
    sdk_errors,
    split_requests,
    split_text,
)
from amprenta_vectors.sources.protocol import SourceDescription, TokenRefused

PAGE = 100
"""Ids a list call gives at most (Pinecone's published limit)."""

Record = tuple[str, Any, Any, bool]
"""``(id, values, metadata, has sparse values)``, values and metadata as the transport gave them."""


class PineconeSource:
    """One namespace of one index. Opened by :func:`open_source`; safe to share between threads.

    With ``text_field`` None neither texts nor metadata are read out of the records.
    """

    def __init__(
        self, index: PineconeIndex, namespace: str, transport: Transport, text_field: str | None, count: int
    ) -> None:
        if index.dimension is None or index.metric is None:
            raise SchemaMismatch(
                f"index {index.name!r} has no dense vectors", hint="only indexes with dense vectors can be carried over"
            )
        self._namespace = namespace
        self._transport = transport
        self._text_field = text_field
        self.description = SourceDescription(
            kind="pinecone",
            identity=f"{index.name}@{urlsplit(index.host).netloc or index.host}/{namespace}",
            dimension=index.dimension,
            distance=DISTANCES[index.metric],
            model=index.model,
            count=count,
        )

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        """Pages of at most 100 ids, in Pinecone's order."""
        while True:
            ids, following = self._transport.list(self._namespace, token)
            yield ids, following
            if following is None:
                return
            token = following

    def fetch(self, keys: Sequence[str]) -> VectorBatch:
        """The records of ``keys``; their text is taken out of the metadata."""
        parts = self._transport.split(keys)
        return self._to_batch(
            (record for part in parts for record in self._transport.fetch(self._namespace, part)), len(keys)
        )

    def close(self) -> None:
        """Close the transport's channel."""
        self._transport.close()

    def _to_batch(self, records: Iterator[Record], most: int) -> VectorBatch:
        """The records as one batch; each is let go of before the next is read. There are at most ``most``."""
        dimension = self.description.dimension
        ids: list[str] = []
        texts: list[str | None] = []
        metadata: list[Mapping[str, Any]] = []
        rejected: list[RowError] = []
        vectors = np.empty((most, dimension), dtype=np.float32)
        for key, values, fields, sparse in records:
            if len(ids) == most:
                raise SourceError(f"more than the {most} records that were asked for came back")
            row = np.frombuffer(values, dtype="<f4") if isinstance(values, bytes) else values
            if len(row) != dimension:
                reason = Reason.SPARSE_ONLY if sparse and not len(row) else Reason.DIMENSION
                rejected.append(RowError(key, reason, f"the vector has {len(row)} values; expected {dimension}"))
                continue
            if sparse:
                rejected.append(RowError(key, Reason.SPARSE_DROPPED, "no column holds its sparse values"))
            vectors[len(ids)] = row
            ids.append(key)
            if self._text_field is not None:
                text, kept = split_text(_to_fields(fields), self._text_field)
                texts.append(text)
                metadata.append(kept)
        return VectorBatch(
            source_keys=ids,
            vectors=vectors[: len(ids)],
            texts=texts if self._text_field is not None else None,
            metadata=metadata if self._text_field is not None else None,
            rejected=tuple(rejected),
        )


class Transport(Protocol):
    """How ids and records are read."""

    def list(self, namespace: str, token: str | None) -> tuple[Sequence[str], str | None]: ...  # noqa: D102

    def split(self, keys: Sequence[str]) -> Iterator[Sequence[str]]: ...  # noqa: D102

    def fetch(  # noqa: D102
        self, namespace: str, keys: Sequence[str]
    ) -> Iterator[Record]: ...

    def close(self) -> None: ...  # noqa: D102


class GrpcTransport:
    """Pinecone's gRPC data plane; a vector's values stay the bytes they came as."""

    def __init__(self, index: PineconeIndex) -> None:
        parts = urlsplit(index.grpc_host)
        target = parts.netloc if parts.port else f"{parts.netloc}:{443 if parts.scheme == 'https' else 80}"
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.enable_retries", 0),
            # Left to itself a channel waits up to 120 s before it connects again to a host that was away.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 1000),
            ("grpc.max_reconnect_backoff_ms", 5000),
        ]
        if parts.scheme == "https":
            self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(), options)
        elif parts.hostname in {"127.0.0.1", "localhost", "::1"}:
            self._channel = grpc.insecure_channel(target, options)
        else:
            raise ConfigError(
                f"PINECONE_GRPC_HOST is {index.grpc_host}: the API key would cross the network unencrypted",
                hint="use an https:// host",
            )
        self._headers = (("api-key", index.api_key), ("x-pinecone-api-version", "2026-04"))
        self._list = self._method("List", wire.ListRequest, wire.ListResponse)
        self._fetch = self._method("Fetch", wire.FetchRequest, wire.FetchResponse)

    def _method(self, name: str, request: Any, response: Any) -> Any:
        return self._channel.unary_unary(
            f"/{wire.SERVICE}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=response.FromString,
        )

    def _call(self, method: Any, request: Any, doing: str) -> Any:
        with sdk_errors(doing):
            return method(request, timeout=REQUEST_SECONDS, metadata=self._headers)

    def list(self, namespace: str, token: str | None) -> tuple[Sequence[str], str | None]:
        """One page of ids and the token of the next."""
        request = wire.ListRequest(namespace=namespace, limit=PAGE, pagination_token=token)
        with _refusing(token):
            page = self._call(self._list, request, "listing ids")
        return [item.id for item in page.vectors], page.pagination.next or None

    def split(self, keys: Sequence[str]) -> Iterator[Sequence[str]]:
        """Stretches of at most 1000 keys."""
        return split_requests(keys, MAX_RECORDS, lambda _: 1)

    def fetch(self, namespace: str, keys: Sequence[str]) -> Iterator[Record]:
        """The records of at most 1000 keys."""
        request = wire.FetchRequest(ids=keys, namespace=namespace)
        response = self._call(self._fetch, request, f"fetching {len(keys)} vectors")
        for entry in response.vectors:
            vector = entry.value
            yield vector.id, vector.values, vector.metadata, bool(vector.sparse_values)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class RestTransport:
    """Pinecone's REST data plane through the official SDK."""

    def __init__(self, index: PineconeIndex) -> None:
        self._index = index.rest

    def list(self, namespace: str, token: str | None) -> tuple[Sequence[str], str | None]:
        """One page of ids and the token of the next."""
        with _refusing(token), sdk_errors("listing ids"):
            page = self._index.list_paginated(namespace=namespace, limit=PAGE, pagination_token=token)
        return [item.id for item in page.vectors if item.id], page.pagination.next if page.pagination else None

    def split(self, keys: Sequence[str]) -> Iterator[Sequence[str]]:
        """Stretches of at most 1000 keys whose query stays short enough for httpx."""
        return split_requests(keys, MAX_QUERY_CHARACTERS, query_characters)

    def fetch(self, namespace: str, keys: Sequence[str]) -> Iterator[Record]:
        """The records of at most 1000 keys."""
        with sdk_errors(f"fetching {len(keys)} vectors"):
            response = self._index.fetch(ids=list(keys), namespace=namespace)
        for key, vector in response.vectors.items():
            yield key, vector.values, vector.metadata, vector.sparse_values is not None

    def close(self) -> None:
        """The SDK's handle belongs to whoever opened the index."""


@contextlib.contextmanager
def _refusing(token: str | None) -> Iterator[None]:
    """A final error in answer to a page token means that the token has gone stale."""
    try:
        yield
    except (SourceError, SourceNotFound) as error:
        if token is None:
            raise
        raise TokenRefused(str(error)) from error


def _to_fields(metadata: bytes | Mapping[str, Any] | None) -> dict[str, Any]:
    """Metadata as JSON has it, the same over either transport: Pinecone's numbers are float64, whole ones are ints."""
    if isinstance(metadata, bytes):
        metadata = wire.decode_struct(metadata)
    return {
        name: _to_number(value) if isinstance(value, int | float) else value for name, value in (metadata or {}).items()
    }


def _to_number(value: float) -> float:
    """An int where float64 holds every int of that size, else a float; a bool stays one."""
    if isinstance(value, bool):
        return value
    return int(value) if abs(value) < 2**53 and float(value).is_integer() else float(value)


def open_source(
    settings: Settings, index: PineconeIndex, namespace: str, *, with_metadata: bool = True
) -> PineconeSource:
    """Open one namespace, with or without texts and metadata.

    Raises `SourceNotFound` for one that the index does not have, listing those it has.
    """
    namespace = normalize_namespace(namespace)
    counts = index.namespaces()
    if namespace not in counts:
        listed = ", ".join(f"{name or '__default__'} ({count})" for name, count in sorted(counts.items())[:20])
        raise SourceNotFound(
            f"index {index.name!r} has no namespace {namespace or '__default__'!r}; it has: {listed or 'none'}",
            hint="--namespace NAME, --all-namespaces, or PINECONE_NAMESPACE",
        )
    transport = GrpcTransport(index) if settings.pinecone_transport == "grpc" else RestTransport(index)
    text_field = settings.text_field if with_metadata else None
    return PineconeSource(index, namespace, transport, text_field, counts[namespace])
