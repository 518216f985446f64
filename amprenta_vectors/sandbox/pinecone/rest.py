"""Pinecone's HTTP API: what each route takes and answers, apart from sockets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import orjson

from amprenta_vectors.sandbox.pinecone.records import Record
from amprenta_vectors.sandbox.pinecone.refusals import CODE_OF_STATUS, Code, Refused
from amprenta_vectors.sandbox.pinecone.service import IndexService, NamespaceSummary, Page
from amprenta_vectors.sandbox.pinecone.store import DEFAULT_NAMESPACE, Description
from amprenta_vectors.sandbox.pinecone.validation import to_sparse, to_values

_ROUTES = {
    ("GET", "/indexes"): "describe",
    ("GET", "/namespaces"): "namespaces",
    ("GET", "/vectors/list"): "list",
    ("GET", "/vectors/fetch"): "fetch",
    ("POST", "/vectors/fetch_by_metadata"): "fetch_by_metadata",
    ("POST", "/vectors/upsert"): "upsert",
    ("POST", "/vectors/update"): "update",
    ("POST", "/vectors/delete"): "delete",
    ("POST", "/query"): "query",
    ("POST", "/describe_index_stats"): "stats",
}
_NAMED_ROUTES = {("GET", "/indexes"): "describe", ("GET", "/namespaces"): "namespaces"}

_FRAGMENT_BYTES = 512 * 1024 * 1024
"""How much JSON to keep for the next fetch of the same records: as text, a vector takes three times its bytes."""

_CONTROL_PLANE_CODES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 402: "PAYMENT_REQUIRED", 403: "FORBIDDEN"}


@dataclass(frozen=True)
class Request:
    """An HTTP request; ``query`` has the last value of each parameter, but all of ``ids``."""

    route: str
    name: str
    """The last part of the path where the route ends in a name, else empty."""
    query: Mapping[str, list[str]]
    body: bytes

    def parameter(self, name: str) -> str | None:
        """A query parameter."""
        values = self.query.get(name)
        return values[-1] if values else None

    def limit(self) -> int | None:
        """The parameter ``limit``."""
        text = self.parameter("limit")
        if text is None:
            return None
        try:
            return int(text)
        except ValueError as error:
            raise Refused(400, f"limit must be a number, got '{text}'") from error

    def json(self) -> dict[str, Any]:
        """The body, which must be a JSON object."""
        try:
            value = orjson.loads(self.body or b"{}")
        except orjson.JSONDecodeError as error:
            raise Refused(400, f"The request body is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise Refused(400, "The request body must be a JSON object")
        return value


def find_route(method: str, path: str) -> tuple[str, str] | None:
    """The route's name and the name that its path ends in, if any; None where there is no such route."""
    if (method, path) in _ROUTES:
        return _ROUTES[method, path], ""
    parent, _, name = path.rpartition("/")
    route = _NAMED_ROUTES.get((method, parent))
    return (route, unquote(name)) if route is not None and name else None


def error_body(route: str, status: int, message: str) -> bytes:
    """An error as the data plane, or for ``describe`` the control plane, words it."""
    if route == "describe":
        code = _CONTROL_PLANE_CODES.get(status) or CODE_OF_STATUS.get(status, Code.UNKNOWN).name
        return orjson.dumps({"error": {"code": code, "message": message}, "status": status})
    return orjson.dumps({"code": int(CODE_OF_STATUS.get(status, Code.UNKNOWN)), "message": message, "details": []})


class RestApi:
    """Answers requests with JSON. All methods raise `Refused`."""

    def __init__(self, service: IndexService, description: Description, host: str) -> None:
        self._service = service
        self._description = description
        self._host = host
        self._room = _FRAGMENT_BYTES

    def answer(self, request: Request) -> bytes:
        """The body of the answer to ``request``."""
        method = getattr(self, f"_{request.route}")
        found = method(request)
        return found if isinstance(found, bytes) else orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY)

    def _describe(self, request: Request) -> dict[str, Any]:
        model = describe_index(self._description, self._host)
        if not request.name:
            return {"indexes": [model]}
        if request.name != self._description.name:
            raise Refused(404, f"Resource {request.name} not found")
        return model

    def _stats(self, request: Request) -> dict[str, Any]:
        namespaces = self._service.stats(_object(request.json(), "filter"))
        return {
            "namespaces": {summary.name: {"vectorCount": summary.count} for summary in namespaces},
            "dimension": self._description.dimension,
            "indexFullness": 0.0,
            "totalVectorCount": sum(summary.count for summary in namespaces),
            "metric": self._description.metric,
            "vectorType": "dense",
        }

    def _namespaces(self, request: Request) -> dict[str, Any]:
        if request.name:
            return _namespace_model(self._service.describe_namespace(request.name))
        page, total = self._service.list_namespaces(
            request.parameter("prefix") or "", request.limit(), request.parameter("paginationToken")
        )
        return {
            "namespaces": [_namespace_model(item) for item in page.items],
            "total_count": total,
            **_pagination(page),
        }

    def _list(self, request: Request) -> dict[str, Any]:
        namespace = request.parameter("namespace") or ""
        page = self._service.list_ids(
            namespace, request.parameter("prefix") or "", request.limit(), request.parameter("paginationToken")
        )
        return {"vectors": [{"id": id_} for id_ in page.items], **_pagination(page), **_tail(page, namespace)}

    def _fetch(self, request: Request) -> bytes:
        namespace = request.parameter("namespace") or ""
        return self._records(self._service.fetch(namespace, request.query.get("ids", [])), namespace)

    def _fetch_by_metadata(self, request: Request) -> bytes:
        body = request.json()
        namespace = _text(body, "namespace")
        page = self._service.fetch_by_metadata(
            namespace, _object(body, "filter"), _integer(body, "limit"), _text(body, "paginationToken")
        )
        return self._records(page, namespace)

    def _query(self, request: Request) -> dict[str, Any]:
        body = request.json()
        namespace, vector = _text(body, "namespace"), body.get("vector")
        if body.get("sparseVector") is not None:
            raise Refused(501, "Sparse queries are not part of the sandbox")
        page = self._service.query(
            namespace,
            _integer(body, "topK") or 0,
            vector=to_values(vector) if vector is not None else None,
            id=_text(body, "id") or None,
            filter=_object(body, "filter"),
        )
        with_values, with_metadata = body.get("includeValues"), body.get("includeMetadata")
        matches = [_match(record, score, with_values, with_metadata) for record, score in page.items]
        return {"matches": matches, **_tail(page, namespace)}

    def _upsert(self, request: Request) -> dict[str, Any]:
        body = request.json()
        vectors = body.get("vectors")
        if not isinstance(vectors, list) or not all(isinstance(vector, dict) for vector in vectors):
            raise Refused(400, "vectors must be a list of objects")
        records = [
            self._service.build(
                vector.get("id"),
                to_values(vector.get("values") or []),
                vector.get("metadata"),
                to_sparse(vector.get("sparseValues"), self._description.metric),
            )
            for vector in vectors
        ]
        count = self._service.upsert(_text(body, "namespace"), records, len(request.body))
        return {"upsertedCount": count}

    def _update(self, request: Request) -> dict[str, Any]:
        body = request.json()
        namespace, record, values = _text(body, "namespace"), _text(body, "id"), body.get("values")
        metadata, wanted = _object(body, "setMetadata"), _object(body, "filter")
        if wanted is not None and not record:
            matched = self._service.update_matching(namespace, wanted, metadata, dry_run=bool(body.get("dryRun")))
            return {"matchedRecords": matched}
        self._service.update(
            namespace,
            record,
            values=to_values(values) if values else None,
            metadata=metadata,
            sparse=to_sparse(body.get("sparseValues"), self._description.metric),
        )
        return {}

    def _delete(self, request: Request) -> dict[str, Any]:
        body = request.json()
        ids = body.get("ids") or []
        if not isinstance(ids, list) or not all(isinstance(id_, str) for id_ in ids):
            raise Refused(400, "ids must be a list of strings")
        self._service.delete(
            _text(body, "namespace"), ids, delete_all=bool(body.get("deleteAll")), filter=_object(body, "filter")
        )
        return {}

    def _records(self, page: Page[Record], namespace: str) -> bytes:
        members = b",".join(map(self._fragment, page.items))
        rest = orjson.dumps({**_pagination(page), **_tail(page, namespace)})
        return b'{"vectors":{' + members + b"}," + rest[1:]

    def _fragment(self, record: Record) -> bytes:
        fragment = record.json
        if fragment is None:
            fragment = record.encode_json()
            if self._room > 0:
                self._room -= len(fragment)
                record.json = fragment
        return fragment


def describe_index(description: Description, host: str) -> dict[str, Any]:
    """The control plane's model of a serverless index (2026-07), whose vectors are the reserved field ``_values``.

    A ``model`` stands where an index that embeds text itself has its own: in a ``semantic_text`` field.
    """
    schema: dict[str, Any] = {
        "_values": {"type": "dense_vector", "dimension": description.dimension, "metric": description.metric}
    }
    if description.metric == "dotproduct":
        schema["_sparse_values"] = {"type": "sparse_vector"}
    if description.model is not None:
        schema["text"] = {"type": "semantic_text", "model": description.model, "metric": description.metric}
    return {
        "name": description.name,
        "host": host,
        "status": {"ready": True, "state": "Ready"},
        "schema": {"fields": schema},
        "deployment": {"deployment_type": "managed", "cloud": "aws", "region": "us-east-1"},
        "deletion_protection": "disabled",
        "tags": None,
    }


def _match(record: Record, score: float, with_values: Any, with_metadata: Any) -> dict[str, Any]:
    found: dict[str, Any] = record.to_json() if with_values or with_metadata else {"id": record.id}
    if not with_values:
        found.pop("sparseValues", None)
        found["values"] = []
    if not with_metadata:
        found.pop("metadata", None)
    return {**found, "score": score}


def _namespace_model(summary: NamespaceSummary) -> dict[str, Any]:
    return {"name": summary.name, "record_count": summary.count}


def _tail(page: Page[Any], namespace: str) -> dict[str, Any]:
    shown = "" if namespace == DEFAULT_NAMESPACE else namespace
    return {"namespace": shown, "usage": {"readUnits": page.read_units}}


def _pagination(page: Page[Any]) -> dict[str, Any]:
    # The client takes an empty token, too, for a further page.
    return {} if page.next is None else {"pagination": {"next": page.next}}


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refused(400, f"{name} must be a string")
    return value


def _integer(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise Refused(400, f"{name} must be a whole number")
    return value


def _object(body: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    value = body.get(name)
    if value is not None and not isinstance(value, dict):
        raise Refused(400, f"{name} must be an object")
    return value
