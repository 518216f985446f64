"""The check that the rows of a table have a source's texts and metadata, which no comparison of vectors tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backends.protocol import Source
from amprenta_vectors.backfill.writing.sink import stored_content
from amprenta_vectors.batch import VectorBatch
from amprenta_vectors.schema.catalogue import columns_of
from amprenta_vectors.schema.expressions import among, to_clause
from amprenta_vectors.schema.hashes import hash_content, to_bigint
from amprenta_vectors.schema.keymaps import to_key_maker
from amprenta_vectors.schema.slice import Slice

UPDATED_AT = "updated_at"
Metadata = Mapping[str, Any] | None


@dataclass
class Contents:
    """The source keys whose row is ``absent``, and those whose row exists and ``differs``."""

    absent: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)


class ContentCheck:
    """Compares texts and metadata with a table from the catalogue whose keys are made of source keys.

    A row agrees with the source if both are equal now, as ``decrypt`` gives their metadata; or if they were when the
    engine inserted it, as what was changed here since is newer; or if the application wrote the whole row after
    ``since``, as that is newer too.
    """

    def __init__(
        self,
        connection: Connection,
        slice_: Slice,
        *,
        since: datetime,
        decrypt: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> None:
        self._connection = connection
        self._slice = slice_
        self._table = table = slice_.table
        self._since = since
        self._decrypt = decrypt
        self._to_key = to_key_maker(table, slice_.scope)
        updated = columns_of(connection, table).get(UPDATED_AT)
        self._has_times = updated is not None and updated.base == "timestamp with time zone"

    def compare(self, source: Source) -> Contents:
        """Compare every key of ``source`` but those that it quarantines."""
        found = Contents()
        for keys, _ in source.iter_keys():
            batch = stored_content(source.fetch(keys), self._table)
            rows = self._rows(batch.source_keys)
            for place, key in enumerate(batch.source_keys):
                row = rows.get(self._to_key(key))
                if row is None:
                    found.absent.append(key)
                elif not self._holds(row, batch, place):
                    found.differs.append(key)
        return found

    def _rows(self, source_keys: Sequence[str]) -> dict[str, Any]:
        table, [key] = self._table, self._table.key
        times = (UPDATED_AT,) if self._has_times else ()
        target = to_clause(table, *times)
        names = {"text": table.text, "metadata": table.metadata, "hash": table.hash, "text_hash": table.text_hash}
        columns = [(sa.null() if name is None else target.c[name]).label(label) for label, name in names.items()]
        columns += [target.c[name].label(name) for name in times]
        statement = sa.select(sa.cast(target.c[key], sa.Text).label("key"), *columns).where(
            *self._slice.in_scope(target),
            among(table, target, key, [self._to_key(item) for item in source_keys]),
        )
        return {row.key: row for row in self._connection.execute(statement)}

    def _holds(self, row: Any, batch: VectorBatch, place: int) -> bool:
        text = batch.texts[place] if batch.texts is not None else None
        metadata: Metadata = batch.metadata[place] if batch.metadata is not None else None
        if row.text_hash is not None and row.text_hash == to_bigint(hash_content(text, metadata)):
            return True
        if row.text == text and self._decrypt(row.metadata or {}) == self._decrypt(metadata or {}):
            return True
        written_here = row.hash is None and row.text_hash is None
        return written_here and self._has_times and bool(row.updated_at > self._since)
