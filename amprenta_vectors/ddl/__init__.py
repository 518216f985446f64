"""Alembic operations for pgvector, usable in any application's revisions.

``import amprenta_vectors.ddl`` registers them on ``alembic.op``. They stand on Alembic, SQLAlchemy and
`amprenta_vectors.errors` alone, and every one can be repeated: a second call finds the work done.
"""

from amprenta_vectors.ddl.backfill import CancelBackfillOp, QueueBackfillOp
from amprenta_vectors.ddl.catalogue import other_sections
from amprenta_vectors.ddl.extension import CreateVectorExtensionOp, DropVectorExtensionOp
from amprenta_vectors.ddl.gate import EnsureBackfillFinishedOp
from amprenta_vectors.ddl.kept_column import AddKeptColumnOp, DropKeptColumnOp
from amprenta_vectors.ddl.table import AdoptTableOp, RetireTableOp
from amprenta_vectors.ddl.vector_column import AddVectorColumnOp
from amprenta_vectors.ddl.vector_index import CreateVectorIndexOp, DropVectorIndexOp

__all__ = [
    "AddKeptColumnOp",
    "AddVectorColumnOp",
    "AdoptTableOp",
    "CancelBackfillOp",
    "CreateVectorExtensionOp",
    "CreateVectorIndexOp",
    "DropKeptColumnOp",
    "DropVectorExtensionOp",
    "DropVectorIndexOp",
    "EnsureBackfillFinishedOp",
    "QueueBackfillOp",
    "RetireTableOp",
    "other_sections",
]
