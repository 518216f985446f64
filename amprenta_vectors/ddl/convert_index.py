"""Alembic's index operations turned into this package's: from a model's index, and from one in the database."""

from __future__ import annotations

import re
from typing import Any, cast

import sqlalchemy as sa
from alembic.operations import MigrateOperation, ops
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Connection
from sqlalchemy.sql.elements import Cast, Label
from sqlalchemy.sql.functions import Function

from amprenta_vectors.ddl.vector_index import (
    CreateVectorIndexOp,
    DropVectorIndexOp,
    ReplaceVectorIndexOp,
    VectorIndexOp,
)
from amprenta_vectors.pg.indexes import index_of
from amprenta_vectors.pg.types import CoarserStorage

_SAID = frozenset({"using", "ops", "with", "where", "concurrently"})
_OPCLASS = re.compile(r"(?:vector|halfvec)_(cosine|l2|ip|l1)_ops|bit_hamming_ops")
_DIMENSIONS = re.compile(r"\((\d+)\)$")


def created_index(op: ops.CreateIndexOp, *, concurrently: bool) -> CreateVectorIndexOp | None:
    """Return ``op`` as an operation of this package; None for several columns, other types or expressions."""
    options: dict[str, Any] = {
        name.removeprefix("postgresql_"): value
        for name, value in op.kw.items()
        if isinstance(value, sa.ClauseElement) or value
    }
    if op.unique or options.keys() - _SAID or len(op.columns) != 1:
        return None
    key: Any = op.columns[0]
    opclass = _OPCLASS.fullmatch(options.get("ops", {}).get(getattr(key, "key", None), ""))
    while isinstance(key, Label):
        key = key.element
    column, storage = _indexed(key)
    if not isinstance(column, sa.Column) or opclass is None or (storage == "bit") != (opclass[1] is None):
        return None
    return CreateVectorIndexOp(
        str(op.index_name),
        str(op.table_name),
        str(column.name),
        method=options["using"].lower(),
        distance=cast(Any, opclass[1] or "cosine"),
        options={name: int(value) for name, value in options.get("with", {}).items()},
        where=_sql(options["where"]) if "where" in options else None,
        storage=storage,
        schema=op.schema,
        concurrently=concurrently,
    )


def dropped_index(connection: Connection, op: ops.DropIndexOp, *, concurrently: bool) -> DropVectorIndexOp | None:
    """Return ``op`` as an operation of this package, with the index to be made again; None if it cannot be put so."""
    name, table = str(op.index_name), str(op.table_name)
    found = index_of(connection, name, op.schema)
    indexed = found.indexed if found is not None and not found.unique and not found.includes else None
    opclass = _OPCLASS.fullmatch(found.opclasses[0]) if found is not None else None
    if found is None or indexed is None or opclass is None or (indexed.cast == "bit") != (opclass[1] is None):
        return None
    reverse = CreateVectorIndexOp(
        name,
        table,
        indexed.column,
        method=cast(Any, found.method),
        distance=cast(Any, opclass[1] or "cosine"),
        options={option: int(value) for option, value in found.options},
        where=found.predicate,
        storage=indexed.cast,
        schema=op.schema,
        concurrently=concurrently,
    )
    return DropVectorIndexOp(name, op.schema, adopted=True, _reverse=reverse)


def replaced_by(create: CreateVectorIndexOp | None, drop: DropVectorIndexOp | None) -> ReplaceVectorIndexOp | None:
    """Return both as one operation; None if either is missing, or the same revision makes or drops the table."""
    if create is None or drop is None or not create.concurrently:
        return None
    fields = VectorIndexOp.__dataclass_fields__
    return ReplaceVectorIndexOp(**{name: getattr(create, name) for name in fields}, _reverse=drop.reverse())


def commits(op: MigrateOperation) -> bool:
    """Return whether an operation commits what stands before it in a revision."""
    return isinstance(op, ReplaceVectorIndexOp) or (isinstance(op, CreateVectorIndexOp) and op.concurrently)


def _indexed(key: Any) -> tuple[Any, CoarserStorage | None]:
    """Return the column of a key, and what it is cast to, None for the column as it is; no column for other keys."""
    if not isinstance(key, Cast):
        return key, None
    inner, storage = key.clause, _sql(key.type).lower().partition("(")[0]
    if storage == "bit" and isinstance(inner, Function) and inner.name == "binary_quantize":
        (inner,) = inner.clauses
    elif storage != "halfvec":
        return None, None
    sizes = [_DIMENSIONS.search(_sql(type_)) for type_ in (key.type, inner.type)]
    alike = all(sizes) and len({size[1] for size in sizes if size}) == 1
    return (inner, cast(Any, storage)) if alike else (None, None)


def _sql(element: Any) -> str:
    """Return a predicate or a type of a model as SQL; percent signs and colons as they are."""
    if isinstance(element, str):
        return element
    # What a driver's own dialect would double, this one leaves alone.
    dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
    if isinstance(element, sa.types.TypeEngine):
        return element.compile(dialect=dialect)
    return str(element.compile(dialect=dialect, compile_kwargs={"literal_binds": True, "include_table": False}))
