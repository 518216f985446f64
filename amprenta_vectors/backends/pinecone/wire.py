"""Pinecone's gRPC data plane as messages of our own, so that a vector stays the bytes it came as.

Field numbers are those of Pinecone's published ``VectorService`` (2026-04). A packed ``repeated float`` has the same
wire form as ``bytes`` (https://protobuf.dev/programming-guides/encoding/#packed), so ``values`` is declared as bytes
and holds little-endian float32 that numpy reads in place. ``metadata`` and ``sparse_values`` are declared as bytes too
and are parsed only when they are wanted. Descriptors are built here instead of generated: generated code is tied to the
protobuf release that made it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from amprenta_vectors.extras import needing

with needing("pinecone"):
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    from google.protobuf.struct_pb2 import Struct

_PACKAGE = "amprenta_vectors.pinecone_wire"
_TYPES = descriptor_pb2.FieldDescriptorProto

SERVICE = "VectorService"

MESSAGES: dict[str, list[tuple[str, int, str]]] = {
    "SparseValues": [("indices", 1, "uint32[]"), ("values", 2, "float[]")],
    "Vector": [("id", 1, "string"), ("values", 2, "bytes"), ("metadata", 3, "bytes"), ("sparse_values", 4, "bytes")],
    "Usage": [("read_units", 1, "uint32")],
    "FetchRequest": [("ids", 1, "string[]"), ("namespace", 2, "string")],
    "FetchEntry": [("key", 1, "string"), ("value", 2, "Vector")],
    "FetchResponse": [("vectors", 1, "FetchEntry[]"), ("namespace", 2, "string"), ("usage", 3, "Usage")],
    "ListRequest": [
        ("prefix", 1, "string"),
        ("limit", 2, "uint32"),
        ("pagination_token", 3, "string"),
        ("namespace", 4, "string"),
    ],
    "ListItem": [("id", 1, "string")],
    "Pagination": [("next", 1, "string")],
    "ListResponse": [
        ("vectors", 1, "ListItem[]"),
        ("pagination", 2, "Pagination"),
        ("namespace", 3, "string"),
        ("usage", 4, "Usage"),
    ],
}

_SCALARS = {
    "string": _TYPES.TYPE_STRING,
    "bytes": _TYPES.TYPE_BYTES,
    "bool": _TYPES.TYPE_BOOL,
    "int32": _TYPES.TYPE_INT32,
    "uint32": _TYPES.TYPE_UINT32,
    "uint64": _TYPES.TYPE_UINT64,
    "float": _TYPES.TYPE_FLOAT,
}


def build_messages(messages: Mapping[str, Sequence[tuple[str, int, str]]]) -> dict[str, Any]:
    """Return message classes by name, from ``(field name, number, type)``.

    A type is a scalar or another message; ``type[]`` is repeated, ``type?`` records whether it was set.
    """
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3")
    for message, fields in messages.items():
        proto = file.message_type.add(name=message)
        for name, number, kind in fields:
            base = kind.rstrip("[]?")
            field = proto.field.add(
                name=name,
                number=number,
                label=_TYPES.LABEL_REPEATED if kind.endswith("[]") else _TYPES.LABEL_OPTIONAL,
                type=_SCALARS.get(base, _TYPES.TYPE_MESSAGE),
                type_name=None if base in _SCALARS else f".{_PACKAGE}.{base}",
            )
            if kind.endswith("?"):
                field.proto3_optional = True
                field.oneof_index = len(proto.oneof_decl)
                proto.oneof_decl.add(name=f"_{name}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in messages
    }


_classes = build_messages(MESSAGES)
SparseValues: Any = _classes["SparseValues"]
Vector: Any = _classes["Vector"]
FetchEntry: Any = _classes["FetchEntry"]
FetchRequest: Any = _classes["FetchRequest"]
FetchResponse: Any = _classes["FetchResponse"]
ListRequest: Any = _classes["ListRequest"]
ListResponse: Any = _classes["ListResponse"]


def decode_struct(data: bytes) -> dict[str, Any]:
    """Decode a protobuf ``Struct`` to the mapping that it holds; its numbers are floats."""
    return {name: _decode_value(value) for name, value in Struct.FromString(data).fields.items()}


def _decode_value(value: Any) -> Any:
    match value.WhichOneof("kind"):
        case "list_value":
            return [_decode_value(item) for item in value.list_value.values]
        case "struct_value":
            return {name: _decode_value(item) for name, item in value.struct_value.fields.items()}
        case None | "null_value":
            return None
        case kind:
            return getattr(value, kind)
