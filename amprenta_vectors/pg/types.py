"""pgvector's column types as SQL writes them, and what an index can hold of each."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.types import NullType, TypeEngine, UserDefinedType

Storage = Literal["vector", "halfvec"]
Distance = Literal["cosine", "l2", "ip"]
IndexDistance = Literal["cosine", "l2", "ip", "l1"]
IndexMethod = Literal["hnsw", "ivfflat"]
CoarserStorage = Literal["halfvec", "bit"]
"""The storages that an index may hold of a vector in place of the vector itself."""
IndexStorage = Literal["vector", "halfvec", "bit"]
"""What an index holds of a dimension, from fine to coarse: four bytes, two bytes or one bit, its sign."""

INDEX_LIMITS: dict[IndexStorage, int] = {"vector": 2000, "halfvec": 4000, "bit": 64_000}
"""The most dimensions that pgvector indexes (its README)."""

LONGEST_VECTOR = 16_000
"""The most dimensions that a column can have (pgvector's README)."""

SEND_HEAD = 4
"""The bytes that ``vector_send`` and ``halfvec_send`` give before the values: the dimension and a zero, int16 each."""

TEXTS = ("text", "character varying", "character", "bpchar", "citext", "name")
"""Types that hold text."""

DOCUMENTS = ("jsonb", "json")
"""Types that hold a JSON document."""

_LENGTH = re.compile(r"\(\d+(,-?\d+)?\)")
_SIZED = re.compile(r"(?:.+\.)?(vector|halfvec|sparsevec)\((\d+)\)", re.IGNORECASE)


class VectorType(UserDefinedType[Any]):
    """The type ``vector(dimension)`` or ``halfvec(dimension)``."""

    cache_ok = True

    def __init__(self, storage: str, dimension: int) -> None:
        self.storage = storage
        self.dimension = int(dimension)

    def get_col_spec(self, **_: Any) -> str:
        """Return the type as SQL writes it."""
        return f"{self.storage}({self.dimension})"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Return the type of that SQL name, wherever the extension is; None for any other kind of type."""
        found = parse_sized(name)
        return cls(*found) if found is not None and found[0] != "sparsevec" else None


def parse_sized(type_name: str) -> tuple[str, int] | None:
    """Return ``("vector", 768)`` for ``vector(768)``, and the same for halfvec and sparsevec; None for any other type.

    A type without a dimension is another type.
    """
    found = _SIZED.fullmatch(type_name)
    return (found[1].lower(), int(found[2])) if found else None


def spelt(type_: TypeEngine[Any]) -> str:
    """Return a type of SQLAlchemy's as ``format_type`` writes it."""
    sql = type_.compile(dialect=postgresql.dialect()).lower()  # type: ignore[no-untyped-call]
    return re.sub(r"^varchar", "character varying", sql).replace(", ", ",")


def without_length(type_name: str) -> str:
    """Return a type, as ``format_type`` writes it, without its length: ``numeric`` for ``numeric(12,2)``."""
    return _LENGTH.sub("", type_name)


def bare_type(type_name: str) -> str:
    """Return a type, as ``format_type`` writes it, without its length and schema."""
    return without_length(type_name).rpartition(".")[2]


def is_text(type_name: str) -> bool:
    """Return whether a type, as ``format_type`` writes it, holds text of any length."""
    return bare_type(type_name) in TEXTS


def _reflected(storage: Storage) -> Any:
    """Return the function that SQLAlchemy calls with the arguments of a type that it found in the catalogue."""

    def type_of(dimension: int | None = None) -> TypeEngine[Any]:
        return NullType() if dimension is None else VectorType(storage, dimension)

    return type_of


# pgvector's own classes take these places where an application imports them.
ischema_names.setdefault("vector", _reflected("vector"))
ischema_names.setdefault("halfvec", _reflected("halfvec"))
