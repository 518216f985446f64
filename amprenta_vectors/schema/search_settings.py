"""The settings for searches of a vector table's index, stored in the database in ``vector_setting``."""

from __future__ import annotations

from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

SearchSetting = Literal["ef_search", "probes", "oversampling"]
"""The names of the settings of a search.

``ef_search`` is how many candidates a search of an hnsw index keeps; ``probes`` how many lists a search of an ivfflat
index reads; ``oversampling`` how many rows are taken from an index for each hit.
"""

_MAY_READ = sa.text("SELECT has_table_privilege(to_regclass('vector_setting'), 'SELECT')")
_READ = sa.text("SELECT name, value FROM vector_setting WHERE target = :target")
_STORE = sa.text("""
    INSERT INTO vector_setting (target, name, value) VALUES (:target, :name, :value)
    ON CONFLICT (target, name) DO UPDATE SET value = excluded.value, set_at = now()
""")


def stored_settings(connection: Connection, target: str) -> dict[SearchSetting, int]:
    """Return the settings stored for a vector table; empty if their table does not exist, or may not be read."""
    # A role that only queries may have been granted the application's own table and no more.
    if not connection.scalar(_MAY_READ):
        return {}
    return {row.name: row.value for row in connection.execute(_READ, {"target": target})}


def store_setting(connection: Connection, target: str, name: SearchSetting, value: int) -> None:
    """Store one setting, for every store on the vector table."""
    connection.execute(_STORE, {"target": target, "name": name, "value": value})
