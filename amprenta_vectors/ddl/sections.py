"""The sections that share a database, by their version tables."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import Fact
from amprenta_vectors.pg.tables import has_value

VERSION_TABLE = "amprenta_version_"
"""How the version tables of this package's sections begin."""

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
        """Return their names."""
        names = connection.execute(_OTHERS, {"own": self.own}).scalars().all()
        return tuple(name for name in names if has_value(connection, name))
