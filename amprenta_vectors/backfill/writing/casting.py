"""Filling a batch by one UPDATE where the vectors lie in the same database and PostgreSQL casts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Connection

from amprenta_vectors.backends.protocol import CastSource
from amprenta_vectors.backfill.writing.sink import Written, embedding_values, stored_embedding, write_rows
from amprenta_vectors.batch import Key
from amprenta_vectors.pg.arrays import array_literal
from amprenta_vectors.schema.catalogue import check_visible
from amprenta_vectors.schema.expressions import column_type
from amprenta_vectors.schema.hashes import cast_hash
from amprenta_vectors.schema.keymaps import to_own_keys
from amprenta_vectors.schema.slice import Slice


class CastSink:
    """Fills the embedding column of a slice from a source in the same database; never touches an existing value.

    A row whose source value is no vector is refused, and found by halving the batch in savepoints. What was written can
    be recognised by its hash, as `cast_hash` makes it.
    """

    inserts = False
    keeps_seen = False

    def __init__(self, slice_: Slice, source: CastSource, model: str | None) -> None:
        self._slice = slice_
        self._source = source
        table = slice_.table
        embedding = stored_embedding(table, source.vector(slice_))
        hashed = None if table.hash is None else cast_hash(slice_.send(embedding))
        self._statement = (
            sa.update(slice_.rows)
            .values(embedding_values(slice_, embedding, model, hashed))
            .where(slice_.embedding().is_(None), *_is_given(slice_), *source.joined(slice_))
        )

    def put_keys(self, connection: Connection, source_keys: Sequence[str]) -> Written:
        """Fill the rows of a batch; a row that has a value by now, or no longer a record, is left alone."""
        keys = to_own_keys(self._slice.key_map, source_keys)
        doubled = self._source.doubled(connection, list(keys))
        emptied = self._slice.emptied_among(connection, list(keys))
        rows: list[Key] = [key for key in keys if key not in doubled and key not in emptied]
        columns = {f"key_{position}": column for position, column in enumerate(zip(*rows, strict=True))}

        def bind(start: int, end: int) -> dict[str, Any]:
            return {name: array_literal(column[start:end]) for name, column in columns.items()}

        written, refused = write_rows(connection, [keys[key] for key in rows], self._statement, bind=bind)
        if written + len(refused) < len(rows):
            # Rows were filled meanwhile, or are gone; or were hidden since the run started, which looks like either.
            check_visible(connection, self._slice.table)
        if refused:
            # The value itself may be no vector, or it is one that the table does not take.
            own = to_own_keys(self._slice.key_map, [error.key for error in refused])
            broken = {error.key: error for error in self._source.unreadable(connection, list(own))}
            refused = [broken.get(error.key, error) for error in refused]
        return Written(rows=written, refused=[*doubled.values(), *refused])


def _is_given(slice_: Slice) -> list[sa.ColumnElement[bool]]:
    """Return the conditions that a row has one of the keys; their columns ``key_0`` … are bound as array literals."""
    names = [f"key_{position}" for position in range(len(slice_.table.key))]
    arrays = [sa.cast(sa.bindparam(name, type_=sa.Text), ARRAY(sa.Text)) for name in names]
    if len(names) > 1:
        return slice_.is_row_of(sa.func.unnest(*arrays).table_valued(*names, name="given").render_derived())
    # One scan of the index, a third faster than a look-up for each key.
    [name] = slice_.table.key
    wanted = sa.cast(arrays[0], ARRAY(column_type(slice_.table, name)))
    return [*slice_.in_scope(), slice_.rows.c[name] == sa.func.any(wanted)]
