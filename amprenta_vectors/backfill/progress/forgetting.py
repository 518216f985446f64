"""Takes what the progress tables keep of a person out of them: keys, quarantined rows, inserted rows, a user's runs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.engine import Connection

from amprenta_vectors.backfill.progress.states import UNFINISHED
from amprenta_vectors.batch import Key
from amprenta_vectors.errors import RunConflict
from amprenta_vectors.schema.engine_tables import TABLES_OF_A_RUN, kept_clause
from amprenta_vectors.shown import printable

FORGOTTEN = "(forgotten)"
"""What stands in the place of a message that named the person."""


@dataclass(frozen=True)
class Named:
    """A person as runs and intents know them: keys in a scope of a vector table, or all of a scope in any table.

    ``likes`` are patterns of keys that end in one of ``keys`` after a prefix.
    """

    target: str
    scope: Mapping[str, str]
    keys: Sequence[str] | None = None
    likes: Sequence[str] = ()

    def in_scope(self, target: sa.ColumnElement[Any], scope: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        """Return the condition on target and scope; of a user, whatever the target."""
        theirs: sa.ColumnElement[bool] = scope.op("@>")(sa.cast(sa.literal(json.dumps(dict(self.scope))), JSONB))
        return theirs if self.keys is None else sa.and_(target == self.target, theirs)

    def of(
        self, target: sa.ColumnElement[Any], scope: sa.ColumnElement[Any], key: sa.ColumnElement[str]
    ) -> sa.ColumnElement[bool]:
        """Return the condition on target, scope and key."""
        theirs = self.in_scope(target, scope)
        return theirs if self.keys is None else sa.and_(theirs, self.has(key))

    def has(self, key: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
        """Return the condition that a text is one of the keys."""
        return sa.or_(key == sa.any_(_texts(self.keys or ())), key.op("LIKE")(sa.any_(_texts(self.likes))))


@dataclass(frozen=True)
class Mentions:
    """The values that a person was named by, and where a message has one of them as a word of its own."""

    values: Sequence[str]

    @property
    def pattern(self) -> str:
        """The regular expression of PostgreSQL that finds them, in each way in which a message may quote them."""
        forms = {
            form
            for value in self.values
            if value
            for form in (value, printable(value), repr(value)[1:-1], json.dumps(value)[1:-1])
        }
        either = "|".join(re.sub(r"([^\w]|_)", r"\\\1", form) for form in sorted(forms)) or "(?!)"
        return rf"(^|[^[:alnum:]_])({either})($|[^[:alnum:]_])"

    def among(self, text: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
        """Return the condition that a text names one of them."""
        return text.op("~")(self.pattern)

    def blot(self, connection: Connection, table: sa.TableClause, column: str, *where: sa.ColumnElement[bool]) -> int:
        """Replace each text of a column that names one of them; return how many."""
        changed = sa.update(table).values({column: FORGOTTEN}).where(self.among(table.c[column]), *where)
        return connection.execute(changed).rowcount


def check_no_run(connection: Connection, named: Named) -> None:
    """Raise `RunConflict` while a run into the scope may still write what it fetched before."""
    runs = _runs(connection)
    if runs is None:
        return
    unfinished = sa.and_(runs.c.source.is_not(None), runs.c.state.in_([str(state) for state in UNFINISHED]))
    theirs = named.in_scope(runs.c.target, runs.c.scope)
    statement = sa.select(runs.c.id, runs.c.target).where(theirs, unfinished).order_by(runs.c.id)
    found = connection.execute(statement).first()
    if found is not None:
        raise RunConflict(
            f"run {found.id} into {found.target} is unfinished: it may write again what it fetched before",
            hint=f"let it finish, or: amprenta-vectors cancel {found.id}; then the same command again",
        )


def sources_of_runs(connection: Connection, named: Named) -> list[str]:
    """Return the sources that runs into the scope read."""
    runs = _runs(connection)
    if runs is None:
        return []
    theirs = named.in_scope(runs.c.target, runs.c.scope)
    statement = sa.select(runs.c.source).distinct().where(theirs, runs.c.source.is_not(None)).order_by(runs.c.source)
    return list(connection.execute(statement).scalars())


def forget_runs(connection: Connection, named: Named) -> dict[str, int]:
    """Delete the runs into a user's scopes with all that is kept of them; return how many rows, by table."""
    runs = _runs(connection)
    if runs is None:
        return {}
    ids = sa.select(runs.c.id).where(named.in_scope(runs.c.target, runs.c.scope))
    numbers = list(connection.execute(ids).scalars())
    return delete_runs(connection, numbers) if numbers else {}


def delete_runs(connection: Connection, numbers: Sequence[int]) -> dict[str, int]:
    """Delete runs with all that is kept of them; return how many rows, by table."""
    deleted: dict[str, int] = {}
    for name in TABLES_OF_A_RUN:
        table = kept_clause(connection, name, sa.column("run_id", sa.BigInteger))
        if table is not None:
            deleted[name] = connection.execute(sa.delete(table).where(table.c.run_id == _any(numbers))).rowcount
    runs = _runs(connection)
    if runs is not None:
        deleted[runs.name] = connection.execute(sa.delete(runs).where(runs.c.id == _any(numbers))).rowcount
    return deleted


def forget_keys(connection: Connection, named: Named, rows: Sequence[Key], mentions: Mentions) -> dict[str, int]:
    """Take keys out of what ended runs into the scope keep; return how many rows changed or went, by table.

    ``rows`` are the keys of rows in the table itself. What an ended run keeps of keys that it did not come to serves
    nobody, so that the keys of a batch go together.
    """
    runs = _runs(connection)
    if runs is None:
        return {}
    of_runs = sa.select(runs.c.id).where(named.in_scope(runs.c.target, runs.c.scope))
    numbers = list(connection.execute(of_runs).scalars())
    changed = {
        "migration_progress": _forget_batches(connection, numbers, named, mentions),
        "migration_quarantine": _forget_quarantined(connection, numbers, named, mentions),
        "migration_insert": _forget_inserted(connection, numbers, rows),
        "migration_text": _forget_texts(connection, numbers),
        "migration_event": _forget_events(connection, numbers, mentions),
    }
    is_of_run = runs.c.id == _any(numbers)
    connection.execute(sa.update(runs).values(plan_token=None).where(is_of_run, runs.c.plan_token.is_not(None)))
    changed["migration_run"] = mentions.blot(connection, runs, "last_error", is_of_run)
    return changed


def _forget_batches(connection: Connection, numbers: Sequence[int], named: Named, mentions: Mentions) -> int:
    texts = [sa.column(name, sa.Text) for name in ("first_key", "last_key", "last_error")]
    table = kept_clause(
        connection, "migration_progress", sa.column("run_id"), sa.column("keys", ARRAY(sa.Text)), *texts
    )
    if table is None:
        return 0
    of_runs = table.c.run_id == _any(numbers)
    each = sa.func.unnest(table.c["keys"]).table_valued(sa.column("key", sa.Text), name="each").render_derived()
    holds = sa.exists().select_from(each).where(named.has(each.c.key)).correlate(table)
    theirs = sa.or_(holds, named.has(table.c.first_key), named.has(table.c.last_key))
    emptied = sa.update(table).values({"keys": _texts(()), "first_key": "", "last_key": ""}).where(of_runs, theirs)
    changed = connection.execute(emptied).rowcount
    return changed + mentions.blot(connection, table, "last_error", of_runs)


def _forget_quarantined(connection: Connection, numbers: Sequence[int], named: Named, mentions: Mentions) -> int:
    texts = [sa.column(name, sa.Text) for name in ("key", "detail")]
    table = kept_clause(connection, "migration_quarantine", sa.column("run_id"), *texts)
    if table is None:
        return 0
    of_runs = table.c.run_id == _any(numbers)
    deleted = connection.execute(sa.delete(table).where(of_runs, named.has(table.c.key))).rowcount
    return deleted + mentions.blot(connection, table, "detail", of_runs)


def _forget_inserted(connection: Connection, numbers: Sequence[int], rows: Sequence[Key]) -> int:
    table = kept_clause(connection, "migration_insert", sa.column("run_id"), sa.column("key", ARRAY(sa.Text)))
    if table is None:
        return 0
    return connection.execute(
        sa.delete(table).where(table.c.run_id == _any(numbers), is_among(table.c.key, rows))
    ).rowcount


def _forget_texts(connection: Connection, numbers: Sequence[int]) -> int:
    """Delete the texts of ended runs, which serve nobody: whose a text is cannot be told from its digest."""
    table = kept_clause(connection, "migration_text", sa.column("run_id"))
    if table is None:
        return 0
    return connection.execute(sa.delete(table).where(table.c.run_id == _any(numbers))).rowcount


def _forget_events(connection: Connection, numbers: Sequence[int], mentions: Mentions) -> int:
    table = kept_clause(connection, "migration_event", sa.column("id"), sa.column("run_id"), sa.column("detail", JSONB))
    if table is None:
        return 0
    # JSON has its own escapes; which of its texts name the person is told once they are read.
    told = sa.cast(table.c.detail, sa.Text)
    found = connection.execute(
        sa.select(table.c.id, table.c.detail).where(table.c.run_id == _any(numbers), mentions.among(told))
    ).all()
    for row in found:
        blotted = sa.cast(sa.literal(json.dumps(_blotted(row.detail, re.compile(_python(mentions))))), JSONB)
        connection.execute(sa.update(table).values(detail=blotted).where(table.c.id == row.id))
    return len(found)


def _python(mentions: Mentions) -> str:
    return mentions.pattern.replace("[^[:alnum:]_]", r"\W")


def _blotted(value: Any, pattern: re.Pattern[str]) -> Any:
    """Return a value of JSON with each text that names the person replaced."""
    if isinstance(value, str):
        return FORGOTTEN if pattern.search(value) else value
    if isinstance(value, list):
        return [_blotted(each, pattern) for each in value]
    if isinstance(value, dict):
        return {name: _blotted(each, pattern) for name, each in value.items()}
    return value


def is_among(key: sa.ColumnElement[Any], rows: Sequence[Key]) -> sa.ColumnElement[bool]:
    """Return the condition that an array of texts is the key of one of ``rows``."""
    given = sa.cast(sa.literal(json.dumps([list(each) for each in rows])), JSONB)
    return sa.func.to_jsonb(key).in_(sa.select(sa.func.jsonb_array_elements(given)))


def _runs(connection: Connection) -> sa.TableClause | None:
    names = ("target", "source", "state", "plan_token", "last_error")
    columns = [sa.column("id", sa.BigInteger), sa.column("scope", JSONB), *(sa.column(name, sa.Text) for name in names)]
    return kept_clause(connection, "migration_run", *columns)


def _texts(values: Sequence[str]) -> sa.ColumnElement[Any]:
    return sa.cast(sa.literal(list(values), ARRAY(sa.Text)), ARRAY(sa.Text))


def _any(numbers: Sequence[int]) -> Any:
    return sa.any_(sa.cast(sa.literal(list(numbers), ARRAY(sa.BigInteger)), ARRAY(sa.BigInteger)))
