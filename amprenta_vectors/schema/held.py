"""The one namespace that a table without a column for it holds: as it was declared, or as its first run recorded it."""

from __future__ import annotations

import shlex

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.config import normalize_namespace
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.shown import to_toml

_MAY_READ = sa.text("""
    SELECT coalesce(has_table_privilege(to_regclass('migration_run'), 'SELECT'), false)
       AND coalesce(has_table_privilege(to_regclass('migration_progress'), 'SELECT'), false)
""")
_RECORDED = sa.text("""
    SELECT r.id, r.namespace FROM migration_run r
    WHERE r.target = :target AND r.namespace IS NOT NULL AND (
        r.state IN ('planned', 'running', 'paused') OR EXISTS (
            SELECT 1 FROM migration_progress p WHERE p.run_id = r.id AND p.rows_written > 0
        )
    ) ORDER BY r.id LIMIT 1
""")


def check_namespace(connection: Connection, table: VectorTable, namespace: str, *, starting: bool = False) -> None:
    """Raise `ConfigError` if ``table``, from the catalogue, has no namespace column and holds another namespace.

    If nothing says which one it holds, the default one is taken for it; a run that is ``starting`` records its own.
    """
    if table.namespace_columns:
        return
    namespace = normalize_namespace(namespace)
    held, why = table.holds, "as amprenta.toml declares"
    if held is None and connection.scalar(_MAY_READ):
        recorded = connection.execute(_RECORDED, {"target": table.target}).first()
        if recorded is not None:
            held, why = recorded.namespace, f"as run {recorded.id} recorded"
    if held is None and (starting or not namespace):
        return
    if held is None:
        raise ConfigError(
            f"table {table.qualified_name} has no column for the namespace, and nothing says that it holds "
            f"{namespace!r}",
            hint=f"holds = {to_toml(namespace)} under [tables.{table.name}] in amprenta.toml, or run the backfill "
            "first; a role that cannot read the record: GRANT SELECT ON migration_run, migration_progress",
        )
    if normalize_namespace(held) != namespace:
        raise ConfigError(
            f"table {table.qualified_name} has no column for the namespace, and holds {held!r}, {why}; the namespace "
            f"asked for is {namespace!r}",
            hint=f"export PINECONE_NAMESPACE={shlex.quote(held)}, or --namespace {shlex.quote(held)}; if it holds the "
            f"other one by now: holds = {to_toml(namespace)} under [tables.{table.name}] in amprenta.toml",
        )
