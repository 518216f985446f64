"""One record, kept as the bytes that gRPC sends of it; all other forms are made from these when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import orjson
from google.protobuf.struct_pb2 import Struct, Value
from numpy.typing import NDArray

from amprenta_vectors.sandbox.pinecone import messages

_LARGEST_EXACT_INTEGER = 2**53

Metadata = Mapping[str, Any]


@dataclass(frozen=True)
class Sparse:
    """Sparse values: as many ``indices`` (uint32) as ``values`` (float32)."""

    indices: Sequence[int]
    values: Sequence[float]

    def encode(self) -> bytes:
        """Return the sparse values as a protobuf ``SparseValues``."""
        encoded: bytes = messages.SparseValues(indices=self.indices, values=self.values).SerializeToString()
        return encoded

    @classmethod
    def decode(cls, data: bytes) -> Sparse:
        """Read a protobuf ``SparseValues``."""
        message = messages.SparseValues.FromString(data)
        return cls(list(message.indices), list(message.values))

    def to_json(self) -> dict[str, Any]:
        """Return the sparse values as Pinecone's JSON has them; the values read back as the same float32."""
        return {"indices": list(self.indices), "values": np.asarray(self.values, np.float32)}


class Record:
    """A stored record, kept as the bytes that gRPC sends of it.

    ``entry`` is a whole protobuf ``FetchResponse`` with this one vector in it; ``json``, its `encode_json` if somebody
    kept it. Messages joined end to end are one message with the fields of all of them
    (https://protobuf.dev/programming-guides/encoding/#last-one-wins), so a fetch answers with joined entries.
    """

    def __init__(self, id: str, entry: bytes) -> None:
        self.id = id
        self.entry = entry
        self.json: bytes | None = None

    @classmethod
    def build(cls, id: str, values: bytes, metadata: Metadata | None, sparse: Sparse | None) -> Record:
        """Build a record of little-endian float32 ``values``; b"" for one with sparse values only."""
        vector = messages.Vector(id=id, values=values)
        if metadata:
            vector.metadata = encode_struct(metadata)
        if sparse is not None:
            vector.sparse_values = sparse.encode()
        response = messages.FetchResponse(vectors=[messages.FetchEntry(key=id, value=vector)])
        return cls(id, response.SerializeToString())

    @property
    def vector(self) -> Any:
        """The protobuf ``Vector``."""
        return messages.FetchResponse.FromString(self.entry).vectors[0].value

    @property
    def values(self) -> NDArray[np.float32]:
        """The dense values, ``(dimension,)``; empty for a record with sparse values only."""
        return np.frombuffer(self.vector.values, dtype="<f4")

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The metadata; empty if there is none, which Pinecone does not tell apart from an empty one."""
        return decode_struct(self.vector.metadata)

    @property
    def sparse(self) -> Sparse | None:
        """The sparse values, if any."""
        data = self.vector.sparse_values
        return Sparse.decode(data) if data else None

    def to_json(self) -> dict[str, Any]:
        """Return the record as Pinecone's JSON has it; the arrays in it are for orjson."""
        found: dict[str, Any] = {"id": self.id, "values": self.values}
        if (sparse := self.sparse) is not None:
            found["sparseValues"] = sparse.to_json()
        if self.metadata:
            found["metadata"] = self.metadata
        return found

    def encode_json(self) -> bytes:
        """Return ``"id": {…}``, a member of the object that a fetch answers with."""
        return orjson.dumps(self.id) + b":" + orjson.dumps(self.to_json(), option=orjson.OPT_SERIALIZE_NUMPY)


def encode_struct(value: Metadata) -> bytes:
    """Return ``value`` as a protobuf ``Struct``; its numbers become float64, as Pinecone's are."""
    struct = Struct()
    struct.update(value)
    return struct.SerializeToString()


def decode_struct(data: bytes) -> dict[str, Any]:
    """Return the mapping that a protobuf ``Struct`` holds."""
    return {name: _decode_value(value) for name, value in Struct.FromString(data).fields.items()}


def _decode_value(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "number_value":
            return _decode_number(value.number_value)
        case "bool_value":
            return value.bool_value
        case "list_value":
            return [_decode_value(item) for item in value.list_value.values]
        case "struct_value":
            return {name: _decode_value(item) for name, item in value.struct_value.fields.items()}
        case _:
            return None


def _decode_number(number: float) -> int | float:
    # JSON has no float type of its own: protobuf writes a whole number without a point.
    whole = number.is_integer() and abs(number) <= _LARGEST_EXACT_INTEGER
    return int(number) if whole and not (number == 0.0 and np.signbit(number)) else number
