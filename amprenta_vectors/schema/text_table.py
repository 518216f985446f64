"""The table that the texts of a vector table's rows lie in, where that is another, as a declaration names it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field

from amprenta_vectors.schema.names import Columns, Identifier


@dataclass(frozen=True)
class TextTable:
    """The text of a row is in ``columns`` of ``table``, whose columns ``key`` hold the vector table's key.

    A row of it that has none in the vector table yet is a row to fill there.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    table: Identifier
    columns: Annotated[Columns, Field(min_length=1)]
    key: Annotated[Columns, Field(min_length=1)] = ("id",)
    schema: Identifier | None = None
