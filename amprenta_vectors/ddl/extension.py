"""``op.create_vector_extension()`` and its reverse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.ddl.catalogue import Catalogue, Fact, IsUsed
from amprenta_vectors.ddl.marks import MADE
from amprenta_vectors.ddl.sections import OtherSections
from amprenta_vectors.ddl.steps import Done, Step, SteppedOp, execute, operation
from amprenta_vectors.errors import ServerUnsuitable
from amprenta_vectors.pg.errors import FEATURE_NOT_SUPPORTED, FILE_MISSING, IN_USE, NOT_ALLOWED, sqlstate
from amprenta_vectors.pg.names import literal, qualified


@dataclass(frozen=True)
class Extension:
    """pgvector in a database: the schema of its types, and whether an operation enabled it."""

    ours: bool
    version: str = field(default="", compare=False)
    schema: str = field(default="public", compare=False)
    visible: bool = True
    """Whether its types and operators are found by the search path."""


@dataclass(frozen=True)
class ExtensionFact(Fact[Extension | None]):
    """pgvector in a database; None where it is not enabled."""

    def find(self, connection: Connection) -> Extension | None:
        """Return the extension; None if it is not enabled."""
        row = connection.execute(
            sa.text("""
                SELECT coalesce(obj_description(e.oid, 'pg_extension') = :made, false) AS ours,
                       e.extversion AS version, n.nspname AS schema, n.nspname = ANY(current_schemas(true)) AS visible
                FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'
            """),
            {"made": MADE},
        ).first()
        return None if row is None else Extension(**row._mapping)


@operation("create_vector_extension")
@dataclass
class CreateVectorExtensionOp(SteppedOp):
    """Enable pgvector if it is not enabled yet."""

    @classmethod
    def create_vector_extension(cls, operations: Operations) -> None:
        """Enable pgvector. Raises `ServerUnsuitable` where it is not installed or may not be enabled."""
        operations.invoke(cls())

    def reverse(self) -> MigrateOperation:
        """Return the operation that undoes this one."""
        return DropVectorExtensionOp()

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the step that enables pgvector, if any. Raises `ServerUnsuitable` if it is off the search path."""
        fact = ExtensionFact()
        found = catalogue.ask(fact, None)
        if found is None:
            return Step("enable extension vector", _enable, {fact: Extension(ours=True)})
        if not found.visible:
            raise ServerUnsuitable(
                f"extension vector is in schema {found.schema}, which is not on the search path of this role",
                hint=f'ALTER ROLE CURRENT_USER SET search_path = "$user", public, {qualified(found.schema)}',
            )
        return Done(f"extension vector is there ({found.version})")


@operation("drop_vector_extension")
@dataclass
class DropVectorExtensionOp(SteppedOp):
    """Remove pgvector if this package enabled it and nothing uses it."""

    shared: bool = False

    @classmethod
    def drop_vector_extension(cls, operations: Operations, *, shared: bool = False) -> None:
        """Remove the extension if it bears our mark and no column, index or function needs it.

        With ``shared``, it is left while another section has revisions in this database.
        """
        operations.invoke(cls(shared))

    def reverse(self) -> MigrateOperation:
        """Return the operation that undoes this one."""
        return CreateVectorExtensionOp()

    def next_step(self, catalogue: Catalogue, options: Mapping[str, Any]) -> Step | Done:
        """Return the step that removes an extension of ours, unless another section or something else needs it."""
        fact, used = ExtensionFact(), IsUsed("extension vector")
        # A script's CREATE EXTENSION finds one that is there, and leaves no mark.
        found = catalogue.ask(fact, None)
        if found is None:
            return Done("extension vector is left as it is")
        # What a script keeps under retired names needs it.
        if not found.ours or catalogue.ask(used, True):
            return Done("extension vector is left: " + ("something needs it" if found.ours else "it was there before"))
        if self.shared and catalogue.ask(OtherSections(options.get("version_table")), ()):
            return Done("extension vector is left: another section needs it")
        return Step(
            "remove extension vector",
            lambda operations: execute(operations, "DROP EXTENSION vector RESTRICT"),
            {fact: None},
            lock="ACCESS EXCLUSIVE",
            teaches={IN_USE: (used, True)},
        )


def _enable(operations: Operations) -> None:
    if operations.get_context().as_sql:
        execute(operations, "CREATE EXTENSION IF NOT EXISTS vector")
        return
    try:
        execute(operations, "CREATE EXTENSION vector")
    except DBAPIError as error:
        if sqlstate(error) in {FEATURE_NOT_SUPPORTED, FILE_MISSING}:
            raise ServerUnsuitable(
                'extension "vector" is not available on this server',
                hint="install pgvector for this server (Debian: apt-get install postgresql-NN-pgvector; Amazon RDS: "
                "PostgreSQL 15.2 or newer carries it; for local development: docker run -e POSTGRES_PASSWORD=… -p "
                "127.0.0.1:5432:5432 --shm-size=1g pgvector/pgvector:pg18), then: alembic upgrade head",
            ) from error
        if sqlstate(error) == NOT_ALLOWED:
            raise ServerUnsuitable(
                'this role may not enable extension "vector"',
                hint="let a superuser (on Amazon RDS: a member of rds_superuser) run: CREATE EXTENSION vector",
            ) from error
        raise
    execute(operations, f"COMMENT ON EXTENSION vector IS {literal(MADE)}")
