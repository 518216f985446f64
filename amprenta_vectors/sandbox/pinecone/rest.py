"""Pinecone's HTTP API: what each route takes and answers, apart from sockets."""

from __future__ import annotations

from typing import Any

import orjson

from amprenta_vectors.sandbox.pinecone.documents import DocumentsApi, check_kind, document_schema
from amprenta_vectors.sandbox.pinecone.records import Record
from amprenta_vectors.sandbox.pinecone.refusals import CODE_OF_STATUS, Code, Refused
from amprenta_vectors.sandbox.pinecone.request import Request, integer_of, object_of, text_of
from amprenta_vectors.sandbox.pinecone.service import IndexService, NamespaceSummary, Page
from amprenta_vectors.sandbox.pinecone.store import DEFAULT_NAMESPACE, Description
from amprenta_vectors.sandbox.pinecone.validation import to_sparse, to_values

_OF_BOTH = {"describe", "stats", "namespaces"}
"""Routes that every kind of index has."""

_FRAGMENT_BYTES = 512 * 1024 * 1024
"""How much JSON to keep for the next fetch of the same records: as text, a vector takes three times its bytes."""

_CONTROL_PLANE_CODES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 402: "PAYMENT_REQUIRED", 403: "FORBIDDEN"}


def error_body(route: str, status: int, message: str) -> bytes:
    """Return an error as the data plane, or for ``describe`` the control plane, words it."""
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
        self._documents = DocumentsApi(service, description)

    def answer(self, request: Request) -> bytes:
        """Return the body of the answer to ``request``."""
        if request.route not in _OF_BOTH:
            check_kind(self._description, request.route, documents=request.documents)
        api = self._documents if request.documents else self
        found = getattr(api, f"_{request.route}")(request)
        return found if isinstance(found, bytes) else orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY)

    def _describe(self, request: Request) -> dict[str, Any]:
        model = describe_index(self._description, self._host)
        if not request.name:
            return {"indexes": [model]}
        if request.name != self._description.name:
            raise Refused(404, f"Resource {request.name} not found")
        return model

    def _stats(self, request: Request) -> dict[str, Any]:
        namespaces = self._service.stats(object_of(request.json(), "filter"))
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
        namespace = text_of(body, "namespace")
        page = self._service.fetch_by_metadata(
            namespace, object_of(body, "filter"), integer_of(body, "limit"), text_of(body, "paginationToken")
        )
        return self._records(page, namespace)

    def _query(self, request: Request) -> dict[str, Any]:
        body = request.json()
        namespace, vector = text_of(body, "namespace"), body.get("vector")
        if body.get("sparseVector") is not None:
            raise Refused(501, "Sparse queries are not part of the sandbox")
        page = self._service.query(
            namespace,
            integer_of(body, "topK") or 0,
            vector=to_values(vector) if vector is not None else None,
            id=text_of(body, "id") or None,
            filter=object_of(body, "filter"),
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
        count = self._service.upsert(text_of(body, "namespace"), records, len(request.body))
        return {"upsertedCount": count}

    def _update(self, request: Request) -> dict[str, Any]:
        body = request.json()
        namespace, record, values = text_of(body, "namespace"), text_of(body, "id"), body.get("values")
        metadata, wanted = object_of(body, "setMetadata"), object_of(body, "filter")
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
            text_of(body, "namespace"), ids, delete_all=bool(body.get("deleteAll")), filter=object_of(body, "filter")
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
    """Return the control plane's model of an index (2026-07).

    Vectors that are no document's are the reserved ``_values``. A ``model`` stands where an index that embeds text
    itself has its own: in a ``semantic_text`` field.
    """
    if description.kind == "documents":
        schema = document_schema(description)
    else:
        schema = {"_values": {"type": "dense_vector", "dimension": description.dimension, "metric": description.metric}}
        if description.metric == "dotproduct":
            schema["_sparse_values"] = {"type": "sparse_vector"}
        if description.model is not None:
            schema["text"] = {"type": "semantic_text", "model": description.model, "metric": description.metric}
    deployment: dict[str, Any] = {"deployment_type": "managed", "cloud": "aws", "region": "us-east-1"}
    if description.kind == "pod":
        deployment = {
            "deployment_type": "pod",
            "environment": "us-east1-gcp",
            "pod_type": "p1.x1",
            "replicas": 1,
            "shards": 1,
        }
    return {
        "name": description.name,
        "host": host,
        "status": {"ready": True, "state": "Ready"},
        "schema": {"fields": schema},
        "deployment": deployment,
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
