"""Opens a Pinecone index through the official SDK, and raises the SDK's errors as ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from urllib.parse import quote_plus

from amprenta_vectors.backends.pinecone.limits import read_units
from amprenta_vectors.backends.protocol import Meter, Route
from amprenta_vectors.config import Settings, normalize_namespace
from amprenta_vectors.errors import (
    AmprentaError,
    ConfigError,
    CredentialsRefused,
    RateLimited,
    SchemaMismatch,
    SourceError,
    SourceNotFound,
    TimedOut,
    TransientError,
)
from amprenta_vectors.extras import needing
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.shown import show_urls

with needing("pinecone"):
    import grpc
    import msgspec
    from pinecone import (
        DescribeIndexStatsResponse,
        FetchResponse,
        ListResponse,
        Pinecone,
        QueryResponse,
        UpdateResponse,
        UpsertResponse,
    )
    from pinecone.errors import exceptions as sdk
    from pinecone.index import Index
    from pinecone.models.indexes.deployment import PodDeployment
    from pinecone.models.indexes.index import IndexModel
    from pinecone.models.indexes.schema import DenseVectorField, SemanticTextField, SparseVectorField

ANSWERS = (DescribeIndexStatsResponse, FetchResponse, ListResponse, QueryResponse, UpdateResponse, UpsertResponse)
for _answer in ANSWERS:
    # msgspec 0.22 ends the process where two threads are the first to decode a type: the workers of a backfill are.
    msgspec.json.Decoder(_answer)

DISTANCES: dict[str, Distance] = {"cosine": "cosine", "euclidean": "l2", "dotproduct": "ip"}
"""Our names for Pinecone's metrics."""

MAX_RECORDS = 1000
"""Records or ids that Pinecone takes in one upsert, fetch or delete."""
MAX_QUERY_CHARACTERS = 60_000
"""Characters of ids in a REST fetch: they go into the URL, whose query the HTTP client refuses past 65,536."""

_VALUES, _SPARSE_VALUES = "_values", "_sparse_values"
"""The fields of an index of vectors, which has no named ones."""

Item = TypeVar("Item")

REQUEST_SECONDS = 30.0
"""Seconds that one request may take before it counts as failed."""


Kind = Literal["serverless", "documents", "pod"]


@dataclass(frozen=True)
class VectorField:
    """A field of dense vectors in an index's schema."""

    dimension: int
    metric: str


@dataclass(frozen=True)
class PineconeIndex:
    """An index as its control plane describes it, with an open data-plane handle.

    ``kind`` is ``serverless`` for an index of vectors, ``documents`` for one of JSON documents, ``pod`` for one that
    cannot list its ids. ``dimension`` and ``metric`` describe the ``vector_field`` to be read; they are None if the
    index has no dense field, or has several ``vector_fields`` and none was chosen. ``grpc_host`` begins with
    ``http://`` or ``https://``.
    """

    name: str
    host: str
    grpc_host: str
    dimension: int | None
    metric: str | None
    model: str | None
    api_key: str = field(repr=False)
    rest: Index = field(repr=False)
    kind: Kind = "serverless"
    vector_field: str | None = None
    sparse_field: str | None = None
    vector_fields: Mapping[str, VectorField] = field(default_factory=dict, hash=False)

    @property
    def named(self) -> str:
        """The index's name, and for a document index the field to be read, which its documents name themselves."""
        return f"{self.name}.{self.vector_field}" if self.kind == "documents" else self.name

    def dense(self) -> tuple[int, str]:
        """Return dimension and metric of the vectors to be read.

        Raises `SchemaMismatch` if there are no dense vectors, `ConfigError` if one of several fields is still to be
        chosen.
        """
        if self.dimension is not None and self.metric is not None:
            return self.dimension, self.metric
        if len(self.vector_fields) > 1:
            listed = ", ".join(f"{name} ({item.dimension})" for name, item in sorted(self.vector_fields.items()))
            raise ConfigError(
                f"index {self.name!r} has several fields of vectors: {listed}",
                hint=f"export PINECONE_VECTOR_FIELD={min(self.vector_fields)}, or another; each is a run of its own",
            )
        raise SchemaMismatch(
            f"index {self.name!r} has no dense vectors that can be read",
            hint="only indexes with dense vectors can be carried over; what Pinecone embeds itself, it gives as text",
        )

    def namespaces(self) -> dict[str, int]:
        """Return each namespace with its vector count, as the index last counted them."""
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
    fields = model.schema.fields
    dense = {
        field: VectorField(item.dimension, item.metric)
        for field, item in fields.items()
        if isinstance(item, DenseVectorField)
    }
    chosen = _choose(settings, name, dense)
    return PineconeIndex(
        name=name,
        host=host,
        grpc_host=_with_scheme(settings.pinecone_grpc_host or host),
        dimension=dense[chosen].dimension if chosen else None,
        metric=dense[chosen].metric if chosen else None,
        model=next((item.model for item in fields.values() if isinstance(item, SemanticTextField)), None),
        api_key=api_key,
        rest=rest,
        kind=_kind(model),
        vector_field=chosen,
        sparse_field=next((field for field, item in fields.items() if isinstance(item, SparseVectorField)), None),
        vector_fields=dense,
    )


def _choose(settings: Settings, index: str, dense: Mapping[str, VectorField]) -> str | None:
    """Return the field to be read: the one that the settings name, or the only one; None if neither exists."""
    wanted = settings.pinecone_vector_field
    if wanted is None or set(dense) == {_VALUES}:
        return next(iter(dense)) if len(dense) == 1 else None
    if wanted not in dense:
        raise ConfigError(
            f"index {index!r} has no field {wanted!r} of vectors; it has: {', '.join(sorted(dense)) or 'none'}",
            hint="correct PINECONE_VECTOR_FIELD",
        )
    return wanted


def _kind(model: IndexModel) -> Kind:
    """Return the kind of an index, by where it runs and by its fields: an index of vectors has the reserved ones."""
    if isinstance(model.deployment, PodDeployment):
        return "pod"
    fields = model.schema.fields
    vectors = fields.keys() & {_VALUES, _SPARSE_VALUES}
    integrated = any(isinstance(item, SemanticTextField) for item in fields.values())
    return "serverless" if vectors or integrated else "documents"


@contextmanager
def one_request(meter: Meter, route: Route, records: int = 0) -> Iterator[None]:
    """Ask ``meter`` before one request for ``records`` records; tell it if the service answers that it is too early."""
    meter.before(route, read_units(route, records))
    try:
        yield
    except RateLimited as error:
        meter.limited(route, error.retry_after)
        raise


def split_text(metadata: Mapping[str, Any], text_field: str) -> tuple[str | None, dict[str, Any]]:
    """Return the text and the rest of the metadata; a text field that holds no string stays in the metadata."""
    text = metadata.get(text_field) if text_field else None
    if not isinstance(text, str):
        return None, dict(metadata)
    return text, {name: value for name, value in metadata.items() if name != text_field}


def split_requests(items: Iterable[Item], most: int, size: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Yield groups of at most `MAX_RECORDS` items whose sizes add up to at most ``most``; a larger item is alone."""
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
    """Return how many characters a key takes in the URL of a REST fetch."""
    return len("&ids=") + len(quote_plus(key))


def _with_scheme(host: str) -> str:
    return host if host.startswith(("http://", "https://")) else f"https://{host}"


@contextmanager
def sdk_errors(doing: str, refusal: type[SourceError] = SourceError) -> Iterator[None]:
    """Raise the SDK's and gRPC's errors as ours: `TransientError` for what passes; any other says what to mend.

    ``refusal`` is raised for a request that Pinecone finds malformed: its content is at fault, not the caller's key.
    """
    try:
        yield
    except sdk.PineconeError as error:
        raise _from_sdk(error, doing, refusal) from error
    except grpc.RpcError as error:
        raise _from_grpc(error, doing, refusal) from error


_MALFORMED_STATUSES = {400, 413, 414, 422}
_MALFORMED_CODES = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE}


def _from_sdk(error: sdk.PineconeError, doing: str, refusal: type[SourceError]) -> AmprentaError:
    reason = f"{doing}: {show_urls(error.message)}"
    match error:
        case sdk.RateLimitError():
            return RateLimited(reason, retry_after=error.retry_after)
        case sdk.UnauthorizedError() | sdk.ForbiddenError():
            return _credentials(f"{doing}: HTTP {error.status_code}")
        case sdk.PaymentRequiredError():
            return CredentialsRefused(reason, hint="the Pinecone project is over its plan's limit or unpaid")
        case sdk.NotFoundError():
            return _not_found(reason)
        case sdk.PineconeTimeoutError():
            return TimedOut(reason)
        case sdk.ApiError() if error.status_code in _TIMED_OUT_STATUSES:
            return TimedOut(reason)
        case sdk.ServiceError() | sdk.PineconeConnectionError() | sdk.ResponseParsingError():
            return TransientError(reason)
        case sdk.ApiError() if error.status_code in _MALFORMED_STATUSES:
            return refusal(reason)
        case sdk.PineconeValueError():
            return refusal(reason)
        case _:
            return SourceError(reason)


_TIMED_OUT_STATUSES = {408, 504}
_GRPC_TRANSIENT = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
}


def _from_grpc(error: Any, doing: str, refusal: type[SourceError]) -> AmprentaError:
    code = error.code()
    reason = f"{doing}: {show_urls(error.details() or code.name)}"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        trailers = {item.key: item.value for item in error.trailing_metadata() or ()}
        return RateLimited(reason, retry_after=_seconds(trailers.get("retry-after")))
    if code in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
        return _credentials(f"{doing}: gRPC {code.name}")
    if code is grpc.StatusCode.NOT_FOUND:
        return _not_found(reason)
    if code in _MALFORMED_CODES:
        return refusal(reason)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOut(reason)
    return TransientError(reason) if code in _GRPC_TRANSIENT else SourceError(reason)


def _seconds(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _credentials(reason: str) -> CredentialsRefused:
    """Return the error, whose ``reason`` must not have the words of the answer: they may quote the key."""
    return CredentialsRefused(reason, hint="check PINECONE_API_KEY in the Pinecone console, under API keys")


def _not_found(reason: str) -> SourceNotFound:
    return SourceNotFound(reason, hint="check PINECONE_INDEX_NAME and PINECONE_NAMESPACE")
