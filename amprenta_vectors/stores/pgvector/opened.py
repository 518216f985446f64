"""The embedding columns of a store's table as the catalogue has them, with the searches of each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.pg.indexes import STORES_LOOK_SECONDS
from amprenta_vectors.pg.poolers import check_unnamed
from amprenta_vectors.schema.ann_indexes import ann_indexes, serving
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.held import check_namespace
from amprenta_vectors.schema.models import MODEL_SCOPE, ModelColumn, table_of_column
from amprenta_vectors.schema.search_settings import stored_settings
from amprenta_vectors.schema.slice import open_slice
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.pgvector.options import StoreOptions
from amprenta_vectors.stores.pgvector.search import Searcher, to_ms
from amprenta_vectors.stores.pgvector.search_settings import SearchSettings
from amprenta_vectors.stores.pgvector.senders import Sender
from amprenta_vectors.stores.pgvector.sql import Statements
from amprenta_vectors.stores.pgvector.table_models import TableModels

LOOK_SECONDS = STORES_LOOK_SECONDS
"""Seconds after which a search looks again which index serves: it may have been built or replaced meanwhile."""

_TIME_OUT = sa.text("SELECT set_config('statement_timeout', :timeout_ms, true)")


class OpenedColumn:
    """The embedding column of ``table`` in the rows of ``scope``; the catalogue is read on first use.

    ``options`` demand a dimension of the table's own column alone.
    """

    def __init__(
        self,
        engine: sa.Engine,
        snapshots: sa.Engine,
        sender: Sender,
        table: VectorTable,
        scope: Mapping[str, str],
        options: StoreOptions,
    ) -> None:
        self._engine = engine
        self._snapshots = snapshots
        self._sender = sender
        self._table = table
        self._scope = scope
        self._options = options
        self._resolved: Statements | None = None
        self._searcher: Searcher | None = None
        self._looked_at = 0.0

    def searcher(self) -> Searcher:
        """Return the searches, by the index and the settings that were there a minute ago at most."""
        searcher, now = self._searcher, time.monotonic()
        if searcher is None or now - self._looked_at >= LOOK_SECONDS:
            # Noted first, so that not every thread looks.
            self._looked_at = now
            searcher = self._searcher = self._look(searcher)
        return searcher

    def resolve(self, connection: Connection) -> Statements:
        """Return the statements on the column."""
        if self._resolved is None:
            check_unnamed(connection)
            table = resolve_table(connection, self._table, dimension=self._options.dimension)
            lost = [self._scope[name] for name in self._table.namespace_columns if name not in table.scope]
            namespace = lost[0] if lost else self._options.namespace
            if namespace is not None:
                check_namespace(connection, table, namespace)
            self._resolved = Statements(open_slice(self._engine, table, self._scope), self._options.text_field)
        return self._resolved

    def _look(self, before: Searcher | None) -> Searcher:
        """Return a searcher by the catalogue and what is stored now; the one ``before`` if nothing changed."""
        with self._snapshots.begin() as connection:
            if self._options.query_timeout_seconds is not None:
                # Looking waits for an index that is being rebuilt.
                connection.execute(_TIME_OUT, {"timeout_ms": str(to_ms(self._options.query_timeout_seconds))})
            statements = self.resolve(connection)
            stored = stored_settings(connection, self._table.target)
            settings = SearchSettings(
                statements.table,
                serving(statements.table, ann_indexes(connection, statements.table), self._scope),
                ef_search=self._options.ef_search or stored.get("ef_search"),
                probes=self._options.probes or stored.get("probes"),
                oversampling=self._options.oversampling or stored.get("oversampling"),
            )
        if before is not None and before.settings == settings:
            return before
        return Searcher(self._engine, self._sender, statements, settings, self._options.query_timeout_seconds)


class Columns:
    """The embedding columns of a store's table, each opened at its first use; opened anew where the models change."""

    def __init__(
        self, engine: sa.Engine, sender: Sender, table: VectorTable, scope: Mapping[str, str], options: StoreOptions
    ) -> None:
        self.snapshots = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self._engine = engine
        self._sender = sender
        self._table = table
        self._scope = scope
        self._options = options
        self._models: Sequence[ModelColumn] = ()
        self._opened: dict[int | None, OpenedColumn] = {}

    def of(self, column: ModelColumn | None, models: TableModels) -> OpenedColumn:
        """Return the column of a model, one of ``models``; of None, the table's own."""
        if models.columns != self._models:
            # Statements name the columns of all models.
            self._models, self._opened = models.columns, {}
        opened = self._opened
        key = None if column is None else column.model.id
        if key not in opened:
            opened[key] = self._open(column)
        return opened[key]

    def _open(self, column: ModelColumn | None) -> OpenedColumn:
        table, scope, options = self._table, self._scope, self._options
        if column is not None:
            table = table_of_column(table, column.column)
            if table.own_column is not None:
                options = replace(options, dimension=None)
            if MODEL_SCOPE in table.scope:
                scope, options = {**scope, MODEL_SCOPE: str(column.model.id)}, replace(options, namespace=None)
        return OpenedColumn(self._engine, self.snapshots, self._sender, table, scope, options)
