"""The column that embeddings already lie in, as a declaration of a vector table names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import ConfigDict

from amprenta_vectors.schema.names import Columns, Identifier

Elements = Literal["float32-le", "float32-be", "float64-le", "float64-be", "float16-le", "float16-be"]
"""The elements of an embedding that is kept as bytes: their type, and which byte comes first."""

ELEMENT_TYPES: Mapping[Elements, str] = {
    "float32-le": "<f4",
    "float32-be": ">f4",
    "float64-le": "<f8",
    "float64-be": ">f8",
    "float16-le": "<f2",
    "float16-be": ">f2",
}
"""The elements as numpy names them."""


@dataclass(frozen=True)
class OldColumn:
    """A ``column`` of the vector table itself, or of ``table``, whose columns ``key`` hold the vector table's key.

    Without ``key``, they have the names that the vector table's key columns have. A scope column is part of the join if
    ``table`` has one of that name. ``elements`` is for a column of bytes.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    column: Identifier
    table: Identifier | None = None
    schema: Identifier | None = None
    key: Columns = ()
    elements: Elements | None = None
