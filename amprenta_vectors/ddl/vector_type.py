"""pgvector's column types as DDL, so that revisions need nothing but Alembic and SQLAlchemy."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from sqlalchemy.types import UserDefinedType

Storage = Literal["vector", "halfvec"]

_TYPE = re.compile(r"(?:.+\.)?(vector|halfvec)\((\d+)\)")


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
