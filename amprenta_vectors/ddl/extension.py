"""``op.create_vector_extension()`` and its reverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.ddl import offline
from amprenta_vectors.ddl.catalogue import MADE, connection_of, mark, other_sections, sqlstate
from amprenta_vectors.ddl.locking import drop_unless_used
from amprenta_vectors.ddl.plan import Step
from amprenta_vectors.errors import ServerUnsuitable

_PRIVILEGE = "42501"
_NOT_AVAILABLE = {"0A000", "58P01"}

_INSTALLED = sa.text("SELECT extversion FROM pg_extension WHERE extname = 'vector'")


@Operations.register_operation("create_vector_extension")
@dataclass
class CreateVectorExtensionOp(MigrateOperation):
    """Enable pgvector where it is not yet."""

    @classmethod
    def create_vector_extension(cls, operations: Operations) -> None:
        """Enable pgvector. Raises `ServerUnsuitable` where it is not installed or may not be enabled."""
        operations.invoke(cls())

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one."""
        return DropVectorExtensionOp()

    def plan(self, operations: Operations) -> list[Step]:
        """What this would do now."""
        found = connection_of(operations).execute(_INSTALLED).scalar()
        return [Step(f"extension vector is there ({found})" if found else "enable extension vector")]

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("create_vector_extension",)


@Operations.register_operation("drop_vector_extension")
@dataclass
class DropVectorExtensionOp(MigrateOperation):
    """Remove pgvector where this package enabled it and nothing uses it."""

    shared: bool = False

    @classmethod
    def drop_vector_extension(cls, operations: Operations, *, shared: bool = False) -> None:
        """Remove the extension if it bears our mark and no column, index or function needs it.

        With ``shared``, it is left while another section has revisions in this database.
        """
        operations.invoke(cls(shared))

    def reverse(self) -> MigrateOperation:
        """The operation that undoes this one."""
        return CreateVectorExtensionOp()

    def to_diff_tuple(self) -> tuple[Any, ...]:
        """How autogenerate names this operation."""
        return ("drop_vector_extension",)


@Operations.implementation_for(CreateVectorExtensionOp)
def _create(operations: Operations, operation: CreateVectorExtensionOp) -> None:
    if operations.get_context().as_sql:
        offline.create_vector_extension(operations)
        return
    connection = connection_of(operations)
    if connection.execute(_INSTALLED).first():
        return
    try:
        connection.execute(sa.text("CREATE EXTENSION vector"))
    except DBAPIError as error:
        state = sqlstate(error)
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
    mark(connection, "EXTENSION vector")


@Operations.implementation_for(DropVectorExtensionOp)
def _drop(operations: Operations, operation: DropVectorExtensionOp) -> None:
    if operations.get_context().as_sql:
        offline.drop_vector_extension(operations, operation)
        return
    if operation.shared and other_sections(operations):
        return
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
