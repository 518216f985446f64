"""Rows that are their own source: those that were never embedded, and those whose text has changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from amprenta_vectors.errors import ConfigError
from amprenta_vectors.schema.hashes import hash_text, to_bigint
from amprenta_vectors.schema.keymaps import OwnKeys
from amprenta_vectors.schema.slice import Slice, given_keys


class Texts(Protocol):
    """A source that embeds texts, and can give them without embedding them."""

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        """Iterate over pages of keys, each with the token of the page after it."""
        ...

    def texts(self, keys: Sequence[str]) -> Mapping[str, str]:
        """Return the text to embed, by key."""
        ...


class ChangedTexts:
    """The keys of rows to embed: without an embedding, or with an embedding of another text than the row has now.

    A row whose embedding was not made from its text here is left out: whether its text changed is not known.
    """

    def __init__(self, engine: Engine, slice_: Slice, source: Texts) -> None:
        table = slice_.table
        if table.text_hash is None:
            raise ConfigError(
                f"table {table.qualified_name} has no column that tells the text of an embedding, so that none is "
                "known to have changed",
                hint=f"ALTER TABLE {table.qualified_name} ADD COLUMN embedding_text_hash bigint; for a table of your "
                'own, text_hash = "embedding_text_hash" in amprenta.toml',
            )
        self._engine = engine
        self._slice = slice_
        self._source = source
        self._own = OwnKeys([table.column_types[name] for name in table.key])

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        """Iterate over the source's pages, with only the keys to embed."""
        for keys, following in self._source.iter_keys(token):
            yield self._changed(keys), following

    def _changed(self, keys: Sequence[str]) -> list[str]:
        texts = self._source.texts(keys)
        kept = self._kept(list(texts))
        return [key for key, text in texts.items() if key in kept and kept[key] != to_bigint(hash_text(text))]

    def _kept(self, keys: Sequence[str]) -> dict[str, int | None]:
        """Return the hash of the text that each row was embedded from, None for a row without an embedding."""
        slice_ = self._slice
        parsed = {key: own for key in keys if (own := self._own.to_key(key)) is not None}
        if not parsed:
            return {}
        given: Any = given_keys(list(parsed.values()), source=list(parsed))
        embedding, text_hash = slice_.embedding(), slice_.rows.c[str(slice_.table.text_hash)]
        # A row of the texts' own table may have none here yet.
        joined = given.join(slice_.rows, sa.and_(*slice_.is_row_of(given)), isouter=slice_.table.texts is not None)
        statement = (
            sa.select(given.c.source, sa.case((embedding.is_(None), sa.null()), else_=text_hash).label("kept"))
            .select_from(joined)
            .where(slice_.lacks_embedding() | slice_.embedded_here())
        )
        with self._engine.connect() as connection:
            return {row.source: row.kept for row in connection.execute(statement)}
