"""Operations as steps: what each foretells comes true, and a kill at any commit can be left by either way."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from fingerprint import fingerprint
from killing import Copies, copies, name_of  # noqa: F401 - a fixture among them
from migrating import Database
from systems import BESIDE_MODELS, MODEL_COLUMNS, STEPPED, System

from amprenta_vectors.ddl import steps
from amprenta_vectors.ddl.catalogue import ColumnFact, Fact, TableFact
from amprenta_vectors.ddl.marks import RETIRED
from amprenta_vectors.pg.tables import Column, Table

ROWS = 20
TORTURED = {name: system for name, system in STEPPED.items() if system is not MODEL_COLUMNS}


def lower_and_revision(system: System) -> list[tuple[str, str]]:
    """Every revision with the one below it."""
    return list(zip(["base", *system.revisions], system.revisions, strict=False))


def legs(system: System) -> list[tuple[str, str, str]]:
    """Up, down, up for every revision: which way, to where, and where the other way leads."""
    return [
        leg
        for below, revision in lower_and_revision(system)
        for leg in (("upgrade", revision, below), ("downgrade", below, revision), ("upgrade", revision, below))
    ]


def go(db: Database, system: System, way: str, revision: str) -> None:
    getattr(system, way)(db, revision)


def without_trace(rows: list[Any]) -> list[Any]:
    """The same without what nobody sees again: retired values of rows that changed since, and runs that ended."""
    kept = []
    for row in rows:
        document = row[0]
        if "cancelled" in row:
            continue
        if isinstance(document, dict) and "new" in document.values():
            document = {name: None if name.endswith("_retired") else value for name, value in document.items()}
        kept.append((document, *row[1:]))
    return kept


def catalogue(db: Database, system: System) -> list[Any]:
    """The fingerprint without the table of revisions, which the first upgrade leaves behind; with what it says.

    In an application's own environment nobody settles a revision that was killed: a trigger on a retired column, which
    is neutral, stays until the column comes back. The index of a model that was added outside revisions is deferred
    where its column was retired, and is there where that was undone before.
    """
    rows = [row for row in fingerprint(db) if len(row) == 2 or not str(row[0]).startswith("amprenta_version_")]
    traces = {MODEL_COLUMNS: "amprenta_empties_", BESIDE_MODELS: BESIDE_MODELS.models_index}
    return [row for row in rows if system not in traces or traces[system] not in str(row)]


class Killed(BaseException):
    """Ends a migration as a kill would, at a commit."""


@contextmanager
def killed_at(number: int) -> Iterator[list[str]]:
    """Raise at the ``number``-th commit, or statement that commits by itself; yields what came before."""
    seen: list[str] = []

    def reached(what: str) -> None:
        seen.append(what)
        if len(seen) == number:
            raise Killed

    def commit(connection: sa.Connection) -> None:
        reached("commit")

    def statement(connection: sa.Connection, cursor: Any, text: str, *_: Any) -> None:
        alone = connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
        # Not what waits for the migration lock, which changes nothing.
        if alone and not text.lstrip().upper().startswith(("SELECT", "SET")):
            reached(text)

    sa.event.listen(sa.Engine, "commit", commit)
    sa.event.listen(sa.Engine, "before_cursor_execute", statement)
    try:
        yield seen
    finally:
        sa.event.remove(sa.Engine, "commit", commit)
        sa.event.remove(sa.Engine, "before_cursor_execute", statement)


@pytest.mark.parametrize(
    ("system", "ways_out"),
    [
        # A minute: here the default section, with models, out of its kills by one way and the other in turn.
        pytest.param(BESIDE_MODELS, 1, id="beside models, in turn"),
        pytest.param(MODEL_COLUMNS, 2, id="model columns"),
        *(pytest.param(system, 2, id=name, marks=pytest.mark.torture) for name, system in TORTURED.items()),
    ],
)
def test_killed_at_any_commit_both_ways_lead_out_as_if_never_disturbed(
    db: Database,
    copies: Copies,  # noqa: F811
    system: System,
    ways_out: int,
) -> None:
    system.adopt(db, ROWS)
    db.execute(f"UPDATE {system.table} SET updated_at = now() - interval '2 days'")
    kills, seen_legs = 0, set[tuple[str, str, str]]()
    for way, there, back in legs(system):
        other = "downgrade" if way == "upgrade" else "upgrade"
        took_back = "_retired" in str(fingerprint(db))
        with copies(name_of(db)) as before:
            go(db, system, way, there)
            if (way, there, back) in seen_legs and not took_back:
                system.live_on(db, first=ROWS + 1)
                continue
            seen_legs.add((way, there, back))
            expected = fingerprint(db), system.contents(db)
            with copies(name_of(db)) as opposite:
                go(opposite, system, other, back)
                returned = catalogue(opposite, system), without_trace(system.contents(opposite))
            for number in itertools.count(1):
                with copies(name_of(before)) as one:
                    with killed_at(number) as seen:
                        try:
                            go(one, system, way, there)
                        except BaseException:
                            # What cleans up after the kill finds a connection that is gone.
                            if len(seen) < number:
                                raise
                            kills += 1
                        else:
                            break
                    with copies(name_of(one)) as two:
                        if ways_out == 2 or kills % 2:
                            go(one, system, way, there)
                            assert (fingerprint(one), system.contents(one)) == expected, (way, there, seen)
                        if ways_out == 2 or not kills % 2:
                            go(two, system, other, back)
                            found = catalogue(two, system), without_trace(system.contents(two))
                            assert found == returned, (way, there, "then", other, back, seen)
        system.live_on(db, first=ROWS + 1)
    assert kills > 3 * len(system.revisions)


def comparable(value: Any) -> Any:
    """A value without what no step can foretell: the moment of a retirement, the columns that a view's query yields."""
    if isinstance(value, Table) and value.kind == "m":
        return replace(value, columns={})
    if isinstance(value, Table):
        columns = {name: comparable(column) for name, column in value.columns.items()}
        return replace(value, comment=_without_moment(value.comment), columns=columns)
    if isinstance(value, Column):
        kind = re.sub(r"^\w+\.", "", value.type)
        return replace(value, comment=_without_moment(value.comment), type=kind)
    return value


def _without_moment(comment: str) -> str:
    return RETIRED if comment.startswith(RETIRED) else comment


@pytest.mark.parametrize("system", STEPPED.values(), ids=STEPPED.keys())
@pytest.mark.parametrize("begin", ["adopted", "made here"])
def test_what_a_step_foretells_is_found_after_it(
    db: Database, system: System, begin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out, compared = steps._carry_out, []

    def then_compare(operations: Any, step: steps.Step) -> None:
        carry_out(operations, step)
        connection = operations.get_bind()
        for fact, foretold in step.foretells.items():
            found = fact.find(connection)
            assert comparable(found) == comparable(foretold), (step.action, fact)
            compared.append(fact)

    monkeypatch.setattr(steps, "_carry_out", then_compare)
    if begin == "adopted":
        system.adopt(db, ROWS)
    system.upgrade(db)
    if begin == "made here":
        system.insert(db, ROWS)
    system.fill(db)
    system.downgrade(db)
    system.live_on(db, first=ROWS + 1)
    system.upgrade(db)
    system.downgrade(db, purge=True)
    kinds: set[type[Fact[Any]]] = {type(fact) for fact in compared}
    assert {TableFact, ColumnFact} < kinds
    assert len(compared) > 20
