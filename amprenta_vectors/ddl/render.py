"""How autogenerate writes the operations and the vector types into a revision."""

from __future__ import annotations

from dataclasses import MISSING, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.autogenerate import render, renderers
from alembic.operations import MigrateOperation

from amprenta_vectors.ddl.backfill import CancelBackfillOp, QueueBackfillOp
from amprenta_vectors.ddl.columns import AddKeptColumnOp, AddVectorColumnOp, DropColumnOp
from amprenta_vectors.ddl.extension import CreateVectorExtensionOp, DropVectorExtensionOp
from amprenta_vectors.ddl.function import CreateFunctionOp, DropFunctionOp
from amprenta_vectors.ddl.gate import EnsureBackfillFinishedOp
from amprenta_vectors.ddl.materialized_view import CreateMaterializedViewOp, DropMaterializedViewOp
from amprenta_vectors.ddl.model_column import AddModelColumnOp, DropModelColumnOp
from amprenta_vectors.ddl.model_scope import AddModelScopeOp, DropModelScopeOp
from amprenta_vectors.ddl.plain_index import CreatePlainIndexOp, DropPlainIndexOp
from amprenta_vectors.ddl.table import AdoptTableOp, RetireTableOp
from amprenta_vectors.ddl.trigger import CreateTriggerOp, DropTriggerOp
from amprenta_vectors.ddl.vector_index import CreateVectorIndexOp, DropVectorIndexOp, ReplaceVectorIndexOp
from amprenta_vectors.pg.types import VectorType

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext

IMPORT = "import amprenta_vectors.ddl  # noqa: F401 - registers the operations"
PGVECTOR_IMPORT = "import pgvector.sqlalchemy"
_PGVECTOR_TYPES = frozenset({"VECTOR", "HALFVEC", "SPARSEVEC", "BIT"})


_PLAIN: dict[type[MigrateOperation], str] = {
    CreateVectorExtensionOp: "create_vector_extension",
    DropVectorExtensionOp: "drop_vector_extension",
    DropColumnOp: "drop_vector_column",
    RetireTableOp: "retire_table",
    CreateVectorIndexOp: "create_vector_index",
    ReplaceVectorIndexOp: "replace_vector_index",
    DropVectorIndexOp: "drop_vector_index",
    CreatePlainIndexOp: "create_plain_index",
    DropPlainIndexOp: "drop_plain_index",
    CreateFunctionOp: "create_function",
    DropFunctionOp: "drop_function",
    CreateTriggerOp: "create_trigger",
    DropTriggerOp: "drop_trigger",
    CreateMaterializedViewOp: "create_materialized_view",
    DropMaterializedViewOp: "drop_materialized_view",
    QueueBackfillOp: "queue_backfill",
    CancelBackfillOp: "cancel_backfill",
    EnsureBackfillFinishedOp: "ensure_backfill_finished",
    AddModelColumnOp: "add_model_column",
    DropModelColumnOp: "drop_model_column",
    AddModelScopeOp: "add_model_scope",
    DropModelScopeOp: "drop_model_scope",
}
"""Operations whose arguments are written as Python writes them."""


def render_vector_type(type_: sa.types.TypeEngine[Any], context: AutogenContext) -> str | None:
    """Return a type of this package or of pgvector, whose import is noted; None for any other."""
    if isinstance(type_, VectorType):
        context.imports.add(IMPORT)
        return f"amprenta_vectors.ddl.{type_!r}"
    # By name: pgvector's Python package is not among what the operations stand on.
    module, name = type(type_).__module__, type(type_).__name__
    if module.startswith("pgvector.sqlalchemy") and name in _PGVECTOR_TYPES:
        context.imports.add(PGVECTOR_IMPORT)
        return f"pgvector.sqlalchemy.{type_!r}"
    return None


def _call(context: AutogenContext, name: str, op: MigrateOperation, **rendered: str) -> str:
    """Return a call of ``name`` with all of ``op`` that is not its default; ``rendered`` are fields written already."""
    context.imports.add(IMPORT)
    positional, keywords = [], []
    for field in fields(op):  # type: ignore[arg-type]
        value = getattr(op, field.name)
        text = rendered.get(field.name, repr(value))
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if default is MISSING:
            positional.append(text)
        elif field.compare and value != default:
            keywords.append(f"{field.name}={text}")
    return f"{render._alembic_autogenerate_prefix(context)}{name}({', '.join(positional + keywords)})"


def _plain(name: str, context: AutogenContext, op: MigrateOperation) -> str:
    return _call(context, name, op)


@renderers.dispatch_for(AddKeptColumnOp)
def _add_kept_column(context: AutogenContext, op: AddKeptColumnOp) -> str:
    return _call(context, "add_kept_column", op, type=render._repr_type(op.type, context))


@renderers.dispatch_for(AddVectorColumnOp)
def _add_vector_column(context: AutogenContext, op: AddVectorColumnOp) -> str:
    beside = ", ".join(filter(None, (render._render_column(column, context) for column in op.beside)))
    return _call(context, "add_vector_column", op, beside=f"[{beside}]")


@renderers.dispatch_for(AdoptTableOp)
def _adopt_table(context: AutogenContext, op: AdoptTableOp) -> str:
    table = op.as_table
    constraints = [render._render_constraint(each, context, table.metadata) for each in table.constraints]
    elements = [
        *filter(None, (render._render_column(column, context) for column in table.columns)),
        *sorted(filter(None, constraints)),
        *(_index(index, context) for index in sorted(table.indexes, key=lambda index: str(index.name))),
    ]
    return _call(context, "adopt_table", op, elements="\n" + ",\n".join(elements))


def _index(index: sa.Index, context: AutogenContext) -> str:
    keys = render._get_index_rendered_expressions(index, context)
    options = render._render_dialect_kwargs_items(context, index.dialect_kwargs)
    unique = ["unique=True"] if index.unique else []
    prefix = render._sqlalchemy_autogenerate_prefix(context)
    return f"{prefix}Index({', '.join([repr(index.name), *keys, *unique, *options])})"


for _kind, _name in _PLAIN.items():
    renderers.dispatch_for(_kind)(partial(_plain, _name))
