"""What the tests of the product system share."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

PRODUCTS = 120
ABSENT, INACTIVE, UNMATCHED = 10, 6, 5
"""Of them not in Chroma, sold no more; and ids that only Chroma has."""


def rows(engine: sa.Engine, statement: str, **values: Any) -> list[Any]:
    """The rows of a statement, where it has any; committed."""
    with engine.begin() as connection:
        result = connection.execute(sa.text(statement), values)
        return list(result.all()) if result.returns_rows else []
