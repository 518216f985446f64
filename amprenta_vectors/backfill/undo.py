"""How to take back what a run did, for its report: the ways that the README and docs/alembic.md describe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from amprenta_vectors.backfill.keys_from import side_of
from amprenta_vectors.backfill.progress import Run
from amprenta_vectors.backfill.states import UNFINISHED
from amprenta_vectors.schema.registry import SHIPPED


@dataclass(frozen=True)
class UndoStep:
    """What is undone, what to type for it, and what stays all the same."""

    undoes: str
    command: str
    stays: str


def undo_steps(run: Run) -> list[UndoStep]:
    """The ways back from a run, the one that takes back least first."""
    return list(_steps(run))


def _steps(run: Run) -> Iterator[UndoStep]:
    if run.state in UNFINISHED:
        yield UndoStep("the run, which has not ended", f"amprenta-vectors cancel {run.id}", "every row it wrote")
    if run.source_kind == "pinecone":
        yield UndoStep(
            "the application's switch",
            "export VECTOR_BACKEND=pinecone, and restart the application",
            "everything: the run only read the index, and Pinecone has all it had",
        )
    inserts = run.keys_from is not None and side_of(run.keys_from) == "source"
    inserted = " Rows that the run inserted stay in a table that was there before." if inserts else ""
    if run.vector_table in SHIPPED:
        yield UndoStep(
            "the schema",
            "alembic downgrade base (without a clone: amprenta-vectors db downgrade)",
            "every embedding, under a retired name; alembic upgrade head brings them back." + inserted,
        )
        yield UndoStep(
            "the schema and the data",
            "alembic -x purge=true downgrade base (without a clone: amprenta-vectors db downgrade --purge)",
            "nothing that this package made; before it drops anything it says how much goes." + inserted,
        )
    else:
        yield UndoStep(
            "the column, where a revision of your own made it by op.add_vector_column",
            "op.drop_kept_column in that revision's downgrade, and alembic downgrade",
            "every embedding, under a retired name; upgrading again brings them back." + inserted,
        )
