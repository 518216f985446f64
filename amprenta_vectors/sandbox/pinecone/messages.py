"""Pinecone's gRPC messages: those of `amprenta_vectors.backends.pinecone.wire`, and the rest built in the same way.

Field numbers are those of Pinecone's published ``VectorService`` (2026-07). Dense values, metadata and filters are
declared as bytes here too: little-endian float32, and a ``google.protobuf.Struct`` yet to be parsed.
"""

from __future__ import annotations

from typing import Any

from amprenta_vectors.backends.pinecone import wire as pinecone_wire

_MESSAGES: dict[str, list[tuple[str, int, str]]] = {
    "UpsertRequest": [("vectors", 1, "Vector[]"), ("namespace", 2, "string")],
    "UpsertResponse": [("upserted_count", 1, "uint32")],
    "DeleteRequest": [
        ("ids", 1, "string[]"),
        ("delete_all", 2, "bool"),
        ("namespace", 3, "string"),
        ("filter", 4, "bytes?"),
    ],
    "FetchByMetadataRequest": [
        ("namespace", 1, "string"),
        ("filter", 2, "bytes?"),
        ("limit", 3, "uint32?"),
        ("pagination_token", 4, "string?"),
    ],
    "FetchByMetadataTail": [("namespace", 2, "string"), ("usage", 3, "Usage"), ("pagination", 4, "Pagination")],
    "QueryRequest": [
        ("namespace", 1, "string"),
        ("top_k", 2, "uint32"),
        ("filter", 3, "bytes?"),
        ("include_values", 4, "bool"),
        ("include_metadata", 5, "bool"),
        ("vector", 7, "bytes"),
        ("id", 8, "string"),
        ("sparse_vector", 9, "bytes?"),
    ],
    "ScoredVector": [
        ("id", 1, "string"),
        ("score", 2, "float"),
        ("values", 3, "bytes"),
        ("metadata", 4, "bytes?"),
        ("sparse_values", 5, "bytes?"),
    ],
    "QueryResponse": [("matches", 2, "ScoredVector[]"), ("namespace", 3, "string"), ("usage", 4, "Usage")],
    "UpdateRequest": [
        ("id", 1, "string"),
        ("values", 2, "bytes"),
        ("set_metadata", 3, "bytes?"),
        ("namespace", 4, "string"),
        ("sparse_values", 5, "bytes?"),
        ("filter", 6, "bytes?"),
        ("dry_run", 7, "bool"),
    ],
    "UpdateResponse": [("matched_records", 1, "int32?")],
    "DescribeIndexStatsRequest": [("filter", 1, "bytes?")],
    "NamespaceSummary": [("vector_count", 1, "uint32")],
    "NamespaceEntry": [("key", 1, "string"), ("value", 2, "NamespaceSummary")],
    "DescribeIndexStatsResponse": [
        ("namespaces", 1, "NamespaceEntry[]"),
        ("dimension", 2, "uint32"),
        ("index_fullness", 3, "float"),
        ("total_vector_count", 4, "uint32"),
        ("metric", 5, "string"),
        ("vector_type", 6, "string"),
    ],
    "ListNamespacesRequest": [("pagination_token", 1, "string?"), ("limit", 2, "uint32?"), ("prefix", 3, "string")],
    "NamespaceDescription": [("name", 1, "string"), ("record_count", 2, "uint64")],
    "ListNamespacesResponse": [
        ("namespaces", 1, "NamespaceDescription[]"),
        ("pagination", 2, "Pagination"),
        ("total_count", 3, "int32"),
    ],
    "DescribeNamespaceRequest": [("namespace", 1, "string")],
}

_classes = pinecone_wire.build_messages(pinecone_wire.MESSAGES | _MESSAGES)
SparseValues: Any = _classes["SparseValues"]
Vector: Any = _classes["Vector"]
Usage: Any = _classes["Usage"]
Pagination: Any = _classes["Pagination"]
ListItem: Any = _classes["ListItem"]
ListRequest: Any = _classes["ListRequest"]
ListResponse: Any = _classes["ListResponse"]
FetchRequest: Any = _classes["FetchRequest"]
FetchResponse: Any = _classes["FetchResponse"]
FetchEntry: Any = _classes["FetchEntry"]
UpsertRequest: Any = _classes["UpsertRequest"]
UpsertResponse: Any = _classes["UpsertResponse"]
DeleteRequest: Any = _classes["DeleteRequest"]
FetchByMetadataRequest: Any = _classes["FetchByMetadataRequest"]
FetchByMetadataTail: Any = _classes["FetchByMetadataTail"]
QueryRequest: Any = _classes["QueryRequest"]
QueryResponse: Any = _classes["QueryResponse"]
ScoredVector: Any = _classes["ScoredVector"]
UpdateRequest: Any = _classes["UpdateRequest"]
UpdateResponse: Any = _classes["UpdateResponse"]
DescribeIndexStatsRequest: Any = _classes["DescribeIndexStatsRequest"]
DescribeIndexStatsResponse: Any = _classes["DescribeIndexStatsResponse"]
NamespaceEntry: Any = _classes["NamespaceEntry"]
NamespaceSummary: Any = _classes["NamespaceSummary"]
ListNamespacesRequest: Any = _classes["ListNamespacesRequest"]
ListNamespacesResponse: Any = _classes["ListNamespacesResponse"]
NamespaceDescription: Any = _classes["NamespaceDescription"]
DescribeNamespaceRequest: Any = _classes["DescribeNamespaceRequest"]
