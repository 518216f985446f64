"""The names of columns and tables that a declaration gives; only declarations are checked for these."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator


def _check_identifier(name: str) -> str:
    if not 0 < len(name.encode()) <= 63:
        raise ValueError("expected a name of 1 to 63 bytes")
    return name


def _to_columns(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, str | list | tuple):
        raise ValueError("expected a name or a list of names")  # noqa: TRY004 - pydantic gathers ValueErrors
    return (value,) if isinstance(value, str) else tuple(value)


Identifier = Annotated[str, AfterValidator(_check_identifier)]
Columns = Annotated[tuple[Identifier, ...], BeforeValidator(_to_columns)]
