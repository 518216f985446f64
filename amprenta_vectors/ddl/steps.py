"""Operations as steps: run one after the other, explained beforehand, or printed.

An operation says what it wants. From what a `Catalogue` answers it computes the next step, which foretells its effects;
`run` carries it out, looks again, and ends when no step is left. `explain` and a script take the effects for done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Generic, Literal, TypeVar

from alembic.migration import MigrationContext
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.ddl.catalogue import Assumed, Catalogue, Fact, Foretold, Found, FoundForScript
from amprenta_vectors.ddl.contexts import open_context
from amprenta_vectors.errors import AmprentaError
from amprenta_vectors.pg.blockers import naming_blockers
from amprenta_vectors.pg.connections import beside
from amprenta_vectors.pg.errors import sqlstate
from amprenta_vectors.pg.sessions import LOCK_SECONDS, holds_lock, settings, with_short_lock

log = logging.getLogger("amprenta_vectors.ddl")

Blocked = Literal["nobody", "writers", "readers and writers", "not known"]
Place = Literal["transaction", "concurrently", "beside"]
"""Where a step runs: in the revision's transaction, and so stamped with it; outside any, which commits what the
revision did before; or in a session beside, so that it commits and the revision's transaction does not. What is not in
the transaction is neutral: repeated, or left behind by a kill, it changes nothing that anybody sees."""

Table = tuple[str, str | None]
"""A table's name and schema."""


@dataclass(frozen=True)
class Step:
    """One thing that an operation does: on what, under which lock of PostgreSQL's, who waits for it, and how long."""

    action: str
    do: Callable[[Operations], object] = field(compare=False)
    """Carries the step out, or writes it if the operations write SQL."""
    foretells: Mapping[Fact[Any], Any] = field(default_factory=dict, compare=False)
    table: Table | None = None
    object: str = ""
    lock: str = ""
    blocks: Blocked = "nobody"
    duration: str = "instant"
    place: Place = "transaction"
    needs: tuple[Callable[[Connection], None], ...] = field(default=(), compare=False)
    """Checks of what the role may do, made before anything is done."""
    teaches: Mapping[str, tuple[Fact[Any], Any]] = field(default_factory=dict, compare=False)
    """By SQLSTATE, the fact that is known once the step has failed with it; that error is not raised then."""
    measured: Callable[[Connection], str] | None = field(default=None, compare=False)
    """The action in words that say how much there is to do, found by reading; for a plan."""
    said: str = field(default="", compare=False)
    """The message that is logged once the step is done."""
    warns: bool = field(default=False, compare=False)
    last: bool = field(default=False, compare=False)
    """Whether no step is left after it; for what the catalogue cannot tell, such as a function that was renewed."""

    @property
    def described(self) -> str:
        """Return the action with what it is done to, for the sessions that wait for it."""
        return ": ".join(filter(None, (self.object, self.action)))


@dataclass(frozen=True)
class Done:
    """That no step is left, and why, in words; ``object`` is the table that it is about."""

    found: str
    object: str = ""


class Taught(Exception):
    """Raised by a step that met something which changes what is to be done: a fact, and its value."""

    def __init__(self, fact: Fact[Any], value: Any) -> None:
        super().__init__(fact, value)
        self.fact, self.value = fact, value


class SteppedOp(MigrateOperation):
    """An operation that computes its next step."""

    directive: ClassVar[str]
    """The operation's name on ``op``."""

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """Return how autogenerate names this operation: what it does, and to what."""
        parts = ("schema", "table", "column", "name")
        return (self.directive, *(getattr(self, part) for part in parts if hasattr(self, part)))

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the next step, judged by ``catalogue``. Raises what stands in its way."""
        raise NotImplementedError

    def already(self, catalogue: Catalogue, options: Mapping[str, Any]) -> list[Done]:
        """Return which parts of an operation that has several are done before it starts."""
        return []


Undone = TypeVar("Undone", bound=MigrateOperation)


@dataclass
class UndoingOp(SteppedOp, Generic[Undone]):
    """An operation that undoes another, and knows which if it was made as that one's reverse."""

    _reverse: Undone | None = field(default=None, repr=False, compare=False, kw_only=True)

    def reverse(self) -> Undone:
        """Return the operation that undoes this one. Raises ValueError if what was there is not known."""
        if self._reverse is None:
            what = f"{self.directive}({self.to_diff_tuple()[-1]!r})"
            raise ValueError(f"{what} is not reversible: what was there is unknown")
        return self._reverse


Operation = TypeVar("Operation", bound=type[SteppedOp])


def operation(*directives: str) -> Callable[[Operation], Operation]:
    """Return a decorator that puts an operation on ``op`` under its names, of which the first is its own."""

    def register(cls: Operation) -> Operation:
        cls.directive = directives[0]
        for name in directives:
            Operations.register_operation(name)(cls)
        Operations.implementation_for(cls)(run)
        return cls

    return register


def run(operations: Operations, op: SteppedOp) -> None:
    """Carry out an operation, or write it if the operations write SQL."""
    context = operations.get_context()
    options = options_of(operations)
    if context.as_sql:
        _write(operations, op, options)
        return
    connection = operations.get_bind()
    found, steps, done = Found(connection), 0, 0
    while isinstance(step := op.next_step(found, options), Step):
        if (steps := steps + 1) > MOST_STEPS:
            raise never_ends(step)
        for check in step.needs:
            check(connection)
        try:
            _carry_out(operations, step)
        except DBAPIError as error:
            lesson = step.teaches.get(sqlstate(error) or "")
            if lesson is None:
                raise
            found.learn(*lesson)
            found.look(connection)
            continue
        except Taught as taught:
            found.learn(taught.fact, taught.value)
            found.look(connection)
            continue
        done += 1
        if step.said:
            log.log(logging.WARNING if step.warns else logging.INFO, step.said)
        if step.last:
            return
        # Alembic gives a new connection object after what ran outside the transaction.
        found.look(connection := operations.get_bind())
    if not done and step.found:
        log.info(step.found)


MOST_STEPS = 50
"""More steps than any operation has; one that takes more has a step that changes nothing."""


def _carry_out(operations: Operations, step: Step) -> None:
    context, connection = operations.get_context(), operations.get_bind()
    before_commit: Callable[[Connection], None] = context.opts.get("amprenta_before_commit", lambda _: None)
    if step.place == "concurrently":
        before_commit(connection)
        with context.autocommit_block(), ExitStack() as stack:
            connection = operations.get_bind()
            stack.enter_context(settings(connection, statement_timeout="0", lock_timeout="0"))
            stack.enter_context(naming_blockers(connection, step.described))
            step.do(operations)
    elif step.place == "beside" and step.table is not None and not holds_lock(connection, *step.table):
        with beside(connection) as second, settings(second, statement_timeout="0"):
            before_commit(second)
            step.do(Operations(open_context(connection=second, opts=dict(context.opts))))
    elif step.lock:
        with_short_lock(connection, step.described, lambda: step.do(operations))
    else:
        step.do(operations)


def explain(catalogue: Foretold, op: SteppedOp, options: Mapping[str, Any]) -> Iterator[Step | Done]:
    """Yield the steps of an operation, taking the effects of each for done; if none is left, what is there already."""
    steps = 0
    yield from op.already(catalogue, options)
    while isinstance(step := op.next_step(catalogue, options), Step):
        if (steps := steps + 1) > MOST_STEPS:
            raise never_ends(step)
        yield step
        catalogue.apply(step.foretells)
        if step.last:
            return
    if not steps and step.found:
        yield step


def never_ends(step: Step) -> AmprentaError:
    """Return the error of an operation that always has this step left."""
    return AmprentaError(f"{step.action}: is always left to be done", hint="report this with what was said before it")


def execute(operations: Operations, statement: str) -> None:
    """Run or write one statement, in which no percent sign or colon stands for a parameter."""
    context = operations.get_context()
    if context.as_sql:
        context.impl.static_output(f"{statement};")
    else:
        execute_on(operations.get_bind(), statement)


def write_check(context: MigrationContext, statement: str) -> None:
    """Write a statement that stops a script on a state that it is not for; before everything else, if it can be."""
    context.opts.get("amprenta_emit_check", context.impl.static_output)(f"{statement};")


def execute_on(connection: Connection, statement: str) -> None:
    """Run one statement, in which no percent sign or colon stands for a parameter."""
    connection.exec_driver_sql(statement, execution_options={"no_parameters": True})


def options_of(operations: Operations) -> Mapping[str, Any]:
    """Return what an environment hands to the operations: ``-x dimension=``, ``index=``, ``purge=`` and the like."""
    context = operations.get_context()
    return {"version_table": context.version_table, **context.opts.get("amprenta_options", {})}


def together(steps: Iterable[Step | Done]) -> Step | Done:
    """Return the next step of operations that are one: what commits by itself comes before all that is stamped."""
    found = list(steps)
    left = [step for step in found if isinstance(step, Step)]
    return min(left, key=lambda step: step.place == "transaction") if left else found[0]


def done_of(steps: Iterable[Step | Done]) -> list[Done]:
    """Return which of several operations that are one are done; none if all are."""
    found = list(steps)
    done = [step for step in found if isinstance(step, Done)]
    return done if len(done) < len(found) else []


def _write(operations: Operations, op: SteppedOp, options: Mapping[str, Any]) -> None:
    context = operations.get_context()
    catalogue = script_catalogue(context)
    write = context.impl.static_output
    for step in explain(catalogue, op, options):
        if isinstance(step, Done):
            write(f"-- {_one_line(step.found)}")
            continue
        write(f"-- {_one_line(step.action)}")
        with ExitStack() as stack:
            if step.place == "concurrently":
                stack.enter_context(context.autocommit_block())
            else:
                write(f"SET LOCAL lock_timeout = '{LOCK_SECONDS:.0f}s';\n\nSET LOCAL statement_timeout = 0;")
            step.do(operations)


def script_catalogue(context: MigrationContext) -> Foretold:
    """Return what a script takes a database to be at this point: one for the whole script."""
    memo: dict[str, Any] = context.impl.memo
    if "amprenta_catalogue" not in memo:
        connection: Connection | None = context.opts.get("amprenta_connection")
        under = Assumed(partial(write_check, context)) if connection is None else FoundForScript(connection)
        memo["amprenta_catalogue"] = Foretold(under)
    catalogue: Foretold = memo["amprenta_catalogue"]
    return catalogue


def _one_line(text: str) -> str:
    return " ".join(text.split())
