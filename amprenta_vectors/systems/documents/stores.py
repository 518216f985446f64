"""The choice of simple vector stores, by user, and how many rows the table has of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backends.simple.source import SimpleOrigin
from amprenta_vectors.backends.simple.tree import shown
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import AmprentaError, SourceNotFound
from amprenta_vectors.pg.errors import to_error
from amprenta_vectors.schema.registry import VECTOR_DOCUMENTS
from amprenta_vectors.schema.slice import Slice

SHOWN = 20
"""The most keys, users or reasons that a message names."""


def document_settings(root: Path | None = None, **options: Any) -> Settings:
    """Return settings whose table is the documents', unless the environment names another."""
    given = Settings.load()
    table = given.table if "table" in given.model_fields_set else VECTOR_DOCUMENTS.name
    return Settings.load(table=table, source="simple", simple_store_root=root, **options)


def choose_stores(origin: SimpleOrigin, users: Sequence[str] = ()) -> list[str]:
    """Return the stores of ``users``, or all. Raises `SourceNotFound` for a user without a store."""
    names = list(origin.folders())
    known = dict.fromkeys(map(user_of, names))
    unknown = [user for user in users if user not in known]
    if unknown:
        raise SourceNotFound(
            f"{origin.root} has no store of user {', '.join(unknown)}",
            hint=f"users there are: {', '.join([*known][:SHOWN])}",
        )
    return of_users(names, users)


def of_users(names: Iterable[str], users: Sequence[str]) -> list[str]:
    """Return those of ``names`` that belong to ``users``; all of them if no user is given."""
    return [name for name in names if not users or user_of(name) in users]


def said_of(error: Exception) -> tuple[str, str]:
    """Return what an error says of a store, in a line and with its hint; one not foreseen by its type."""
    if isinstance(error, DBAPIError):
        error = to_error(error, "the database refused a statement")
    if isinstance(error, AmprentaError):
        return shown(error.message), shown(error)
    said = shown(f"{type(error).__name__}: {error}")
    return said, said


def user_of(store: str) -> str:
    """Return the user whose store it is."""
    return store.partition("/")[0]


def count_rows(engine: Engine, slice_: Slice) -> int:
    """Return how many rows a slice has."""
    statement = sa.select(sa.func.count()).select_from(slice_.rows).where(*slice_.in_scope())
    with engine.connect() as connection:
        return connection.execute(statement).scalar_one()
