"""The transports that a Pinecone index is read by: gRPC, or REST through the official SDK."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol
from urllib.parse import urlsplit

import grpc
from pinecone import RetryConfig
from pinecone.index import Index

from amprenta_vectors.backends.pinecone import wire as wire
from amprenta_vectors.backends.pinecone.client import (
    MAX_QUERY_CHARACTERS,
    MAX_RECORDS,
    REQUEST_SECONDS,
    PineconeIndex,
    query_characters,
    sdk_errors,
    split_requests,
)
from amprenta_vectors.backends.pinecone.limits import PAGE
from amprenta_vectors.backends.protocol import TokenRefused
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError, KeysRefused, SourceError, SourceNotFound
from amprenta_vectors.shown import show_url

PROBE_SECONDS = 5.0
MOST_CONNECTIONS = 256
"""Connections, as many as there may be workers: with the SDK's own 20 other workers would wait, and time out."""

Record = tuple[str, Any, Any, Any]
"""``(id, values, metadata, sparse values)`` as the transport gave them; without sparse values, something false."""

_NOT_THROUGH = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
}
"""The codes a gRPC client gets from a closed port, a proxy that speaks HTTP/1, and a proxy that answers in HTML."""


class Transport(Protocol):
    """A way to read ids and records. Safe to use from several threads at once."""

    name: str

    def list(self, namespace: str, prefix: str, token: str | None) -> tuple[Sequence[str], str | None]: ...  # noqa: D102

    def split(self, keys: Sequence[str]) -> Iterator[Sequence[str]]: ...  # noqa: D102

    def fetch(  # noqa: D102
        self, namespace: str, keys: Sequence[str]
    ) -> Iterator[Record]: ...

    def close(self) -> None: ...  # noqa: D102


class GrpcTransport:
    """Pinecone's gRPC data plane; a vector's values stay the bytes they came as."""

    name = "grpc"

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
                f"PINECONE_GRPC_HOST is {show_url(index.grpc_host)}: the API key would cross the network unencrypted",
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

    def _call(self, method: Any, request: Any, doing: str, refusal: type[SourceError] = SourceError) -> Any:
        with sdk_errors(doing, refusal):
            return method(request, timeout=REQUEST_SECONDS, metadata=self._headers)

    def list(self, namespace: str, prefix: str, token: str | None) -> tuple[Sequence[str], str | None]:
        """Return one page of the ids with a prefix, and the token of the next page."""
        request = wire.ListRequest(namespace=namespace, prefix=prefix, limit=PAGE, pagination_token=token)
        with refusing(token):
            page = self._call(self._list, request, "listing ids")
        return [item.id for item in page.vectors], page.pagination.next or None

    def split(self, keys: Sequence[str]) -> Iterator[Sequence[str]]:
        """Split keys into groups of at most 1000."""
        return split_requests(keys, MAX_RECORDS, lambda _: 1)

    def fetch(self, namespace: str, keys: Sequence[str]) -> Iterator[Record]:
        """Fetch the records of at most 1000 keys."""
        request = wire.FetchRequest(ids=keys, namespace=namespace)
        response = self._call(self._fetch, request, f"fetching {len(keys)} vectors", KeysRefused)
        for entry in response.vectors:
            vector = entry.value
            yield vector.id, vector.values, vector.metadata, vector.sparse_values

    def why_closed(self) -> str | None:
        """Return why calls do not reach Pinecone by gRPC; None if they do. Waits 5 seconds at most."""
        # An empty message is a whole `DescribeIndexStatsRequest`; the call costs nothing.
        stats: Any = self._channel.unary_unary(f"/{wire.SERVICE}/DescribeIndexStats")
        try:
            stats(b"", timeout=PROBE_SECONDS, metadata=self._headers)
        except grpc.RpcError as error:
            code = error.code()
            return code.name if code in _NOT_THROUGH else None
        return None

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


class RestTransport:
    """Pinecone's REST data plane through the official SDK; a call is one request, see `open_handle`."""

    name = "rest"

    def __init__(self, index: PineconeIndex) -> None:
        self._index = open_handle(index)

    def list(self, namespace: str, prefix: str, token: str | None) -> tuple[Sequence[str], str | None]:
        """Return one page of the ids with a prefix, and the token of the next page."""
        with refusing(token), sdk_errors("listing ids"):
            page = self._index.list_paginated(namespace=namespace, prefix=prefix, limit=PAGE, pagination_token=token)
        return [item.id for item in page.vectors if item.id], page.pagination.next if page.pagination else None

    def split(self, keys: Sequence[str]) -> Iterator[Sequence[str]]:
        """Split keys into groups of at most 1000 whose query stays short enough for httpx."""
        return split_requests(keys, MAX_QUERY_CHARACTERS, query_characters)

    def fetch(self, namespace: str, keys: Sequence[str]) -> Iterator[Record]:
        """Fetch the records of at most 1000 keys."""
        with sdk_errors(f"fetching {len(keys)} vectors", KeysRefused):
            response = self._index.fetch(ids=list(keys), namespace=namespace)
        for key, vector in response.vectors.items():
            yield key, vector.values, vector.metadata, vector.sparse_values

    def close(self) -> None:
        """Close the handle."""
        self._index.close()


def open_transport(settings: Settings, index: PineconeIndex) -> Transport:
    """Open the transport that ``PINECONE_TRANSPORT`` names; ``auto`` is gRPC if it is open, else REST with a warning.

    Document indexes are read over REST whatever the setting: gRPC has no call for documents.
    """
    if index.kind == "documents":
        from amprenta_vectors.backends.pinecone.documents import DocumentsTransport

        return DocumentsTransport(index)
    if settings.pinecone_transport == "rest":
        return RestTransport(index)
    transport = GrpcTransport(index)
    reason = _why_closed(index) if settings.pinecone_transport == "auto" else None
    if reason is None:
        return transport
    transport.close()
    warnings.warn(
        f"gRPC to {show_url(index.grpc_host)} is not open ({reason}): reading over REST, which is several times "
        "slower. Let HTTP/2 through to port 443, or set PINECONE_TRANSPORT=rest",
        stacklevel=2,
    )
    return RestTransport(index)


@functools.lru_cache(maxsize=8)
def _why_closed(index: PineconeIndex) -> str | None:
    """Return what `GrpcTransport.why_closed` says, asked once for all namespaces of an index."""
    with contextlib.closing(GrpcTransport(index)) as transport:
        return transport.why_closed()


def open_handle(index: PineconeIndex) -> Index:
    """Open a handle of the SDK whose calls are one request each, so that retries are left to the caller.

    By itself the SDK tries a data-plane call 4 times (on 408, 429 and 5xx, and on broken connections, but not on a body
    that breaks off), until a budget that all its clients of a host share is spent. Stacked below our retries, that
    would multiply the requests, with none of them asking for the limit or noticing a pause of the run. Of the SDK's
    public settings none reaches the data plane (10.2: `retry_config` is for the control plane), so this sets the one
    that its transport reads. If another release keeps it elsewhere, the SDK's retries stay inside ours: slower, and as
    safe.
    """
    handle = Index(
        host=index.host, api_key=index.api_key, timeout=REQUEST_SECONDS, connection_pool_maxsize=MOST_CONNECTIONS
    )
    transport: Any = getattr(getattr(getattr(handle, "_http", None), "_client", None), "_transport", None)
    if isinstance(getattr(transport, "_config", None), RetryConfig):
        transport._config = replace(transport._config, max_retries=0)
    return handle


@contextlib.contextmanager
def refusing(token: str | None) -> Iterator[None]:
    """Raise `TokenRefused` for a final error in answer to a page token: the token has gone stale."""
    try:
        yield
    except (SourceError, SourceNotFound) as error:
        if token is None:
            raise
        raise TokenRefused(str(error)) from error
