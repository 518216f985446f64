"""pgvector's column types as DDL, so that revisions need nothing but Alembic and SQLAlchemy."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from sqlalchemy.dialects.postgresql.base import ischema_names
from sqlalchemy.types import NullType, TypeEngine, UserDefinedType

Storage = Literal["vector", "halfvec"]

PATTERN = r"(?:.+\.)?(vector|halfvec)\((\d+)\)"
"""The SQL name of such a type, as Python and PostgreSQL match it."""

_TYPE = re.compile(PATTERN)


class VectorType(UserDefinedType[Any]):
    """``vector(dimension)`` or ``halfvec(dimension)``."""

    cache_ok = True

    def __init__(self, storage: str, dimension: int) -> None:
        self.storage = storage
        self.dimension = int(dimension)

    def get_col_spec(self, **_: Any) -> str:
        """The type as SQL writes it."""
        return f"{self.storage}({self.dimension})"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """The type of that SQL name; None for any other kind of type."""
        match = _TYPE.fullmatch(name)
        return cls(match[1], int(match[2])) if match else None


def _reflected(storage: Storage) -> Any:
    """What SQLAlchemy calls with the arguments of a type that it found in the catalogue."""

    def type_of(dimension: int | None = None) -> TypeEngine[Any]:
        return NullType() if dimension is None else VectorType(storage, dimension)

    return type_of


# pgvector's own classes take these places where an application imports them.
ischema_names.setdefault("vector", _reflected("vector"))
ischema_names.setdefault("halfvec", _reflected("halfvec"))
