"""Fragments of SQL for psql: text rendered for a database that cannot be looked at while it is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from io import StringIO
from textwrap import dedent
from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects.postgresql.base import PGDialect

from amprenta_vectors.ddl.catalogue import RETIRED, quoted
from amprenta_vectors.ddl.locking import GIVE_UP_SECONDS, LOCK_SECONDS
from amprenta_vectors.ddl.options import purging

# A driver's own parameter style would double percent signs.
_DIALECT = PGDialect(paramstyle="named")  # type: ignore[no-untyped-call]
# What the dialect learns from a connection: standard_conforming_strings is on, as it is since PostgreSQL 9.1.
_DIALECT._backslash_escapes = False

_PLACEHOLDER = re.compile(r"^( *)\{(\w+)\}(\n|\Z)|\{(\w+)\}", re.MULTILINE)


def sql(construct: sa.ClauseElement) -> str:
    """``construct`` with its values as literals."""
    return str(construct.compile(dialect=_DIALECT, compile_kwargs={"literal_binds": True}))


def literal(value: str | list[str]) -> str:
    """``value`` as a literal: text, or an array of text."""
    if isinstance(value, str):
        return sql(sa.literal(value))
    return fill("ARRAY[{items}]::text[]", items=", ".join(literal(item) for item in value))


def interval(seconds: float) -> str:
    """A length of time."""
    return literal(f"{seconds} s") + "::interval"


def regclass(*parts: str | None) -> str:
    """The relation of that name, NULL where there is none."""
    return fill("to_regclass({name})", name=literal(quoted(*parts)))


def fill(template: str, **fragments: str) -> str:
    """``template`` with each ``{name}`` replaced by a fragment that is SQL already; other braces stay."""

    def replaced(match: re.Match[str]) -> str:
        if match[4] is not None:
            return fragments[match[4]]
        fragment = fragments[match[2]]
        return match[1] + _indented(fragment, match[1]) + match[3] if fragment else ""

    return _PLACEHOLDER.sub(replaced, dedent(template).strip())


def _indented(fragment: str, margin: str) -> str:
    """``fragment`` with ``margin`` before its further lines, unless a name or literal in it spans lines."""
    lines = fragment.split("\n")
    if any(line.count(quote) % 2 for line in lines for quote in "'\""):
        return fragment
    return ("\n" + margin).join(lines)


def ddl(operations: Operations, work: Callable[[Operations], object]) -> str:
    """The statements that Alembic's own operations write for ``work``, which online are executed."""
    buffer = StringIO()
    kind: Any = type(operations.impl)
    impl = kind(_DIALECT, None, as_sql=True, transactional_ddl=None, output_buffer=buffer, context_opts={})
    work(Operations(operations.get_context(), impl))
    return buffer.getvalue().strip().replace(";\n\n", ";\n")


def do(body: str, **variables: str) -> str:
    """A DO block; ``variables`` are its declarations, name to type."""
    tag = "$do$"
    while tag in body:
        tag = tag[:-1] + "o$"
    declared = "".join(f"    {name} {type_};\n" for name, type_ in variables.items())
    return fill(
        # A column of the user's may be called as a variable is.
        """
        DO {tag}
        #variable_conflict use_column
        {declare}BEGIN
            {body}
        END {tag}
        """,
        tag=tag,
        declare=f"DECLARE\n{declared}" if declared else "",
        body=body,
    )


def emit(operations: Operations, statement: str, end: str = ";") -> None:
    """Write a statement, ended by ``;`` or by a command of psql's."""
    operations.get_context().impl.static_output(statement + end)


def emit_do(operations: Operations, body: str, **variables: str) -> None:
    """Write a DO block for the current transaction, which may last as long as it must."""
    emit(operations, "SET LOCAL statement_timeout = 0")
    emit(operations, do(body, **variables))


def emit_unlimited(operations: Operations, *statements: str, lock_timeout: str = "0") -> None:
    """Write statements to run outside any transaction, without the session's time limits."""
    with operations.get_context().autocommit_block():
        emit(operations, "SET statement_timeout = 0")
        emit(operations, fill("SET lock_timeout = {timeout}", timeout=literal(lock_timeout)))
        for statement in statements:
            emit(operations, statement, end="" if statement.endswith("\\gexec") else ";")
        emit(operations, "RESET lock_timeout")
        emit(operations, "RESET statement_timeout")


def refuse(message: str, hint: str) -> str:
    """Stop with an error; ``message`` and ``hint`` are expressions."""
    return fill(
        """
        RAISE EXCEPTION USING
            MESSAGE = {message},
            HINT = {hint};
        """,
        message=message,
        hint=hint,
    )


def say(message: str, level: str = "NOTICE") -> str:
    """Print a message, an expression."""
    return fill("RAISE {level} USING MESSAGE = {message};", level=level, message=message)


def short_lock(what: str, statements: str) -> str:
    """Run ``statements`` under a short lock_timeout, again and again, as `with_short_lock` does."""
    return fill(
        """
        DECLARE
            give_up_at timestamptz := clock_timestamp() + {give_up};
        BEGIN
            LOOP
                BEGIN
                    PERFORM set_config('lock_timeout', {lock}, true);
                    {statements}
                    PERFORM set_config('lock_timeout', '0', true);
                    EXIT;
                EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
                    IF clock_timestamp() > give_up_at THEN
                        {refuse}
                    END IF;
                END;
                PERFORM pg_sleep(0.5 + 2 * random());
            END LOOP;
        END;
        """,
        give_up=interval(GIVE_UP_SECONDS),
        lock=literal(f"{LOCK_SECONDS}s"),
        statements=statements,
        refuse=never_had(what),
    )


def never_had(what: str) -> str:
    """Stop because a lock was not had in all the time there is."""
    return refuse(
        literal(f"{what}: another session held the table for {GIVE_UP_SECONDS} s"),
        literal("wait for it, or end it (SELECT * FROM pg_stat_activity), then run the script again"),
    )


def drop_unless_used(what: str, drop: str, otherwise: str) -> str:
    """Run ``drop`` under a short lock; ``otherwise`` where something depends on what it drops."""
    return fill(
        """
        BEGIN
            {drop}
        EXCEPTION WHEN dependent_objects_still_exist THEN
            {otherwise}
        END;
        """,
        drop=short_lock(f"dropping {what}", drop),
        otherwise=otherwise,
    )


def keep_unless_purging(operations: Operations, kept: str, count: sa.Select[Any], dropping: tuple[str, str]) -> str:
    """Go no further with what is ``filled``, or say how much of it goes."""
    before, after = dropping
    number = fill("({count})", count=sql(count))
    purge = say(literal(before) + f" || {number} || " + literal(after), level="WARNING")
    return fill(
        """
        IF filled THEN
            {statements}
        END IF;
        """,
        statements=purge if purging(operations) else say(literal(kept)) + "\nRETURN;",
    )


def not_dropped(refusal: str, note: str) -> str:
    """What to say where something depends on what was to be dropped: an error only if it is ``filled``."""
    return fill(
        """
        IF filled THEN
            {refuse}
        ELSE
            {say}
        END IF;
        """,
        refuse=refuse(
            literal(refusal), literal("drop that first (psql: \\d+ says what), or downgrade without purging")
        ),
        say=say(literal(note)),
    )


def type_of(relation: str, column: str) -> str:
    """The type of a column as SQL writes it, NULL where there is none; both arguments are expressions."""
    return _of_column("format_type(atttypid, atttypmod)", relation, column)


def comment_of_column(relation: str, column: str) -> str:
    """The comment on a column, NULL where there is none; both arguments are expressions."""
    return _of_column("col_description(attrelid, attnum)", relation, column)


def _of_column(what: str, relation: str, column: str) -> str:
    return fill(
        "(SELECT {what} FROM pg_attribute WHERE attrelid = {relation} AND attname = {column} AND attnum > 0)",
        what=what,
        relation=relation,
        column=column,
    )


def comment_of(relation: str) -> str:
    """The comment on a relation, an expression; NULL where there is none."""
    return fill("obj_description({relation}, 'pg_class')", relation=relation)


def is_retired(comment: str) -> str:
    """Whether a comment, an expression, is the one that a downgrade leaves."""
    return fill("coalesce(starts_with({comment}, {retired}), false)", comment=comment, retired=literal(RETIRED))


def retired_at(moment: str) -> str:
    """The comment that notes ``moment``, an expression, as `RETIRED` says."""
    return fill(
        """{retired} || to_char({moment} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')""",
        retired=literal(RETIRED),
        moment=moment,
    )


def comment_on(kind: str, name: str, comment: str) -> str:
    """Set the comment on an object to an expression, which COMMENT itself does not take."""
    return fill(
        "EXECUTE {statement} || quote_literal({comment});",
        statement=literal(f"COMMENT ON {kind} {name} IS "),
        comment=comment,
    )
