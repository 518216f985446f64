"""How to undo what a run did, for its report: the ways that the README and docs/alembic.md describe."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from amprenta_vectors.backfill.progress.keys_from import side_of
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.progress.states import UNFINISHED
from amprenta_vectors.schema.registry import SHIPPED


@dataclass(frozen=True)
class UndoStep:
    """A way back from a run: what it undoes, the command to type, and what stays all the same."""

    undoes: str
    command: str
    stays: str


def undo_steps(run: Run) -> list[UndoStep]:
    """Return the ways back from a run, the one that undoes least first."""
    return list(_steps(run))


def _steps(run: Run) -> Iterator[UndoStep]:
    if run.state in UNFINISHED:
        yield UndoStep("the run, which has not ended", f"amprenta-vectors cancel {run.id}", "every row it wrote")
    if run.source_kind == "column":
        yield UndoStep(
            "the application's switch",
            f"the application reads {(run.source or '').rpartition('/')[0]} again",
            "everything: the run only read the old column, which has all it had",
        )
    elif run.source_kind is not None and run.source_kind != "rows":
        yield UndoStep(
            "the application's switch",
            f"export VECTOR_BACKEND={run.source_kind}, and restart the application",
            "everything: the run only read the source, which has all it had",
        )
    if run.source_kind == "simple":
        yield UndoStep(
            "the rows that runs from its source inserted",
            f"amprenta-vectors documents migrate --rollback --user {shlex.quote(next(iter(run.scope.values()), ''))}",
            "rows that somebody changed since, and those that the application wrote",
        )
    inserts = run.keys_from is not None and side_of(run.keys_from) == "source"
    inserted = " Rows that the run inserted stay in a table that was there before." if inserts else ""
    if run.vector_table in SHIPPED:
        section = SHIPPED[run.vector_table].section
        alembic, option = ("alembic", "") if section is None else (f"alembic -n {section}", f" --section {section}")
        yield UndoStep(
            "the schema",
            f"{alembic} downgrade base (without a clone: amprenta-vectors db downgrade{option})",
            f"every embedding, under a retired name; {alembic} upgrade head brings them back." + inserted,
        )
        yield UndoStep(
            "the schema and the data",
            f"{alembic} -x purge=true downgrade base (without a clone: amprenta-vectors db downgrade{option} --purge)",
            "nothing that this package made; before it drops anything it says how much goes." + inserted,
        )
    else:
        yield UndoStep(
            "the column, where a revision of your own made it by op.add_vector_column",
            "op.drop_vector_column in that revision's downgrade, and alembic downgrade",
            "every embedding, under a retired name; upgrading again brings them back." + inserted,
        )
