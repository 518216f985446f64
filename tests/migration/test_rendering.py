"""Every operation as autogenerate writes it is Python that means the same, and finds its way back."""

from __future__ import annotations

from textwrap import indent
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import render_op_text
from alembic.autogenerate.api import AutogenContext
from alembic.migration import MigrationContext
from alembic.operations import MigrateOperation, Operations
from migrating import ROOT
from sqlalchemy.dialects.postgresql import JSONB

from amprenta_vectors import ddl

TABLE = ddl.AdoptTableOp(
    'o"dd',
    [
        sa.Column("id", sa.BigInteger, sa.Identity(), primary_key=True),
        sa.Column("run", sa.Text, sa.ForeignKey("runs.id"), nullable=False, server_default="100%"),
        sa.Column("settings", JSONB, server_default=sa.text("'{}'")),
        sa.Column("embedding", ddl.VectorType("halfvec", 3)),
        sa.CheckConstraint("run <> ':x'", name="a_check"),
        sa.Index("an_index", "run", unique=True, postgresql_where=sa.text("run <> 'done'")),
    ],
    key=["id"],
    scope=["run"],
    schema="S",
)
VECTOR_COLUMN = ddl.AddVectorColumnOp("docs", "embedding", 3, storage="halfvec", schema="S", configurable=True)
KEPT_COLUMN = ddl.AddKeptColumnOp("docs", "embedding", ddl.VectorType("halfvec", 3))
INDEX = ddl.CreateVectorIndexOp(
    "ix", "docs", "embedding", method="ivfflat", distance="l1", options={"lists": 7}, where="a = 'it''s 5%:x'"
)
PLAIN_INDEX = ddl.CreatePlainIndexOp("ix", "docs", ["a", "b"], unique=True, where="a = 'it''s 5%:x'", schema="S")
FUNCTION = ddl.CreateFunctionOp("similar", "a text, b text DEFAULT '%'", "text", "RETURN a || b || ':x'", schema="S")
TRIGGER = ddl.CreateTriggerOp("t", "docs", "BEFORE UPDATE", "FOR EACH ROW EXECUTE FUNCTION dated()", schema="S")
VIEW = ddl.CreateMaterializedViewOp("stats", "SELECT state, count(*) FROM docs GROUP BY 1", ["state"], schema="S")
MODEL_COLUMN = ddl.AddModelColumnOp(
    "docs",
    "half",
    "a 'model'",
    3,
    "vector",
    "openai",
    {"query_prefix": "query: "},
    storage="halfvec",
    distance="l2",
    index="ix",
    schema="S",
)
MODEL_SCOPE = ddl.AddModelScopeOp("docs", own_column="vector", schema="S")
OPERATIONS = [
    ddl.CreateVectorExtensionOp(),
    ddl.DropVectorExtensionOp(),
    TABLE,
    TABLE.reverse(),
    VECTOR_COLUMN,
    VECTOR_COLUMN.reverse(),
    KEPT_COLUMN,
    KEPT_COLUMN.reverse(),
    INDEX,
    INDEX.reverse(),
    PLAIN_INDEX,
    PLAIN_INDEX.reverse(),
    FUNCTION,
    FUNCTION.reverse(),
    TRIGGER,
    TRIGGER.reverse(),
    VIEW,
    VIEW.reverse(),
    MODEL_COLUMN,
    MODEL_COLUMN.reverse(),
    MODEL_SCOPE,
    MODEL_SCOPE.reverse(),
    ddl.QueueBackfillOp("docs", "embedding", vector_table="pages", schema="S"),
    ddl.CancelBackfillOp("docs", "embedding"),
    ddl.ReplaceVectorIndexOp(
        "ix",
        "docs",
        "embedding",
        method="ivfflat",
        options={"lists": 3},
        where="a = '5%:x'",
        _reverse=ddl.CreateVectorIndexOp("ix", "docs", "embedding"),
    ),
    ddl.AddVectorColumnOp("docs", "embedding", 3, beside=[sa.Column("model", sa.Text())]),
    ddl.EnsureBackfillFinishedOp("docs", "embedding", allow=["missing_at_source"]),
]


class Recorder:
    """An ``op`` that notes the operations that a revision calls for."""

    def __init__(self) -> None:
        self.invoked: list[MigrateOperation] = []

    def invoke(self, operation: MigrateOperation) -> None:
        self.invoked.append(operation)

    def __getattr__(self, name: str) -> Any:
        method = getattr(Operations, name)
        return lambda *arguments, **options: method(self, *arguments, **options)


def render(*operations: MigrateOperation) -> str:
    """What autogenerate writes, with the imports that it notes."""
    prefixes = {"sqlalchemy_module_prefix": "sa.", "alembic_module_prefix": "op."}
    context = AutogenContext(MigrationContext.configure(dialect_name="postgresql"), opts=prefixes, autogenerate=False)
    body = "\n".join(render_op_text(context, operation) for operation in operations)
    return "\n".join([*sorted(context.imports), "def upgrade():", indent(body or "pass", "    ")])


def run(text: str) -> list[MigrateOperation]:
    """The operations that a revision of that text invokes."""
    recorder = Recorder()
    names: dict[str, Any] = {"op": recorder, "sa": sa, **vars(sa.dialects)}
    exec(text, names)
    names["upgrade"]()
    return recorder.invoked


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda op: type(op).__name__)
def test_what_is_written_is_the_same_operation(operation: MigrateOperation) -> None:
    text = render(operation)
    (again,) = run(text)
    assert type(again) is type(operation)
    assert render(again) == text
    # Columns and types are compared as they are written.
    if not {"elements", "type"} & vars(operation).keys() and not vars(operation).get("beside"):
        assert vars(again) | {"_reverse": None} == vars(operation) | {"_reverse": None}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda op: type(op).__name__)
def test_what_undoes_an_operation_can_be_written_and_undone(operation: MigrateOperation) -> None:
    back = operation.reverse()
    run(render(back))
    assert operation.to_diff_tuple()
    if not isinstance(operation, ddl.EnsureBackfillFinishedOp):
        assert render(back.reverse()) == render(operation)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda op: type(op).__name__)
def test_every_operation_is_in_the_documentation(operation: MigrateOperation) -> None:
    assert f"op.{operation.to_diff_tuple()[0]}(" in (ROOT / "docs" / "alembic.md").read_text()


def test_how_an_index_was_dropped_is_written_with_it() -> None:
    drop = ddl.DropVectorIndexOp("ix", "S", adopted=True)
    assert "op.drop_vector_index('ix', schema='S', adopted=True)" in render(drop)


def test_no_operation_is_forgotten() -> None:
    public = {name for name in ddl.__all__ if name.endswith("Op")}
    assert public == {type(operation).__name__ for operation in OPERATIONS}


@pytest.mark.parametrize(
    "operation",
    [
        ddl.DropVectorIndexOp("ix"),
        ddl.DropPlainIndexOp("ix"),
        ddl.DropColumnOp("docs", "embedding"),
        ddl.RetireTableOp("docs"),
        ddl.DropFunctionOp("similar"),
        ddl.DropTriggerOp("t", "docs"),
        ddl.DropMaterializedViewOp("stats"),
    ],
)
def test_what_was_dropped_unknown_cannot_be_made_again_and_that_is_said(operation: MigrateOperation) -> None:
    with pytest.raises(ValueError, match="is not reversible"):
        operation.reverse()


def test_a_gate_keeps_no_downgrade_from_running() -> None:
    assert run(render(ddl.EnsureBackfillFinishedOp("docs", "embedding").reverse())) == []
