"""The models of a store's table: which is searched, which are written, and the embedders that this process has of them.

The registry is looked at again after a second of use, so that a switch is in force in every process without a restart.
While a table has several models, a store notes in ``model_process`` which it has loaded, for `models switch` to see.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.embedders.registered import ModelEmbedder
from amprenta_vectors.errors import ConfigError, DimensionMismatch
from amprenta_vectors.pg.errors import for_a_log
from amprenta_vectors.schema.catalogue import located
from amprenta_vectors.schema.models import (
    MODEL_SCOPE,
    ModelColumn,
    RegisteredModel,
    may_read_models,
    models_of,
    searched_of,
)
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.pgvector.joining import Joinable, joining
from amprenta_vectors.stores.pgvector.other_models import Embedded, embed_texts, texts_of
from amprenta_vectors.stores.protocol import Record

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Seconds of use after which the registry is looked at again."""
NO_REGISTRY_SECONDS = 60.0
"""The same where there is none: an upgrade makes it."""

OpenModel = Callable[[RegisteredModel], ModelEmbedder]

_MAY_NOTE = sa.text("""
    SELECT coalesce(bool_and(has_table_privilege(to_regclass('model_process'), privilege)), false)
           AND NOT pg_is_in_recovery()
    FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS privilege
""")
_NOTE = sa.text("""
    INSERT INTO model_process (process, target, host, pid, loaded, failed, searched, missed)
    VALUES (:process, :target, :host, :pid, :loaded, :failed, :searched, :missed)
    ON CONFLICT (process, target) DO UPDATE
    SET loaded = excluded.loaded, failed = excluded.failed, searched = excluded.searched, missed = excluded.missed,
        seen_at = clock_timestamp()
""").bindparams(sa.bindparam("loaded", type_=ARRAY(sa.Text)), sa.bindparam("failed", type_=JSONB))
_LEAVE = sa.text("DELETE FROM model_process WHERE process = :process")


class Models:
    """What the registry says of a table, and the embedders of its models; ``errors`` are the driver's own.

    ``open_model`` opens the embedder of a model; None if this store has no settings to open one by. ``declared`` is the
    model that the application says its vectors are from. Safe to share between threads and tasks.
    """

    def __init__(
        self,
        engine: sa.Engine,
        errors: tuple[type[Exception], ...],
        table: VectorTable,
        open_model: OpenModel | None,
        declared: str | None = None,
    ) -> None:
        self._engine = engine
        self._errors: tuple[type[Exception], ...] = (DBAPIError, *errors)
        self._table = table
        self._open_model = open_model
        self._declared = declared
        self._columns: tuple[ModelColumn, ...] = ()
        self._look_at = 0.0
        self._embedders: dict[str, ModelEmbedder] = {}
        self._failed: dict[str, str] = {}
        self._loading = threading.Lock()
        self._begun: set[str] = set()
        self._process = uuid.uuid4()
        self._may_note: bool | None = None
        self._noted = False
        self.missed = 0
        """Texts that were written here and that another model did not embed."""

    def now(self, connection: Joinable | None = None) -> tuple[ModelColumn, ...]:
        """Return the models as the registry has them now, or had them a second ago.

        With ``connection`` it is looked at there: the caller may have the only one of the pool.
        """
        now = time.monotonic()
        if now >= self._look_at and self._table.own_column is None:
            # Noted first, so that not everybody looks.
            self._look_at = now + LOOK_SECONDS
            if connection is None:
                self._look()
            else:
                with joining(connection) as joined:
                    self._read(joined)
        return self._columns

    def look_again(self) -> None:
        """Look at the registry at the next use."""
        self._look_at = 0.0

    def searched(self) -> ModelColumn | None:
        """Return the model that is searched; None if the table has no registered model."""
        return searched_of(self.now())

    def chosen(self, name: str | None) -> ModelColumn:
        """Return the model by which a text is searched: that of a name, or the one that is searched."""
        columns = self.now()
        if name is not None:
            return self._named(columns, name, None)
        searched = searched_of(columns)
        if searched is None:
            raise ConfigError(
                f"no model is registered for table {self._table.qualified_name}, by which a text could be searched",
                hint=f"amprenta-vectors models add NAME --provider … --column {self._table.embedding}, or query by "
                "vector",
            )
        return searched

    def in_other_rows(self, table: VectorTable) -> list[ModelColumn]:
        """Return the models that are not searched, where each model has rows of its own."""
        return [each for each in self.now() if not each.searched] if MODEL_SCOPE in table.scope else []

    def embed_others(
        self,
        records: Sequence[Record],
        own: ModelColumn | None,
        table: VectorTable,
        aside: Callable[[Callable[[], dict[str, Any]]], dict[str, Any]],
    ) -> list[Embedded]:
        """Return the texts of records embedded by every model that is written but ``own``, which made their vectors.

        What is ``aside`` is not waited for by other tasks. A model that fails is counted, and its values are None.
        """
        others = [each for each in self.now() if each.written and own is not None and each.model.id != own.model.id]
        texts = texts_of(records, table) if others else {}
        made = []
        for other in others:
            embed = partial(self._embed, other.model)
            vectors = aside(partial(embed_texts, other.model.name, embed, texts))
            self.missed += sum(vector is None for vector in vectors.values())
            made.append(Embedded(other, vectors, texts))
        return made

    def _embed(self, model: RegisteredModel, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.embedder(model).embed(texts)

    def column_of(self, name: str | None, dimension: int | None) -> ModelColumn | None:
        """Return the model that a vector of so many values is from; None if the table has no registered model.

        ``name`` is what the caller says. Raises `ConfigError` for a model that the table does not have, and where
        several have that dimension and nothing says which it is; `DimensionMismatch`.
        """
        columns = self.now()
        if not columns:
            if name is not None and name != self._declared:
                raise ConfigError(
                    f"no model is registered for table {self._table.qualified_name}, and model={name!r} is asked for",
                    hint=f"amprenta-vectors models add {name} --column {self._table.embedding}",
                )
            return None
        name = name or self._declared
        if name is not None:
            return self._named(columns, name, dimension)
        fitting = [each for each in columns if dimension in (None, each.model.dimension)]
        if not fitting:
            listed = ", ".join(f"{each.model.name} ({each.model.dimension})" for each in columns)
            raise DimensionMismatch(
                f"a vector of {dimension} dimensions is from no model of table {self._table.qualified_name}; its "
                f"models: {listed}",
                hint="embed by store.model",
            )
        searched = searched_of(fitting)
        if len(fitting) > 1 and (searched is None or searched.switched):
            names = [each.model.name for each in fitting]
            raise ConfigError(
                f"{' and '.join(names)} both have {dimension} dimensions, and queries were switched between models: "
                "the vector may be from either",
                hint=f"say model={names[0]!r}, or follow store.model; or export EMBEDDING_MODEL",
            )
        return searched or fitting[0]

    def embedder(self, model: RegisteredModel) -> ModelEmbedder:
        """Return the embedder of a model, opened at the first use. Raises what opening it raises."""
        found = self._embedders.get(model.name)
        if found is None:
            if self._open_model is None:
                raise ConfigError(
                    f"this store has no settings to open an embedder of {model.name} by",
                    hint="get_vector_store(), or query by vector with model=",
                )
            try:
                found = self._embedders[model.name] = self._open_model(model)
            except Exception as error:
                self._failed[model.name] = for_a_log(error)
                raise
            self._failed.pop(model.name, None)
        return found

    def can_embed(self, model: RegisteredModel) -> bool:
        """Return whether this process can embed a text for a model, as far as is known without trying."""
        return model.provider is not None and self._open_model is not None

    def of_texts(self, name: str | None) -> RegisteredModel | None:
        """Return the model that texts are to be embedded by here; None for whatever the application embeds by.

        ``name`` is the model that the application embeds by, if it says so. Where that is what is searched, or where
        nobody but the application can embed for what is searched, it embeds itself.
        """
        searched = self.searched()
        if searched is None or searched.model.name == (name or self._declared) or not self.can_embed(searched.model):
            return None
        return searched.model

    def close(self) -> None:
        """Say that this process does not use the table any more."""
        if self._noted:
            try:
                with self._engine.begin() as connection:
                    connection.execute(_LEAVE, {"process": self._process})
            except self._errors as error:
                log.warning("that this process is gone is not noted: %s", for_a_log(error))
            self._noted = False

    def _named(self, columns: Sequence[ModelColumn], name: str, dimension: int | None) -> ModelColumn:
        found = next((each for each in columns if each.model.name == name), None)
        names = ", ".join(each.model.name for each in columns)
        if found is None:
            raise ConfigError(
                f"{name!r} is no model of table {self._table.qualified_name}; its models: {names}",
                hint="model= one of those, or without EMBEDDING_MODEL; amprenta-vectors models list",
            )
        if dimension not in (None, found.model.dimension):
            raise DimensionMismatch(
                f"embedding dimension mismatch: the vector has {dimension} dimensions, {name} has "
                f"{found.model.dimension}",
                hint=f"embed by {name}, or name the model of the vector: model= one of {names}",
            )
        return found

    def _look(self) -> None:
        with self._engine.connect() as connection:
            target = self._read(connection)
        written = [each.model for each in self._columns if each.written]
        if target is not None and len(written) > 1 and self._open_model is not None:
            self._note(target)
            self._load(written, target)

    def _read(self, connection: Connection) -> str | None:
        """Read the registry; return how it knows the table, None where there is no registry."""
        if not may_read_models(connection):
            self._columns, self._look_at = (), time.monotonic() + NO_REGISTRY_SECONDS
            return None
        table = located(connection, self._table)
        self._columns = models_of(connection, table)
        return table.own_target

    def _load(self, written: Sequence[RegisteredModel], target: str) -> None:
        """Load what is written and not loaded, beside whatever this process does; what fails is tried again later."""
        left = [model for model in written if model.name not in self._embedders and self.can_embed(model)]
        if not left or not self._loading.acquire(blocking=False):
            return

        def load() -> None:
            try:
                for model in left:
                    try:
                        self.embedder(model)
                    except Exception as error:
                        if model.name not in self._begun:
                            log.warning("model %s cannot be loaded here: %s", model.name, for_a_log(error))
                        self._begun.add(model.name)
            finally:
                self._loading.release()
                self.look_again()
                # An asynchronous engine is its loop's alone: there the next use notes it.
                if not self._engine.dialect.is_async:
                    self._note(target)

        threading.Thread(target=load, name="load models", daemon=True).start()

    def _note(self, target: str) -> None:
        searched = searched_of(self._columns)
        values = {
            "process": self._process,
            "target": target,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "loaded": sorted(self._embedders),
            "failed": dict(self._failed),
            "searched": None if searched is None else searched.model.name,
            "missed": self.missed,
        }
        try:
            with self._engine.begin() as connection:
                if self._may_note is None:
                    self._may_note = bool(connection.scalar(_MAY_NOTE))
                if self._may_note:
                    connection.execute(_NOTE, values)
                    self._noted = True
        except self._errors as error:
            log.warning("which models are loaded here is not noted: %s", for_a_log(error))
