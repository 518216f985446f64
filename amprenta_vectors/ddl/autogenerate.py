"""Autogenerate for vectors: concurrent index operations, no dropped embedding, no altered dimension.

Alembic's comparison runs as always; what it found is then put into this package's operations. Importing
``amprenta_vectors.ddl`` in an ``env.py`` is all it takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from alembic.autogenerate import comparators
from alembic.operations import MigrateOperation, ops
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy.exc import CompileError

from amprenta_vectors.ddl.convert_index import commits, created_index, dropped_index, replaced_by
from amprenta_vectors.ddl.dimension import ChangeVectorDimensionOp
from amprenta_vectors.ddl.extension import CreateVectorExtensionOp
from amprenta_vectors.ddl.marks import MADE, building_name, is_ours
from amprenta_vectors.ddl.options import log
from amprenta_vectors.ddl.programs import missing
from amprenta_vectors.ddl.sections import VERSION_TABLE
from amprenta_vectors.ddl.vector_index import DropVectorIndexOp
from amprenta_vectors.pg.indexes import ANN_METHODS, index_of
from amprenta_vectors.pg.tables import table_of

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext

_SIZED = re.compile(r"(?:.+\.)?(vector|halfvec|sparsevec)(?:\((\d+)\))?", re.IGNORECASE)


@comparators.dispatch_for("autogenerate", qualifier="postgresql", priority=DispatchPriority.LAST)
def rewrite(context: AutogenContext, upgrade_ops: ops.UpgradeOps) -> PriorityDispatchResult:
    """Put what was found into the operations of this package, and leave alone what is not the model's to drop."""
    kept = {_table_of(op) for op in upgrade_ops.ops if _is_kept_table(op)}
    found = [op for op in upgrade_ops.ops if _table_of(op) not in kept]
    new_or_gone = {_table_of(op) for op in found if isinstance(op, (ops.CreateTableOp, ops.DropTableOp))}
    first: list[MigrateOperation] = []
    last: list[MigrateOperation] = []
    rest: list[MigrateOperation] = []
    for op in found:
        if isinstance(op, ops.ModifyTableOps):
            concurrently = _table_of(op) not in new_or_gone
            op.ops[:] = _rewrite_table(context, op, first, last, concurrently=concurrently)
            if op.is_empty():
                continue
        rest.append(op)
    if any(_is_vector(context, column) for op in rest for column in _new_columns(op)) and not _has_extension(context):
        first.insert(0, CreateVectorExtensionOp())
    # A revision with a dimension to change refuses before it has done anything.
    first.sort(key=lambda op: not isinstance(op, ChangeVectorDimensionOp))
    if rest and any(commits(op) for op in (*first, *last)):
        log.warning(
            "the revision works on an index concurrently, which commits what stands before it: give the index a "
            "revision of its own, so that one that fails can be run again"
        )
    operations = context.opts.get("amprenta_operations", [])
    upgrade_ops.ops[:] = [*first, *rest, *last, *missing(_connection(context), operations)]
    return PriorityDispatchResult.CONTINUE


def _rewrite_table(
    context: AutogenContext,
    table: ops.ModifyTableOps,
    first: list[MigrateOperation],
    last: list[MigrateOperation],
    *,
    concurrently: bool,
) -> list[MigrateOperation]:
    """Return what stays of ``table``'s operations; those that must run before or after all others move there."""
    stays: list[MigrateOperation] = []
    dropped = {
        op.index_name: dropped_index(_connection(context), op, concurrently=concurrently) if _is_ann(op) else None
        for op in table.ops
        if isinstance(op, ops.DropIndexOp)
    }
    created = {
        op.index_name: created_index(op, concurrently=concurrently) if _is_ann(op) else None
        for op in table.ops
        if isinstance(op, ops.CreateIndexOp)
    }
    for op in table.ops:
        if isinstance(op, ops.AlterColumnOp):
            first += _dimension_changes(context, op)
            _ignore_our_comment(op)
            if op.has_changes():
                stays.append(op)
        elif isinstance(op, ops.CreateIndexOp) and _is_ann(op):
            create = created[op.index_name]
            replaced = replaced_by(create, dropped.get(str(op.index_name)))
            if op.index_name in dropped or str(op.index_name) not in _deferred_indexes(context):
                (last if create else stays).append(replaced or create or op)
        elif isinstance(op, ops.DropIndexOp) and _is_ann(op):
            drop = dropped[op.index_name]
            if replaced_by(created.get(op.index_name), drop):
                continue
            if op.index_name in created or not _is_kept_index(context, op, drop):
                (first if drop else stays).append(drop or op)
        elif not _is_kept(op) and not _is_our_index(context, op, created):
            stays.append(op)
    return stays


def _dimension_changes(context: AutogenContext, op: ops.AlterColumnOp) -> list[MigrateOperation]:
    """Take a change of dimension out of ``op``, and return the operation that says what to do instead."""
    if op.modify_type is None or op.existing_type is None:
        return []
    found, wanted = (_spec(context, type_) for type_ in (op.existing_type, op.modify_type))
    before, after = _SIZED.fullmatch(found), _SIZED.fullmatch(wanted)
    if not (before and after and before[2] and after[2] and before[2] != after[2]):
        return []
    op.modify_type = None
    log.warning(
        "%s.%s is %s in the database and %s in the model: a dimension is never altered; the revision says what to do",
        op.table_name,
        op.column_name,
        found,
        wanted,
    )
    return [ChangeVectorDimensionOp(op.table_name, op.column_name, found, wanted, op.schema)]


def _ignore_our_comment(op: ops.AlterColumnOp) -> None:
    """Let a model leave out the mark by which this package knows what it made."""
    if op.modify_comment is None and op.existing_comment == MADE:
        op.modify_comment = False


def _is_kept(op: MigrateOperation) -> bool:
    """Return whether ``op`` would drop a mark or a column of ours, or a column that a downgrade kept."""
    if isinstance(op, ops.DropTableCommentOp):
        return op.existing_comment == MADE
    return isinstance(op, ops.DropColumnOp) and _is_marked(op.to_column().comment)


def _is_kept_table(op: MigrateOperation) -> bool:
    if not isinstance(op, ops.DropTableOp):
        return False
    return op.table_name.startswith(VERSION_TABLE) or _is_marked(op.comment)


def _is_kept_index(context: AutogenContext, op: ops.DropIndexOp, drop: DropVectorIndexOp | None) -> bool:
    """Return whether an index that the model lacks is being built, or is ours, on a column of ours it lacks too."""
    table = context.table_key_to_table.get(".".join(part for part in _table_of(op) if part))
    if table is None:
        return False
    if op.index_name in {building_name(str(index.name)) for index in table.indexes}:
        return True
    column = drop.reverse().column if drop else None
    if column is None or column in table.columns:
        return False
    found = table_of(_connection(context), str(op.table_name), op.schema)
    return found is not None and column in found.columns and found.columns[column].comment == MADE


def _is_our_index(context: AutogenContext, op: MigrateOperation, created: Mapping[str | None, object]) -> bool:
    """Return whether ``op`` would drop an ordinary index that an operation of ours made and the model lacks."""
    if not isinstance(op, ops.DropIndexOp) or op.index_name in created:
        return False
    found = index_of(_connection(context), str(op.index_name), op.schema)
    return found is not None and found.comment == MADE


def _is_marked(comment: str | None) -> bool:
    return comment is not None and is_ours(comment)


def _is_ann(op: ops.CreateIndexOp | ops.DropIndexOp) -> bool:
    return str(op.kw.get("postgresql_using")).lower() in ANN_METHODS


def _table_of(op: MigrateOperation) -> tuple[str | None, str]:
    return getattr(op, "schema", None), str(getattr(op, "table_name", ""))


def _connection(context: AutogenContext) -> sa.Connection:
    assert context.connection is not None  # noqa: S101 - autogenerate compares with a database
    return context.connection


def _deferred_indexes(context: AutogenContext) -> set[str]:
    """Return the indexes that a backfill deferred: it dropped them and will build them."""
    connection = _connection(context)
    if table_of(connection, "migration_index") is None:
        return set()
    return set(connection.execute(sa.text("SELECT index_name FROM migration_index WHERE built_at IS NULL")).scalars())


def _has_extension(context: AutogenContext) -> bool:
    extension = sa.text("SELECT 1 FROM pg_extension WHERE extname = 'vector'")
    return _connection(context).execute(extension).first() is not None


def _new_columns(op: MigrateOperation) -> Iterable[sa.Column[Any]]:
    if isinstance(op, ops.CreateTableOp):
        return op.to_table().columns
    if isinstance(op, ops.ModifyTableOps):
        return [inner.column for inner in op.ops if isinstance(inner, ops.AddColumnOp)]
    return []


def _is_vector(context: AutogenContext, column: sa.Column[Any]) -> bool:
    return _SIZED.fullmatch(_spec(context, column.type)) is not None


def _spec(context: AutogenContext, type_: sa.types.TypeEngine[Any]) -> str:
    """Return a type as SQL writes it; empty for one that SQL cannot write."""
    try:
        return type_.compile(dialect=context.dialect).lower()
    except CompileError:
        return ""
