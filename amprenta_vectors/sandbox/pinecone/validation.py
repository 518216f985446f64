"""Pinecone's requirements of ids, namespaces, values and metadata, with refusals in its own words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from amprenta_vectors.sandbox.pinecone.records import Sparse
from amprenta_vectors.sandbox.pinecone.refusals import Refused

LONGEST_ID = 512
LARGEST_METADATA_BYTES = 40 * 1024
LARGEST_UINT32 = 2**32 - 1


def check_id(id: Any, what: str = "Vector ID") -> str:
    """Return ``id``, which must be 1 to 512 ASCII characters without NUL; a namespace's name must, too."""
    if not isinstance(id, str) or not id:
        raise Refused(400, f"{what} must be a non-empty string")
    if not id.isascii():
        raise Refused(400, f"{what} must be ASCII, but got '{id}'")
    if "\0" in id:
        raise Refused(400, f"{what} must not contain the NUL character")
    if len(id) > LONGEST_ID:
        raise Refused(400, f"{what} is {len(id)} characters long, the limit is {LONGEST_ID}")
    return id


def check_values(values: NDArray[np.float32], dimension: int, id: str | None = None) -> bytes:
    """Return dense values as little-endian float32; ``id`` is that of the record to store, None for a query."""
    if len(values) != dimension:
        raise Refused(400, f"Vector dimension {len(values)} does not match the dimension of the index {dimension}")
    if not np.isfinite(values).all():
        raise Refused(400, "Vector values must be finite float32 numbers")
    if id is not None and not values.any():
        raise Refused(
            400, f"Dense vectors must contain at least one non-zero value. Vector ID {id} contains only zeros."
        )
    return values.astype("<f4").tobytes()


def to_values(numbers: Any) -> NDArray[np.float32]:
    """Return a JSON list of numbers as float32; numbers too large for it become infinite."""
    try:
        array = np.asarray(numbers)
    except ValueError as error:
        raise Refused(400, f"Vector values must be a list of numbers: {error}") from error
    if array.ndim != 1 or (array.size and array.dtype.kind not in "fiu"):
        raise Refused(400, "Vector values must be a list of numbers")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def to_sparse(value: Any, metric: str) -> Sparse | None:
    """Return the sparse values of a JSON record, if any; only indexes that use dotproduct take them."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise Refused(400, "Sparse values must be an object of indices and values")
    return check_sparse(Sparse(value.get("indices") or [], to_values(value.get("values") or []).tolist()), metric)


def check_sparse(sparse: Sparse, metric: str) -> Sparse:
    """Return ``sparse``, which must be one finite value for each of its indices."""
    if metric != "dotproduct":
        raise Refused(
            400,
            "Index configuration does not support sparse values - only indexes that are sparse or using dotproduct "
            "are supported",
        )
    indices_ok = all(isinstance(index, int) and 0 <= index <= LARGEST_UINT32 for index in sparse.indices)
    if not sparse.indices or len(sparse.indices) != len(sparse.values) or not indices_ok:
        raise Refused(400, "Sparse vector must have the same number, at least 1, of uint32 indices and of values")
    if not all(map(math.isfinite, sparse.values)):
        raise Refused(400, "Sparse vector values must be finite float32 numbers")
    return sparse


def check_metadata(metadata: Any) -> Mapping[str, Any] | None:
    """Return ``metadata``, which must be flat and at most 40 KB as JSON."""
    if metadata is None:
        return None
    if not isinstance(metadata, Mapping):
        raise Refused(400, "Metadata must be an object")
    for name, value in metadata.items():
        if name.startswith("$"):
            raise Refused(400, f"Metadata keys must not start with '$', got '{name}'")
        if not _is_metadata_value(value):
            raise Refused(
                400,
                "Metadata value must be a string, number, boolean or list of strings, "
                f"got '{_shown(value)}' for field '{name}'",
            )
    size = len(orjson.dumps(metadata))
    if size > LARGEST_METADATA_BYTES:
        raise Refused(
            400, f"Metadata size is {size} bytes, which exceeds the limit of {LARGEST_METADATA_BYTES} bytes per vector"
        )
    return metadata


def _is_metadata_value(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return isinstance(value, str | bool) or (isinstance(value, int | float) and math.isfinite(value))


def _shown(value: Any) -> str:
    return orjson.dumps(value).decode()[:100]


def check_count(items: Sequence[Any], limit: int, what: str) -> None:
    """Refuse an empty list, and one longer than ``limit``."""
    if not items:
        raise Refused(400, f"At least one of {what} must be given")
    if len(items) > limit:
        raise Refused(400, f"{len(items)} {what} were given, the limit is {limit}")


def check_limit(limit: int | None, largest: int, what: str = "limit") -> int:
    """Return ``limit``, or 100 if it is None; it must be 1 to ``largest``."""
    if limit is None:
        return 100
    if not 1 <= limit <= largest:
        raise Refused(400, f"{what} must be between 1 and {largest}, got {limit}")
    return limit
