"""``op.create_vector_extension()`` and its reverse."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.ddl.catalogue import MADE, connection_of, mark
from amprenta_vectors.ddl.locking import drop_unless_used
from amprenta_vectors.errors import ServerUnsuitable

_PRIVILEGE = "42501"
_NOT_AVAILABLE = {"0A000", "58P01"}


@Operations.register_operation("create_vector_extension")
class CreateVectorExtensionOp(MigrateOperation):
    """Enable pgvector where it is not yet."""

    @classmethod
    def create_vector_extension(cls, operations: Operations) -> None:
        """Enable pgvector. Raises `ServerUnsuitable` where it is not installed or may not be enabled."""
        operations.invoke(cls())

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one."""
        return DropVectorExtensionOp()

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("create_vector_extension",)


@Operations.register_operation("drop_vector_extension")
class DropVectorExtensionOp(MigrateOperation):
    """Remove pgvector where this package enabled it and nothing uses it."""

    @classmethod
    def drop_vector_extension(cls, operations: Operations) -> None:
        """Remove the extension if it bears our mark and no column, index or function needs it."""
        operations.invoke(cls())

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one."""
        return CreateVectorExtensionOp()

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("drop_vector_extension",)


@Operations.implementation_for(CreateVectorExtensionOp)
def _create(operations: Operations, operation: CreateVectorExtensionOp) -> None:
    connection = connection_of(operations)
    if connection.execute(sa.text("SELECT 1 FROM pg_extension WHERE extname = 'vector'")).first():
        return
    try:
        connection.execute(sa.text("CREATE EXTENSION vector"))
    except DBAPIError as error:
        state = getattr(error.orig, "pgcode", None)
        if state in _NOT_AVAILABLE:
            raise ServerUnsuitable(
                'extension "vector" is not available on this server',
                hint="install pgvector for this server (Debian: apt-get install postgresql-NN-pgvector; Docker: "
                "pgvector/pgvector; Amazon RDS: PostgreSQL 15.2 or newer carries it), then: alembic upgrade head",
            ) from error
        if state == _PRIVILEGE:
            raise ServerUnsuitable(
                'this role may not enable extension "vector"',
                hint="let a superuser (on Amazon RDS: a member of rds_superuser) run: CREATE EXTENSION vector",
            ) from error
        raise
    mark(connection, "EXTENSION", "vector")


@Operations.implementation_for(DropVectorExtensionOp)
def _drop(operations: Operations, operation: DropVectorExtensionOp) -> None:
    connection = connection_of(operations)
    ours = connection.execute(
        sa.text("""
            SELECT obj_description(oid, 'pg_extension') = :made FROM pg_extension WHERE extname = 'vector'
        """),
        {"made": MADE},
    ).scalar()
    if not ours:
        return
    drop = sa.text("DROP EXTENSION vector RESTRICT")
    drop_unless_used(connection, "extension vector", lambda: connection.execute(drop))
