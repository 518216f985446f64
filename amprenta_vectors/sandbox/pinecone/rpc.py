"""Pinecone's gRPC ``VectorService``: generic handlers that take and give bytes, so that a fetch is one join."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from amprenta_vectors.backends.pinecone.wire import SERVICE
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.sandbox.pinecone import messages
from amprenta_vectors.sandbox.pinecone.documents import check_kind
from amprenta_vectors.sandbox.pinecone.faults import Calls, Faults
from amprenta_vectors.sandbox.pinecone.records import Sparse, decode_struct
from amprenta_vectors.sandbox.pinecone.refusals import CODE_OF_STATUS, Code, Refused
from amprenta_vectors.sandbox.pinecone.service import IndexService, Page
from amprenta_vectors.sandbox.pinecone.store import DEFAULT_NAMESPACE, Description

_WORKERS = 32
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Two servers on one port would each get some of the calls.
    ("grpc.so_reuseport", 0),
]

Method = Callable[[bytes], bytes]


class RpcServer:
    """Serves an index's data plane on 127.0.0.1."""

    def __init__(
        self,
        port: int,
        *,
        service: IndexService,
        description: Description,
        api_key: str,
        faults: Faults,
        calls: Calls,
        sleep: Callable[[float], object],
    ) -> None:
        self._api_key = api_key
        self._faults = faults
        self._calls = calls
        self._sleep = sleep
        self._server = grpc.server(ThreadPoolExecutor(_WORKERS, "pinecone-grpc"), options=_OPTIONS)
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            name: grpc.unary_unary_rpc_method_handler(self._handler(route, method))
            for name, (route, method) in _methods(RpcApi(service, description), description).items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        try:
            self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        except RuntimeError as error:
            raise ConfigError(f"port {port} is taken", hint="choose another gRPC port, or 0 for a free one") from error
        self.host = f"http://127.0.0.1:{self.port}"
        self._server.start()

    def stop(self) -> None:
        """Stop listening and end all calls."""
        self._server.stop(None).wait()

    def _handler(self, route: str, method: Method) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            with self._calls.arrived(route):
                return self._carry_out(route, method, request, context)

        return handle

    def _carry_out(self, route: str, method: Method, request: bytes, context: grpc.ServicerContext) -> bytes:
        fault = self._faults.draw(route)
        self._sleep(fault.latency)
        if fault.status is not None:
            code = CODE_OF_STATUS.get(fault.status, Code.UNKNOWN)
            _abort(context, code, "The sandbox was told to fail", fault.retry_after)
        if fault.reset:
            _abort(context, Code.UNAVAILABLE, "Connection reset by peer")
        if dict(context.invocation_metadata()).get("api-key") != self._api_key:
            _abort(context, Code.UNAUTHENTICATED, "Invalid API key")
        try:
            answer = method(request)
        except Refused as error:
            _abort(context, error.code, error.message)
        except DecodeError as error:
            _abort(context, Code.INTERNAL, f"The request cannot be decoded: {error}")
        self._sleep(fault.stall)
        if fault.truncate:
            _abort(context, Code.UNAVAILABLE, "Connection closed midway")
        return answer


def _abort(context: grpc.ServicerContext, code: Code, message: str, retry_after: float | None = None) -> NoReturn:
    if retry_after is not None:
        # What Pinecone's own client takes for a wish to wait, in this order.
        pushback = ("grpc-retry-pushback-ms", str(round(retry_after * 1000)))
        context.set_trailing_metadata((pushback, ("retry-after", f"{retry_after:g}")))
    context.abort(grpc.StatusCode[code.name], message)
    raise AssertionError("abort returned")


def _methods(api: RpcApi, description: Description) -> dict[str, tuple[str, Method]]:
    def of_vectors(route: str, method: Method) -> tuple[str, Method]:
        def call(data: bytes) -> bytes:
            check_kind(description, route, documents=False)
            return method(data)

        return route, call

    return {
        "Fetch": of_vectors("fetch", api.fetch),
        "List": of_vectors("list", api.list),
        "Query": of_vectors("query", api.query),
        "Upsert": of_vectors("upsert", api.upsert),
        "Update": of_vectors("update", api.update),
        "Delete": of_vectors("delete", api.delete),
        "FetchByMetadata": of_vectors("fetch_by_metadata", api.fetch_by_metadata),
        "DescribeIndexStats": ("stats", api.stats),
        "ListNamespaces": ("namespaces", api.list_namespaces),
        "DescribeNamespace": ("namespaces", api.describe_namespace),
    }


class RpcApi:
    """Turns encoded requests into encoded answers. All methods raise `Refused`, and `DecodeError` for other bytes."""

    def __init__(self, service: IndexService, description: Description) -> None:
        self._service = service
        self._description = description

    def fetch(self, data: bytes) -> bytes:
        """Answer ``Fetch``."""
        request = messages.FetchRequest.FromString(data)
        page = self._service.fetch(request.namespace, request.ids)
        tail = messages.FetchResponse(namespace=_shown(request.namespace), usage=_usage(page))
        return b"".join([*(record.entry for record in page.items), tail.SerializeToString()])

    def fetch_by_metadata(self, data: bytes) -> bytes:
        """Answer ``FetchByMetadata``."""
        request = messages.FetchByMetadataRequest.FromString(data)
        page = self._service.fetch_by_metadata(
            request.namespace, _struct(request, "filter"), _optional(request, "limit"), request.pagination_token
        )
        tail = messages.FetchByMetadataTail(
            namespace=_shown(request.namespace), usage=_usage(page), pagination=_pagination(page)
        )
        return b"".join([*(record.entry for record in page.items), tail.SerializeToString()])

    def list(self, data: bytes) -> bytes:
        """Answer ``List``."""
        request = messages.ListRequest.FromString(data)
        # A limit of 0 is one not given: the shared message tells no difference, and the client never sends 0.
        page = self._service.list_ids(
            request.namespace, request.prefix, request.limit or None, request.pagination_token
        )
        return _encoded(
            messages.ListResponse(
                vectors=[messages.ListItem(id=id_) for id_ in page.items],
                pagination=_pagination(page),
                namespace=_shown(request.namespace),
                usage=_usage(page),
            )
        )

    def query(self, data: bytes) -> bytes:
        """Answer ``Query``."""
        request = messages.QueryRequest.FromString(data)
        if request.HasField("sparse_vector"):
            raise Refused(501, "Sparse queries are not part of the sandbox")
        page = self._service.query(
            request.namespace,
            request.top_k,
            vector=_values(request.vector) if request.vector else None,
            id=request.id or None,
            filter=_struct(request, "filter"),
        )
        matches = []
        for record, score in page.items:
            match = messages.ScoredVector(id=record.id, score=score)
            if request.include_values or request.include_metadata:
                vector = record.vector
                if request.include_values:
                    match.values = vector.values
                    if vector.sparse_values:
                        match.sparse_values = vector.sparse_values
                if request.include_metadata and vector.metadata:
                    match.metadata = vector.metadata
            matches.append(match)
        return _encoded(
            messages.QueryResponse(matches=matches, namespace=_shown(request.namespace), usage=_usage(page))
        )

    def upsert(self, data: bytes) -> bytes:
        """Answer ``Upsert``."""
        request = messages.UpsertRequest.FromString(data)
        records = [
            self._service.build(
                vector.id,
                _values(vector.values),
                decode_struct(vector.metadata),
                Sparse.decode(vector.sparse_values) if vector.sparse_values else None,
            )
            for vector in request.vectors
        ]
        count = self._service.upsert(request.namespace, records, len(data))
        return _encoded(messages.UpsertResponse(upserted_count=count))

    def update(self, data: bytes) -> bytes:
        """Answer ``Update``."""
        request = messages.UpdateRequest.FromString(data)
        metadata, wanted = _struct(request, "set_metadata"), _struct(request, "filter")
        if wanted is not None and not request.id:
            matched = self._service.update_matching(request.namespace, wanted, metadata, dry_run=request.dry_run)
            return _encoded(messages.UpdateResponse(matched_records=matched))
        self._service.update(
            request.namespace,
            request.id,
            values=_values(request.values) if request.values else None,
            metadata=metadata,
            sparse=Sparse.decode(request.sparse_values) if request.HasField("sparse_values") else None,
        )
        return b""

    def delete(self, data: bytes) -> bytes:
        """Answer ``Delete``."""
        request = messages.DeleteRequest.FromString(data)
        self._service.delete(
            request.namespace, request.ids, delete_all=request.delete_all, filter=_struct(request, "filter")
        )
        return b""

    def stats(self, data: bytes) -> bytes:
        """Answer ``DescribeIndexStats``."""
        request = messages.DescribeIndexStatsRequest.FromString(data)
        namespaces = self._service.stats(_struct(request, "filter"))
        return _encoded(
            messages.DescribeIndexStatsResponse(
                namespaces=[
                    messages.NamespaceEntry(key=item.name, value=messages.NamespaceSummary(vector_count=item.count))
                    for item in namespaces
                ],
                dimension=self._description.dimension,
                total_vector_count=sum(item.count for item in namespaces),
                metric=self._description.metric,
                vector_type="dense",
            )
        )

    def list_namespaces(self, data: bytes) -> bytes:
        """Answer ``ListNamespaces``."""
        request = messages.ListNamespacesRequest.FromString(data)
        page, total = self._service.list_namespaces(
            request.prefix, _optional(request, "limit"), request.pagination_token
        )
        namespaces = [messages.NamespaceDescription(name=item.name, record_count=item.count) for item in page.items]
        return _encoded(
            messages.ListNamespacesResponse(namespaces=namespaces, pagination=_pagination(page), total_count=total)
        )

    def describe_namespace(self, data: bytes) -> bytes:
        """Answer ``DescribeNamespace``."""
        request = messages.DescribeNamespaceRequest.FromString(data)
        summary = self._service.describe_namespace(request.namespace)
        return _encoded(messages.NamespaceDescription(name=summary.name, record_count=summary.count))


def _encoded(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _values(data: bytes) -> NDArray[np.float32]:
    if len(data) % 4:
        raise Refused(400, "Vector values must be float32 numbers")
    return np.frombuffer(data, dtype="<f4")


def _struct(request: Any, field: str) -> Mapping[str, Any] | None:
    return decode_struct(getattr(request, field)) if request.HasField(field) else None


def _optional(request: Any, field: str) -> int | None:
    return getattr(request, field) if request.HasField(field) else None


def _usage(page: Page[Any]) -> Any:
    return messages.Usage(read_units=page.read_units)


def _pagination(page: Page[Any]) -> Any:
    return None if page.next is None else messages.Pagination(next=page.next)


def _shown(namespace: str) -> str:
    return "" if namespace == DEFAULT_NAMESPACE else namespace
