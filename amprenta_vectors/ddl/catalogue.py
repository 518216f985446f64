"""The facts that operations ask of a database: found in it, foretold by steps, or taken for granted by a script.

A `Fact` names one thing that the catalogue says, and knows how to find it. Operations only ever `Catalogue.ask`, so
that the same code works on a database, on what a plan makes of one, and without one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, Generic, TypeVar, cast

from sqlalchemy.engine import Connection

from amprenta_vectors.errors import SchemaMismatch
from amprenta_vectors.pg.indexes import Index, index_of, indexes_of
from amprenta_vectors.pg.names import literal, qualified, quoted
from amprenta_vectors.pg.sessions import settings
from amprenta_vectors.pg.tables import Column, Table, has_value, schemas_with, table_names, table_of

T = TypeVar("T")


class Fact(Generic[T]):
    """One thing that a database says."""

    fleeting: ClassVar[bool] = False
    """Whether an application may change the fact at any moment: a script, which runs later, decides nothing by it."""
    costly: ClassVar[bool] = False
    """Whether finding the fact may take long, so that one operation does it once, before it locks anything."""

    def find(self, connection: Connection) -> T:
        """Return the fact as the database has it."""
        raise NotImplementedError

    @property
    def whole(self) -> Fact[Any]:
        """The fact that this one is a part of, and follows from; itself if it is part of none."""
        return self

    def derive(self, known: Mapping[Fact[Any], Any]) -> T | None:
        """Return the fact as it follows from the whole. Raises KeyError if that is not known, or this is no part."""
        raise KeyError(self)

    def guard(self, value: T) -> tuple[str, str] | None:
        """Return a condition in SQL that holds if the fact is ``value``, and what that expects in words; or None."""
        return None


class Catalogue:
    """Answers what the operations ask."""

    connection: Connection | None = None
    """The database that is asked; None where none is."""

    def ask(self, fact: Fact[T], assuming: T) -> T:
        """Return ``fact``; a script without a database takes ``assuming`` for granted."""
        raise NotImplementedError

    def require_table(self, name: str, schema: str | None) -> None:
        """Raise `SchemaMismatch` if there is no table of that name; without a database, do nothing."""

    def learn(self, fact: Fact[T], value: T) -> None:
        """Remember what a failed step taught, and what the database itself does not say."""
        raise NotImplementedError


class Found(Catalogue):
    """The database at the other end of a connection, asked once until the next `look`."""

    connection: Connection

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._learnt: dict[Fact[Any], Any] = {}
        self._seen: dict[Fact[Any], Any] = {}

    def look(self, connection: Connection) -> None:
        """Ask ``connection`` from now on, and again for whatever may have changed."""
        self.connection = connection
        self._seen.clear()

    def ask(self, fact: Fact[T], assuming: T) -> T:
        """Return ``fact`` as the database has it, or had it after the last `look`."""
        known = self._learnt if fact in self._learnt or fact.costly else self._seen
        if fact not in known:
            if fact.whole is fact:
                known[fact] = fact.find(self.connection)
            else:
                self.ask(fact.whole, None)
                known[fact] = fact.derive(self._seen)
        value: T = known[fact]
        return value

    def require_table(self, name: str, schema: str | None) -> None:
        """Raise `SchemaMismatch` if there is no table of that name, naming what may be meant."""
        if table_of(self.connection, name, schema) is None:
            raise SchemaMismatch(f"there is no table {qualified(name, schema)}", hint=self._instead(name, schema))

    def learn(self, fact: Fact[T], value: T) -> None:
        """Remember what a failed step taught."""
        self._learnt[fact] = value

    def _instead(self, name: str, schema: str | None) -> str:
        if schema is None and (others := schemas_with(self.connection, name)):
            return f"name its schema in the revision: schema={others[0]!r}"
        if close := get_close_matches(name, table_names(self.connection, schema), 1):
            return f"write {close[0]!r} in the revision, if that is meant"
        return "make it in an earlier revision, or correct its name in this one"


class FoundForScript(Found):
    """The database at the other end of a connection, as far as it will still be so when a script runs."""

    def ask(self, fact: Fact[T], assuming: T) -> T:
        """Return ``fact`` as the database has it, ``assuming`` where that may change at any moment."""
        return assuming if fact.fleeting else super().ask(fact, assuming)


class Foretold(Catalogue):
    """A database as it will be after steps not carried out yet: their effects, shown over another catalogue."""

    def __init__(self, under: Catalogue) -> None:
        self.connection = under.connection
        self._under = under
        self._changed: dict[Fact[Any], Any] = {}

    def ask(self, fact: Fact[T], assuming: T) -> T:
        """Return ``fact`` as the steps so far leave it."""
        if fact in self._changed:
            value: T = self._changed[fact]
            return value
        try:
            return cast(T, fact.derive(self._changed))
        except KeyError:
            return self._under.ask(fact, assuming)

    def require_table(self, name: str, schema: str | None) -> None:
        """Raise `SchemaMismatch` if neither the steps so far nor the database has the table."""
        if self._changed.get(TableFact(name, schema)) is None:
            self._under.require_table(name, schema)

    def learn(self, fact: Fact[T], value: T) -> None:
        """Take one effect of a step for done."""
        self._changed[fact] = value

    def apply(self, effects: Mapping[Fact[Any], Any]) -> None:
        """Take the effects of a step for done."""
        self._changed.update(effects)


class Assumed(Catalogue):
    """A catalogue without a database: what operations take for granted, and the checks that a script begins with."""

    def __init__(self, emit: Callable[[str], object]) -> None:
        self._emit = emit
        self._assumed: dict[Fact[Any], Any] = {}

    def ask(self, fact: Fact[T], assuming: T) -> T:
        """Return what was taken for granted first, and write its check into the script."""
        if fact not in self._assumed:
            self._assumed[fact] = assuming
            if (guard := fact.guard(assuming)) is not None:
                self._emit(refuse_unless(*guard))
        value: T = self._assumed[fact]
        return value

    def learn(self, fact: Fact[T], value: T) -> None:
        """Take ``value`` for granted."""
        self._assumed[fact] = value


def refuse_unless(condition: str, expected: str) -> str:
    """Return a statement that stops a script where ``condition``, in SQL, does not hold."""
    return f"""\
DO $amprenta$ BEGIN
    IF ({condition}) IS NOT TRUE THEN
        RAISE EXCEPTION USING MESSAGE = {literal(f"this script is for a database in which {expected}")},
            HINT = 'print it again, from the database that it is for: amprenta-vectors db upgrade --sql';
    END IF;
END $amprenta$"""


@dataclass(frozen=True)
class TableFact(Fact[Table | None]):
    """A table with all its columns."""

    name: str
    schema: str | None = None

    def find(self, connection: Connection) -> Table | None:
        """Return the table; None where there is none."""
        return table_of(connection, self.name, self.schema)

    def guard(self, value: Table | None) -> tuple[str, str]:
        """Return the check that the table is there or not, and ours if it is to be."""
        name, relation = qualified(self.name, self.schema), f"to_regclass({literal(quoted(self.schema, self.name))})"
        if value is None:
            return f"{relation} IS NULL", f"there is no {name}"
        if not value.comment:
            return f"{relation} IS NOT NULL", f"{name} is there"
        comment = literal(value.comment)
        return f"obj_description({relation}, 'pg_class') = {comment}", f"{name} is {value.comment}"


@dataclass(frozen=True)
class ColumnFact(Fact[Column | None]):
    """A column of a table."""

    table: str
    column: str
    schema: str | None = None

    def find(self, connection: Connection) -> Column | None:
        """Return the column; None where the table, or the column, is not there."""
        return self.derive({self.whole: self.whole.find(connection)})

    @property
    def whole(self) -> TableFact:
        """The table with all its columns."""
        return TableFact(self.table, self.schema)

    def derive(self, known: Mapping[Fact[Any], Any]) -> Column | None:
        """Return the column of a table that is known."""
        table: Table | None = known[self.whole]
        return None if table is None else table.columns.get(self.column)

    def guard(self, value: Column | None) -> tuple[str, str]:
        """Return the check that the column is there or not, of its type if that is known, and ours if it is to be."""
        name = f"{qualified(self.table, self.schema)}.{qualified(self.column)}"
        conditions, expected = [], f"{name} is there"
        if value is not None and value.type:
            pattern = literal(rf"^(.+\.)?{_escaped(value.type)}$")
            conditions.append(f"format_type(a.atttypid, a.atttypmod) ~ {pattern}")
            expected = f"{name} is {value.type}"
        if value is not None and value.comment:
            conditions.append(f"col_description(a.attrelid, a.attnum) = {literal(value.comment)}")
            expected += f", {value.comment}"
        attribute = " AND ".join(
            [
                f"a.attrelid = to_regclass({literal(quoted(self.schema, self.table))})",
                f"a.attname = {literal(self.column)}",
                "NOT a.attisdropped",
                *conditions,
            ]
        )
        exists = f"EXISTS (SELECT FROM pg_attribute a WHERE {attribute})"
        return (exists, expected) if value is not None else (f"NOT {exists}", f"there is no {name}")


@dataclass(frozen=True)
class HasValue(Fact[bool]):
    """Whether a table has a row, or a row whose ``column`` is not NULL; may read the whole table."""

    fleeting = True
    costly = True

    table: str
    schema: str | None = None
    column: str | None = None

    def find(self, connection: Connection) -> bool:
        """Return whether there is such a row, read without a lock that others wait for; False without the table."""
        if table_of(connection, self.table, self.schema) is None:
            return False
        with settings(connection, local=True, statement_timeout="0"):
            return has_value(connection, self.table, self.column, self.schema)


@dataclass(frozen=True)
class IsUsed(Fact[bool]):
    """Whether something of the application's depends on a relation, a column or a function; learnt by trying."""

    fleeting = True

    described: str

    def find(self, connection: Connection) -> bool:
        """Return False: whether anything depends on it is known only after a try."""
        return False


@dataclass(frozen=True)
class IsPartitioned(Fact[bool]):
    """Whether the rows of a table lie in partitions."""

    table: str
    schema: str | None = None

    def find(self, connection: Connection) -> bool:
        """Return whether the table is partitioned; False if there is no such table."""
        return self.derive({self.whole: self.whole.find(connection)})

    @property
    def whole(self) -> TableFact:
        """The table with all its columns."""
        return TableFact(self.table, self.schema)

    def derive(self, known: Mapping[Fact[Any], Any]) -> bool:
        """Return whether the rows of a table that is known lie in partitions."""
        table: Table | None = known[self.whole]
        return table is not None and table.partitioned


@dataclass(frozen=True)
class IndexFact(Fact[Index | None]):
    """An index by its name."""

    name: str
    schema: str | None = None

    def find(self, connection: Connection) -> Index | None:
        """Return the index; None where there is none."""
        return index_of(connection, self.name, self.schema)

    def guard(self, value: Index | None) -> tuple[str, str]:
        """Return the check that the index is there or not, and ours if it is to be."""
        name, relation = qualified(self.name, self.schema), f"to_regclass({literal(quoted(self.schema, self.name))})"
        if value is None:
            return f"{relation} IS NULL", f"there is no index {name}"
        return f"obj_description({relation}, 'pg_class') = {literal(value.comment)}", f"index {name} is {value.comment}"


@dataclass(frozen=True)
class IndexesFact(Fact[Sequence[Index]]):
    """The indexes of a table."""

    table: str
    schema: str | None = None

    def find(self, connection: Connection) -> Sequence[Index]:
        """Return the indexes, those of partitions included."""
        return indexes_of(connection, self.table, self.schema)


def _escaped(text: str) -> str:
    """Return ``text`` as a regular expression of PostgreSQL's that matches it alone."""
    return "".join(f"\\{each}" if not each.isalnum() and each != "_" and each != " " else each for each in text)
