"""The sections that share a database: their version tables, and the schema that a section's table is in."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import Fact
from amprenta_vectors.ddl.marks import MADE, RETIRED
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.pg.names import qualified
from amprenta_vectors.pg.tables import has_value, schemas_with, table_of

VERSION_TABLE = "amprenta_version_"
"""The beginning of the names of this package's version tables."""

_OTHERS = sa.text("""
    SELECT relname FROM pg_class
    WHERE relkind = 'r' AND relname ~ :beginning AND relname <> coalesce(:own, '') AND pg_table_is_visible(oid)
    ORDER BY relname
""").bindparams(sa.bindparam("own", type_=sa.Text), beginning=f"^{VERSION_TABLE}")


@dataclass(frozen=True)
class OtherSections(Fact[tuple[str, ...]]):
    """The version tables of sections, beside ``own``, that have revisions in a database."""

    own: str | None

    def find(self, connection: Connection) -> tuple[str, ...]:
        """Return the names of these version tables."""
        names = connection.execute(_OTHERS, {"own": self.own}).scalars().all()
        return tuple(name for name in names if has_value(connection, name))


# An adopted table's own comment is the application's, so its columns tell. Schemas that are closed to this role
# are none that it could have adopted a table in.
_MARKED = sa.text("""
    SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname = :table AND c.relkind IN ('r', 'p') AND has_schema_privilege(n.oid, 'USAGE') AND EXISTS (
        SELECT FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND col_description(c.oid, a.attnum) ~ :marks
    )
    ORDER BY 1
""").bindparams(marks=f"^({MADE}$|{RETIRED})")


def adopted_schema(connection: Connection, table: str) -> str | None:
    """Return the schema, off the search path, in which an upgrade adopted ``table``; None if it is on the path.

    Raises `ConfigError` if several schemas have such a table: which one is meant cannot be guessed.
    """
    if table_of(connection, table) is not None:
        return None
    schemas = list(connection.execute(_MARKED, {"table": table}).scalars())
    if len(schemas) > 1:
        raise ConfigError(
            f"table {table} was adopted in several schemas that are not on the search path: {', '.join(schemas)}",
            hint=f"ALTER ROLE CURRENT_USER SET search_path = {qualified(schemas[0])}, public: the one that is meant",
        )
    return schemas[0] if schemas else None


def schema_to_adopt(connection: Connection, table: str, given: str | None) -> str | None:
    """Return the schema, off the search path, of the section's table: as ``-x schema=`` says, or as it was adopted.

    Raises `ConfigError` if the table is not there, or another one is found before it on the search path.
    """
    if given is None:
        return adopted_schema(connection, table)
    if table_of(connection, table, given) is None:
        others = schemas_with(connection, table)
        raise ConfigError(
            f"-x schema={given}: there is no table {qualified(table, given)}",
            hint=f"-x schema={others[0]}" if others else "leave -x schema= out: the upgrade makes the table",
        )
    if (found := table_of(connection, table)) is None:
        return given
    there = table_of(connection, table, given)
    if there is not None and found.oid != there.oid:
        raise ConfigError(
            f"-x schema={given}: a table {table} that comes before it is on the search path",
            hint=f"ALTER TABLE {table} RENAME TO …, or leave -x schema= out to adopt that one",
        )
    return None
