"""The migrating role's privileges, asked for before they are needed; docs/grants.md says what to grant."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.errors import ServerUnsuitable
from amprenta_vectors.pg.names import qualified, quoted


def require_ownership(connection: Connection, table: str, schema: str | None = None) -> None:
    """Raise `ServerUnsuitable` if this role may not alter ``table``; a table that does not exist passes."""
    row = connection.execute(
        sa.text("""
            SELECT current_user AS role, pg_get_userbyid(relowner) AS owner, pg_has_role(relowner, 'USAGE') AS allowed
            FROM pg_class WHERE oid = to_regclass(:name)
        """),
        {"name": quoted(schema, table)},
    ).first()
    if row is not None and not row.allowed:
        name, role, owner = qualified(table, schema), qualified(row.role), qualified(row.owner)
        raise ServerUnsuitable(
            f"role {row.role} may not alter table {name}: {row.owner} owns it",
            hint=f"GRANT {owner} TO {role}, or: ALTER TABLE {name} OWNER TO {role}",
        )


def require_create(connection: Connection, schema: str | None = None) -> None:
    """Raise `ServerUnsuitable` if this role may not make tables and indexes in ``schema``, or in its own."""
    row = connection.execute(
        sa.text("""
            SELECT current_user AS role, coalesce(:schema, current_schema()) AS schema,
                   has_schema_privilege(coalesce(:schema, current_schema()), 'CREATE') AS allowed
        """).bindparams(sa.bindparam("schema", schema, sa.Text)),
    ).one()
    if not row.allowed:
        name = qualified(row.schema or "public")
        raise ServerUnsuitable(
            f"role {row.role} may not make anything in schema {name}",
            hint=f"GRANT USAGE, CREATE ON SCHEMA {name} TO {qualified(row.role)}",
        )


def require_function_ownership(connection: Connection, signature: str) -> None:
    """Raise `ServerUnsuitable` if this role may not replace or drop the function of that ``signature``."""
    row = connection.execute(
        sa.text("""
            SELECT current_user AS role, pg_get_userbyid(proowner) AS owner, pg_has_role(proowner, 'USAGE') AS allowed
            FROM pg_proc WHERE oid = to_regprocedure(:signature)
        """),
        {"signature": signature},
    ).first()
    if row is not None and not row.allowed:
        role, owner = qualified(row.role), qualified(row.owner)
        raise ServerUnsuitable(
            f"role {row.role} may not replace or drop function {signature}: {row.owner} owns it",
            hint=f"GRANT {owner} TO {role}, or: ALTER FUNCTION {signature} OWNER TO {role}",
        )
