"""Finds where a record of the source is in the table: in the scope, in another scope, or nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sqlalchemy as sa

from amprenta_vectors.schema.keymaps import look_up
from amprenta_vectors.schema.slice import Slice
from amprenta_vectors.stores.filters.language import parse_filter
from amprenta_vectors.stores.pgvector.sql import Statements
from amprenta_vectors.stores.protocol import Filter


class Whereabouts:
    """The rows of a slice, with a vector or without. Of other scopes only keys are read.

    A key is spelled, and ``text_field`` is used, as in `PgVectorStore`.
    """

    def __init__(self, engine: sa.Engine, slice_: Slice, text_field: str) -> None:
        self._engine = engine
        self._slice = slice_
        self._here = Statements(slice_, text_field)
        anywhere = replace(slice_, table=slice_.table.with_columns(scope=()), scope={})
        self._anywhere = Statements(anywhere, text_field)

    def spelled(self, source_keys: Sequence[str]) -> dict[str, str]:
        """Return the key that a row has for each of ``source_keys``; source keys that no row can have are absent."""
        keys = {key: key for key in source_keys}
        if self._slice.table.key_rule.kind == "uuid5":
            keys = {source: key for source, [(key,)] in look_up(self._slice.key_map, source_keys).items()}
        spelled = self._here.spelled(keys.values())
        return {source: spelled[key] for source, key in keys.items() if key in spelled}

    def here(self, keys: Sequence[str], filter: Filter | None) -> dict[str, bool]:
        """Return those of ``keys`` that a row of the scope has, and whether that row matches ``filter``."""
        condition = parse_filter(filter) if filter else None
        with self._engine.connect() as connection:
            found: dict[str, bool] = {}
            for row in connection.execute(self._here.located(keys, condition)):
                # Several rows may have one key where a column is looked up.
                found[row.key] = found.get(row.key, False) or row.matches
            return found

    def anywhere(self, keys: Sequence[str]) -> set[str]:
        """Return those of ``keys`` that a row of any scope has."""
        with self._engine.connect() as connection:
            return {row.key for row in connection.execute(self._anywhere.located(keys, None))}
