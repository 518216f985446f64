"""Counts what the old column of a table holds, by one reading in the database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.backends.column.formats import Bytes
from amprenta_vectors.backends.column.values import OldValues
from amprenta_vectors.errors import DimensionMismatch
from amprenta_vectors.schema.expressions import to_clause
from amprenta_vectors.schema.keymaps import OwnKeys
from amprenta_vectors.schema.old_column import Elements

FITTING_SHARE = 0.8
"""The least share of values that the right kind of bytes gives usual numbers for; the others are broken."""
EXAMPLES = 5
"""Keys that are shown of what cannot be read."""


@dataclass(frozen=True)
class Survey:
    """The contents of a column: rows by the dimension of their value, and by how it is spelt.

    ``without`` counts rows that have no value, ``unreadable`` values that are no list of numbers, of which ``examples``
    gives some keys with the start of the value. ``doubled`` counts keys that several rows of the other table have, and
    ``alone`` its rows whose key no row has, both 0 if there is no other table.
    """

    dimensions: Mapping[int, int]
    spellings: Mapping[str, int]
    without: int
    unreadable: int
    examples: Mapping[str, str] = field(default_factory=dict)
    doubled: int = 0
    alone: int = 0

    @property
    def values(self) -> int:
        """The number of values, the unreadable ones included."""
        return sum(self.dimensions.values()) + self.unreadable

    def check(self, name: str, dimension: int, asked: int | None) -> None:
        """Raise `DimensionMismatch` unless every list has that ``dimension``, or a person asked for those that have."""
        if asked is not None and asked != dimension:
            raise DimensionMismatch(
                f"AMPRENTA_DIMENSION is {asked}; the column that is filled has {dimension} dimensions",
                hint=f"--dimension {dimension}",
            )
        if set(self.dimensions) <= {dimension} or (asked is not None and dimension in self.dimensions):
            return
        counted = ", ".join(f"{count:,} of {length}" for length, count in sorted(self.dimensions.items()))
        mend = (
            f"--dimension {dimension} (or AMPRENTA_DIMENSION={dimension}) takes those of {dimension} and leaves the "
            "others out"
            if dimension in self.dimensions
            else f"add a column of {max(self.dimensions, key=lambda length: self.dimensions[length])} dimensions, and "
            "name it in amprenta.toml"
        )
        raise DimensionMismatch(
            f"{name} holds lists of several lengths, or of another one than {dimension}: {counted}", hint=mend
        )

    def left_out(self, dimension: int) -> int:
        """Return how many lists have another dimension."""
        return sum(count for length, count in self.dimensions.items() if length != dimension)


def survey(connection: Connection, old: OldValues) -> Survey:
    """Read the whole column, however long that takes, and say what it holds."""
    connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
    rows = to_clause(old.table, *old.table.old_names)
    source = rows if old.other is None else old.other
    value = old.raw(rows)
    given = old.format.given(value).label("given")
    dimension = old.format.dimension(value).label("dimension")
    spelling = old.format.spelling(value).label("spelling")
    counted = sa.select(sa.func.count().label("rows"), given, dimension, spelling).select_from(source)
    dimensions: Counter[int] = Counter()
    spellings: Counter[str] = Counter()
    without = unreadable = 0
    for row in connection.execute(counted.group_by(given, dimension, spelling)):
        if not row.given:
            without += row.rows
        elif row.dimension is None:
            unreadable += row.rows
        else:
            spellings[row.spelling] += row.rows
            dimensions[row.dimension] += row.rows
    examples = _examples(connection, old, source, rows) if unreadable else {}
    doubled, alone = _counts_beside(connection, old, rows)
    return Survey(dimensions, spellings, without, unreadable, examples, doubled, alone)


def _examples(connection: Connection, old: OldValues, source: Any, rows: sa.TableClause) -> dict[str, str]:
    value = old.raw(rows)
    names = old.table.key if old.other is None else [old.pairs[name] for name in old.table.key]
    keys = [source.c[name] for name in names]
    shown = sa.func.left(sa.cast(value, sa.Text), 40)
    wrong = sa.and_(old.format.given(value), old.format.dimension(value).is_(None))
    statement = sa.select(shown, *(sa.cast(key, sa.Text) for key in keys)).select_from(source).where(wrong)
    to_key = OwnKeys(["text"] * len(keys)).to_source
    return {to_key(tuple(key)): text for text, *key in connection.execute(statement.limit(EXAMPLES))}


def _counts_beside(connection: Connection, old: OldValues, rows: sa.TableClause) -> tuple[int, int]:
    if old.other is None:
        return 0, 0
    keys = [old.other.c[name] for name in old.pairs.values()]
    value = old.other.c[old.old.column]
    given = old.format.given(value)
    several = sa.select(sa.literal(1)).where(given).group_by(*keys).having(sa.func.count() > 1)
    there = sa.exists().select_from(rows).where(*old.joined(rows)).correlate(old.other)
    lonely = sa.select(sa.func.count()).select_from(old.other).where(given, ~there)
    doubled = 0
    if not old.unique:
        doubled = connection.execute(sa.select(sa.func.count()).select_from(several.subquery())).scalar_one()
    return doubled, connection.execute(lonely).scalar_one()


def fitting_elements(samples: Sequence[bytes], dimension: int | None) -> list[Elements]:
    """Return what the bytes of ``samples`` can be: finite numbers of a usual size, in all but a few broken values.

    With ``dimension``, only what gives lists of that length.
    """
    return [
        form.elements
        for form in Bytes.every()
        if samples and sum(_fits(form, raw, dimension) for raw in samples) >= FITTING_SHARE * len(samples)
    ]


def _fits(form: Bytes, raw: bytes, dimension: int | None) -> bool:
    try:
        numbers = form.decode(raw)
    except ValueError:
        return False
    sizes = np.abs(numbers)
    usual = bool(np.isfinite(sizes).all() and sizes.max() < 1e4 and np.median(sizes) > 1e-6)
    return usual and dimension in (None, len(numbers))
