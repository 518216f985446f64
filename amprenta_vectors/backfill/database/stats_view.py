"""The materialised view that counts a table's embeddings, brought up to date when a run has ended."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.pg.errors import to_error
from amprenta_vectors.schema.vector_table import VectorTable

_IS_FILLED = sa.text("SELECT relispopulated FROM pg_class WHERE oid = to_regclass(:view) AND relkind = 'm'")


def refresh_stats(engine: Engine, table: VectorTable) -> str | None:
    """Refresh the view of ``table``, if it has one, while it stays readable.

    Returns why it could not be refreshed, which is no reason for a run to fail: the role may not own the view.
    """
    if table.stats_view is None:
        return None
    quote = engine.dialect.identifier_preparer.quote
    view = ".".join(quote(part) for part in (table.schema, table.stats_view) if part)
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            filled = connection.scalar(_IS_FILLED, {"view": view})
            if filled is not None:
                how = "CONCURRENTLY " if filled else ""
                connection.exec_driver_sql(f"REFRESH MATERIALIZED VIEW {how}{view}")
    except DBAPIError as error:
        return to_error(error, f"refreshing {view}").message
    return None
