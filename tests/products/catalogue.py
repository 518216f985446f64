"""What the tests of the product system share."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from pytest_postgresql.janitor import DatabaseJanitor

from amprenta_vectors.sandbox.postgres import EmbeddedPostgres

PRODUCTS = 120
ABSENT, INACTIVE, UNMATCHED = 10, 6, 5
"""Of them not in Chroma, sold no more; and ids that only Chroma has."""


def database_like(
    server: EmbeddedPostgres, name: str, template_dbname: str | None = None, *, as_template: bool = False
) -> DatabaseJanitor:
    """Makes database ``name`` on entering, drops it with whoever is connected on leaving."""
    return DatabaseJanitor(
        user="postgres",
        host=str(server.socket_folder),
        port=server.port,
        dbname=name,
        as_template=as_template,
        template_dbname=template_dbname,
    )


def rows(engine: sa.Engine, statement: str, **values: Any) -> list[Any]:
    """The rows of a statement, where it has any; committed."""
    with engine.begin() as connection:
        result = connection.execute(sa.text(statement), values)
        return list(result.all()) if result.returns_rows else []
