"""Alembic operations for pgvector, usable in any application's revisions.

``import amprenta_vectors.ddl`` registers them on ``alembic.op``. They stand on Alembic, SQLAlchemy,
`amprenta_vectors.pg` and `amprenta_vectors.errors` alone, and every one can be repeated: a second call finds the work
done.
"""

from amprenta_vectors.ddl import autogenerate as _autogenerate  # noqa: F401 - registers itself with Alembic
from amprenta_vectors.ddl.backfill import CancelBackfillOp, QueueBackfillOp
from amprenta_vectors.ddl.columns import AddKeptColumnOp, AddVectorColumnOp, DropColumnOp
from amprenta_vectors.ddl.extension import CreateVectorExtensionOp, DropVectorExtensionOp
from amprenta_vectors.ddl.function import CreateFunctionOp, DropFunctionOp
from amprenta_vectors.ddl.gate import EnsureBackfillFinishedOp
from amprenta_vectors.ddl.impl import AmprentaPostgresqlImpl
from amprenta_vectors.ddl.include_object import include_object
from amprenta_vectors.ddl.materialized_view import CreateMaterializedViewOp, DropMaterializedViewOp
from amprenta_vectors.ddl.model_column import AddModelColumnOp, DropModelColumnOp
from amprenta_vectors.ddl.model_scope import AddModelScopeOp, DropModelScopeOp
from amprenta_vectors.ddl.plain_index import CreatePlainIndexOp, DropPlainIndexOp
from amprenta_vectors.ddl.table import AdoptTableOp, RetireTableOp
from amprenta_vectors.ddl.trigger import CreateTriggerOp, DropTriggerOp
from amprenta_vectors.ddl.vector_index import CreateVectorIndexOp, DropVectorIndexOp, ReplaceVectorIndexOp
from amprenta_vectors.pg.types import VectorType

__all__ = [
    "AddKeptColumnOp",
    "AddModelColumnOp",
    "AddModelScopeOp",
    "AddVectorColumnOp",
    "AdoptTableOp",
    "AmprentaPostgresqlImpl",
    "CancelBackfillOp",
    "CreateFunctionOp",
    "CreateMaterializedViewOp",
    "CreatePlainIndexOp",
    "CreateTriggerOp",
    "CreateVectorExtensionOp",
    "CreateVectorIndexOp",
    "DropColumnOp",
    "DropFunctionOp",
    "DropMaterializedViewOp",
    "DropModelColumnOp",
    "DropModelScopeOp",
    "DropPlainIndexOp",
    "DropTriggerOp",
    "DropVectorExtensionOp",
    "DropVectorIndexOp",
    "EnsureBackfillFinishedOp",
    "QueueBackfillOp",
    "ReplaceVectorIndexOp",
    "RetireTableOp",
    "VectorType",
    "include_object",
]
