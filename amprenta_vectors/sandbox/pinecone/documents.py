"""Document indexes (API 2026-07): JSON documents under ``/namespaces/{namespace}/documents``.

What the official client sends and takes is followed to the letter. The wording of a refusal between the kinds of index
is not published; the status is 400, as for other requests that an index cannot carry out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from amprenta_vectors.sandbox.pinecone.records import Record
from amprenta_vectors.sandbox.pinecone.refusals import Refused
from amprenta_vectors.sandbox.pinecone.request import Request, integer_of, object_of, text_of
from amprenta_vectors.sandbox.pinecone.service import IndexService
from amprenta_vectors.sandbox.pinecone.store import Description
from amprenta_vectors.sandbox.pinecone.validation import check_id, check_values, to_values


def check_kind(description: Description, route: str, *, documents: bool) -> None:
    """Refuse a request on a route that this kind of index does not have."""
    if documents != (description.kind == "documents"):
        wanted = "document" if description.kind == "documents" else "vector"
        raise Refused(400, f"This operation is not supported on this index: use the {wanted} operations")
    if route == "list" and description.kind == "pod":
        raise Refused(501, "list is supported only for serverless indexes")


def document_schema(description: Description) -> dict[str, Any]:
    """Return the fields that an index declares: its vectors, sparse ones if the metric is dotproduct, and a text."""
    schema: dict[str, Any] = {
        name: {"type": "dense_vector", "dimension": description.dimension, "metric": description.metric}
        for name in description.vector_fields
    }
    if description.metric == "dotproduct":
        schema["terms"] = {"type": "sparse_vector"}
    schema["text"] = {"type": "string", "full_text_search": {}}
    return schema


def to_record(document: Mapping[str, Any]) -> Record:
    """Return a document as the store keeps it: its JSON in place of a protobuf."""
    return Record(document["_id"], orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY))


class DocumentsApi:
    """Answers requests on documents with JSON. All methods raise `Refused`."""

    def __init__(self, service: IndexService, description: Description) -> None:
        self._service = service
        self._description = description

    def _list(self, request: Request) -> dict[str, Any]:
        body = request.json()
        page = self._service.list_ids(
            request.name, text_of(body, "prefix"), integer_of(body, "limit"), text_of(body, "pagination_token")
        )
        return {
            "documents": [{"_id": id_} for id_ in page.items],
            **({} if page.next is None else {"pagination": {"next": page.next}}),
            **_tail(request, page.read_units),
        }

    def _fetch(self, request: Request) -> bytes:
        body = request.json()
        ids = body.get("ids")
        if object_of(body, "filter") is not None or not isinstance(ids, list):
            raise Refused(501, "A fetch of documents by filter is not part of the sandbox")
        if body.get("include_fields") not in (None, [], ["*"]):
            raise Refused(501, "A choice of fields is not part of the sandbox")
        page = self._service.fetch(request.name, ids)
        members = b",".join(orjson.dumps(record.id) + b":" + record.entry for record in page.items)
        return b'{"documents":{' + members + b"}," + orjson.dumps(_tail(request, page.read_units))[1:]

    def _upsert(self, request: Request) -> dict[str, Any]:
        documents = request.json().get("documents")
        if not isinstance(documents, list) or not all(isinstance(document, dict) for document in documents):
            raise Refused(400, "documents must be a list of objects")
        for document in documents:
            self._check(document)
        records = [to_record(document) for document in documents]
        return {"upserted_count": self._service.upsert(request.name, records, len(request.body))}

    def _query(self, request: Request) -> dict[str, Any]:
        raise Refused(501, "A search of documents is not part of the sandbox")

    def _check(self, document: Mapping[str, Any]) -> None:
        id_ = check_id(document.get("_id"), "Document _id")
        for name in self._description.vector_fields:
            if name not in document:
                raise Refused(400, f"Document '{id_}' lacks the required field '{name}'")
            check_values(to_values(document[name]), self._description.dimension, id_)


def _tail(request: Request, read_units: int) -> dict[str, Any]:
    return {"namespace": request.name, "usage": {"read_units": read_units}}
