"""A column type known by the name that the catalogue gives it."""

from __future__ import annotations

from typing import Any

from sqlalchemy.types import UserDefinedType


class NamedType(UserDefinedType[Any]):
    """A type whose SQL name came from the catalogue, or is one of pgvector's with its dimension."""

    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_: Any) -> str:
        """Return the type as SQL writes it."""
        return self.name
