"""Opening a Pinecone index through the official SDK, and what its errors mean to us."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote_plus

import grpc
from pinecone import Pinecone
from pinecone.errors import exceptions as sdk
from pinecone.index import Index

from amprenta_vectors.config import Settings, normalize_namespace
from amprenta_vectors.errors import (
    AmprentaError,
    CredentialsRefused,
    RateLimited,
    SourceError,
    SourceNotFound,
    TransientError,
)

DISTANCES = {"cosine": "cosine", "euclidean": "l2", "dotproduct": "ip"}
"""Pinecone's metrics by our names for them."""

MAX_RECORDS = 1000
"""How many records or ids Pinecone takes in one upsert, fetch or delete."""
MAX_QUERY_CHARACTERS = 60_000
"""A REST fetch sends its ids in the URL, whose query the HTTP client refuses past 65,536 characters."""

Item = TypeVar("Item")

REQUEST_SECONDS = 30.0
"""How long one request may take before it counts as failed."""


@dataclass(frozen=True)
class PineconeIndex:
    """An index as its control plane describes it, with an open data-plane handle.

    ``dimension`` is None for an index without a dense field. ``grpc_host`` begins with ``http://`` or ``https://``.
    """

    name: str
    host: str
    grpc_host: str
    dimension: int | None
    metric: str | None
    model: str | None
    api_key: str = field(repr=False)
    rest: Index = field(repr=False)

    def namespaces(self) -> dict[str, int]:
        """Each namespace with its vector count, as the index last counted them."""
        with sdk_errors(f"counting index {self.name!r}"):
            stats = self.rest.describe_index_stats()
        return {normalize_namespace(name): summary.vector_count for name, summary in stats.namespaces.items()}


def open_index(settings: Settings) -> PineconeIndex:
    """Describe and open ``PINECONE_INDEX_NAME``.

    Raises `ConfigError` for a missing setting, `CredentialsRefused`, `SourceNotFound`, `TransientError`.
    """
    api_key = settings.require("pinecone_api_key")
    name = settings.require("pinecone_index_name")
    with sdk_errors(f"opening index {name!r}"):
        client = Pinecone(api_key=api_key, host=settings.pinecone_controller_host, timeout=REQUEST_SECONDS)
        model = client.indexes.describe(name)
        host = model.host
        if not host:
            raise TransientError(f"index {name!r} has no host yet: it is still being made")
        rest = client.index(host=host)
    dense = [item for item in model.schema.fields.values() if getattr(item, "dimension", None)]
    embed = getattr(model, "embed", None)
    return PineconeIndex(
        name=name,
        host=host,
        grpc_host=_with_scheme(settings.pinecone_grpc_host or host),
        dimension=getattr(dense[0], "dimension", None) if dense else None,
        metric=getattr(dense[0], "metric", None) if dense else None,
        model=embed.model if embed is not None else None,
        api_key=api_key,
        rest=rest,
    )


def split_text(metadata: Mapping[str, Any], text_field: str) -> tuple[str | None, dict[str, Any]]:
    """The text and the rest of the metadata; a text field that holds no string stays where it is."""
    text = metadata.get(text_field)
    if not isinstance(text, str):
        return None, dict(metadata)
    return text, {name: value for name, value in metadata.items() if name != text_field}


def split_requests(items: Iterable[Item], most: int, size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Items in groups of at most `MAX_RECORDS` that measure ``most`` together; a larger one stands alone."""
    part: list[Item] = []
    total = 0
    for item in items:
        measure = size(item)
        if part and (len(part) == MAX_RECORDS or total + measure > most):
            yield part
            part, total = [], 0
        part.append(item)
        total += measure
    if part:
        yield part


def query_characters(key: str) -> int:
    """How long a key is in the URL of a REST fetch."""
    return len("&ids=") + len(quote_plus(key))


def _with_scheme(host: str) -> str:
    return host if host.startswith(("http://", "https://")) else f"https://{host}"


@contextmanager
def sdk_errors(doing: str) -> Iterator[None]:
    """Raise the SDK's and gRPC's errors as ours: what passes is a `TransientError`, what does not says what to mend."""
    try:
        yield
    except sdk.PineconeError as error:
        raise _from_sdk(error, doing) from error
    except grpc.RpcError as error:
        raise _from_grpc(error, doing) from error


def _from_sdk(error: sdk.PineconeError, doing: str) -> AmprentaError:
    reason = f"{doing}: {error.message}"
    match error:
        case sdk.RateLimitError():
            return RateLimited(reason, retry_after=error.retry_after)
        case sdk.UnauthorizedError() | sdk.ForbiddenError():
            return _credentials(reason)
        case sdk.PaymentRequiredError():
            return CredentialsRefused(reason, hint="the Pinecone project is over its plan's limit or unpaid")
        case sdk.NotFoundError():
            return _not_found(reason)
        case (
            sdk.ServiceError() | sdk.PineconeTimeoutError() | sdk.PineconeConnectionError() | sdk.ResponseParsingError()
        ):
            return TransientError(reason)
        case sdk.ApiError() if error.status_code == 408:
            return TransientError(reason)
        case _:
            return SourceError(reason)


_GRPC_TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
}


def _from_grpc(error: Any, doing: str) -> AmprentaError:
    code, reason = error.code(), f"{doing}: {error.details() or error.code().name}"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        trailers = {item.key: item.value for item in error.trailing_metadata() or ()}
        return RateLimited(reason, retry_after=_seconds(trailers.get("retry-after")))
    if code in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
        return _credentials(reason)
    if code is grpc.StatusCode.NOT_FOUND:
        return _not_found(reason)
    return TransientError(reason) if code in _GRPC_TRANSIENT else SourceError(reason)


def _seconds(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _credentials(reason: str) -> CredentialsRefused:
    return CredentialsRefused(reason, hint="check PINECONE_API_KEY in the Pinecone console, under API keys")


def _not_found(reason: str) -> SourceNotFound:
    return SourceNotFound(reason, hint="check PINECONE_INDEX_NAME and PINECONE_NAMESPACE")
