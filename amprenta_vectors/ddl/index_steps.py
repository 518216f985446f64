"""The steps by which an index is built beside what there is, named, and dropped; the same for every kind of index."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import Catalogue, Fact, IndexFact
from amprenta_vectors.ddl.marks import MADE, building_name
from amprenta_vectors.ddl.model_facts import SCOPE
from amprenta_vectors.ddl.options import log
from amprenta_vectors.ddl.privileges import require_create, require_ownership
from amprenta_vectors.ddl.steps import Done, Step, execute
from amprenta_vectors.pg.errors import UNDEFINED_OBJECT
from amprenta_vectors.pg.indexes import Index, builder_of, index_of
from amprenta_vectors.pg.names import compose, literal, qualified

POLL_SECONDS = 0.5


class NamedIndex(Protocol):
    """An operation on an index."""

    name: str
    schema: str | None


class IndexOfTable(NamedIndex, Protocol):
    """An operation that builds an index of a table."""

    table: str


def build_step(
    catalogue: Catalogue, op: IndexOfTable, kind: str, create: Callable[[Operations, str], None], *, concurrently: bool
) -> Step | None:
    """Return the next step until index ``op.name`` is there, valid and marked; None if it is.

    The index is built under another name and gets its own in the revision's transaction, with our mark: after a kill at
    any moment, ours can be told from one that was there, and no half-built index has the name. ``create`` builds it
    under the name that it is given.
    """
    fact, building_fact = IndexFact(op.name, op.schema), IndexFact(building_name(op.name), op.schema)
    index, building = catalogue.ask(fact, None), catalogue.ask(building_fact, None)
    if index is not None and not index.valid:
        return unfinished_step(catalogue, index, op.schema)
    if index is not None:
        return None if building is None else drop_index(building, op.schema)
    if building is not None and not building.valid:
        return unfinished_step(catalogue, building, op.schema)
    shared: dict[str, Any] = {
        "table": (op.table, op.schema),
        "object": qualified(op.table, op.schema),
        "needs": (
            lambda connection: require_ownership(connection, op.table, op.schema),
            lambda connection: require_create(connection, op.schema),
        ),
    }
    if not concurrently:

        def create_and_mark(operations: Operations) -> None:
            create(operations, op.name)
            _mark(operations, op.name, op.schema)

        return Step(
            f"build index {op.name}{kind}",
            create_and_mark,
            {fact: Index(op.name, op.table, comment=MADE)},
            lock="SHARE",
            blocks="writers",
            duration="scans the table",
            **shared,
        )
    if building is None:
        return Step(
            f"build index {op.name}{kind}",
            lambda operations: create(operations, building_fact.name),
            {building_fact: Index(building_fact.name, op.table)},
            lock="SHARE UPDATE EXCLUSIVE",
            duration="concurrent: scans the table twice, and waits for every transaction that is open",
            place="concurrently",
            **shared,
        )

    def finish(operations: Operations) -> None:
        _mark(operations, building_fact.name, op.schema)
        rename(operations, building_fact.name, op.name, op.schema)

    return Step(
        f"name index {op.name}",
        finish,
        {building_fact: None, fact: Index(op.name, op.table, comment=MADE)},
        lock="SHARE UPDATE EXCLUSIVE",
        **shared,
    )


def rename(operations: Operations, old: str, new: str, schema: str | None) -> None:
    """Rename an index."""
    execute(operations, f"ALTER INDEX {qualified(old, schema)} RENAME TO {qualified(new)}")


def _mark(operations: Operations, name: str, schema: str | None) -> None:
    execute(operations, f"COMMENT ON INDEX {qualified(name, schema)} IS {literal(MADE)}")


def unfinished_step(catalogue: Catalogue, index: Index, schema: str | None) -> Step:
    """Return the step that waits for whoever builds an invalid index, or drops what an interrupted build left."""
    connection = catalogue.connection
    pid = builder_of(connection, index) if connection is not None else None
    if pid is None:
        return drop_index(index, schema, said=f"{index.name} was invalid, left by an interrupted build: dropped")
    fact = IndexFact(index.name, schema)

    def wait(operations: Operations) -> None:
        log.info("%s is being built by pid %d: waiting for it", index.name, pid)
        while _is_being_built(operations.get_bind(), index.name, schema):
            time.sleep(POLL_SECONDS)

    return Step(
        f"wait for index {index.name}, which pid {pid} is building",
        wait,
        {fact: Index(index.name, index.table, comment=index.comment)},
        duration="until it is built",
        # No transaction of this session's may be one more that the build waits for.
        place="concurrently",
    )


def _is_being_built(connection: Connection, name: str, schema: str | None) -> bool:
    index = index_of(connection, name, schema)
    return index is not None and not index.valid and builder_of(connection, index) is not None


def drop_step(catalogue: Catalogue, op: NamedIndex, *, adopted: bool = False) -> Step | Done:
    """Return the next step until an index of ours is gone, with what an interrupted build of it left.

    The index goes in the revision's transaction, so that a kill leaves it there or its revision undone.
    """
    fact, building_fact = IndexFact(op.name, op.schema), IndexFact(building_name(op.name), op.schema)
    deferred = DeferredFact(op.name)
    if catalogue.ask(deferred, False):
        return Step(
            f"forget index {op.name}, which a backfill deferred", lambda ops: _forget(ops, op.name), {deferred: False}
        )
    if (building := catalogue.ask(building_fact, None)) is not None:
        return drop_index(building, op.schema)
    index = catalogue.ask(fact, Index(op.name, "", comment=MADE))
    if index is None:
        return Done(f"there is no index {op.name}: nothing to drop")
    if index.comment != MADE and not adopted:
        return Done(f"index {op.name} was there before, not made here: left as it is", index.table)
    return drop_index(index, op.schema)


def defer_step(index: Index, target: str, schema: str | None) -> Step:
    """Return the step that drops an index of a column, ``target``, and records it as one to build once it is filled."""
    dropping = drop_index(index, schema)

    def defer(operations: Operations) -> None:
        execute(operations, defer_statement(target, index.name, index.definition, index.comment))
        dropping.do(operations)

    return replace(
        dropping,
        action=f"drop index {index.name}, and record it as deferred",
        do=defer,
        foretells={**dropping.foretells, DeferredFact(index.name): True},
    )


def defer_statement(target: str, index: str, definition: str, comment: str, *, of_model: str | None = None) -> str:
    """Return the statement that records an index which a backfill, or `index build`, builds.

    With ``of_model`` it is of the rows of that model alone, whose number is known once it is registered.
    """
    built, registered = literal(definition), ""
    if of_model is not None:
        built += f" || ' WHERE ({SCOPE} = ' || id || ')'"
        registered = compose(" FROM embedding_models WHERE model_name = {name}", name=literal(of_model))
    return compose(
        _DEFER,
        target=literal(target),
        index=literal(index),
        definition=built,
        comment=literal(comment),
        registered=registered,
    )


_DEFER = """\
INSERT INTO migration_index (target, index_name, definition, comment)
SELECT {target}, {index}, {definition}, {comment}{registered}
ON CONFLICT (target, index_name) DO UPDATE
SET definition = excluded.definition, comment = excluded.comment, deferred_at = now(), built_at = NULL"""


def drop_index(index: Index, schema: str | None, said: str = "") -> Step:
    """Return the step that drops an index in the revision's transaction."""
    return Step(
        f"drop index {index.name}",
        lambda operations: operations.drop_index(index.name, schema=schema),
        {IndexFact(index.name, schema): None},
        table=(index.table, schema),
        object=qualified(index.table, schema) if index.table else "",
        lock="ACCESS EXCLUSIVE",
        blocks="readers and writers",
        needs=(lambda connection: require_ownership(connection, index.name, schema),),
        # Whoever built it gave up meanwhile, or somebody else dropped it.
        teaches={UNDEFINED_OBJECT: (IndexFact(index.name, schema), None)},
        said=said,
        warns=bool(said),
    )


@dataclass(frozen=True)
class DeferredFact(Fact[bool]):
    """Whether a backfill dropped an index and will build it."""

    name: str

    def find(self, connection: Connection) -> bool:
        """Return whether the index is recorded as deferred; False if there is no record of indexes."""
        if connection.execute(sa.text("SELECT to_regclass('migration_index')")).scalar() is None:
            return False
        statement = sa.text("SELECT 1 FROM migration_index WHERE index_name = :name AND built_at IS NULL")
        return connection.execute(statement, {"name": self.name}).first() is not None


def _forget(operations: Operations, name: str) -> None:
    execute(operations, compose("DELETE FROM migration_index WHERE index_name = {name}", name=literal(name)))
