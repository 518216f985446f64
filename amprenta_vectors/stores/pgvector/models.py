"""The models of a store's table, looked up in the registry, and the embedders that this process has of them.

The registry is looked at again after a second of use, so that a switch is in force in every process without a restart.
While a table has several models, a store notes in ``model_process`` which it has loaded, for `models switch` to see;
not a store that is used on its callers' connections alone, whose transactions that would be part of.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from amprenta_vectors.embedders.registered import ModelEmbedder
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.pg.errors import for_a_log
from amprenta_vectors.schema.catalogue import located
from amprenta_vectors.schema.models import (
    ModelColumn,
    RegisteredModel,
    has_registry,
    may_read_models,
    models_of,
)
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.pgvector.joining import Joinable, joining
from amprenta_vectors.stores.pgvector.noting import Noting
from amprenta_vectors.stores.pgvector.other_models import Embedded, embed_texts, texts_of
from amprenta_vectors.stores.pgvector.table_models import TableModels
from amprenta_vectors.stores.protocol import Record

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Seconds of use after which the registry is looked at again; what is used is never older than twice that."""
NO_REGISTRY_SECONDS = 60.0
"""The same where there is none: an upgrade makes it."""

OpenModel = Callable[[RegisteredModel], ModelEmbedder]


@dataclass(frozen=True)
class _Look:
    """What a look found that began at that moment; ``target`` is None where there is no registry."""

    models: TableModels
    target: str | None
    began: float

    @property
    def seconds(self) -> float:
        return LOOK_SECONDS if self.target is not None else NO_REGISTRY_SECONDS


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
        self._table = table
        self._open_model = open_model
        self._declared = declared
        self._noting = Noting(engine, errors)
        self._last = _Look(TableModels(table, (), declared), None, -math.inf)
        self._asked_at = -math.inf
        self._embedders: dict[str, tuple[RegisteredModel, ModelEmbedder]] = {}
        self._failed: dict[str, str] = {}
        self._loading = threading.Lock()
        self._warned: set[str] = set()
        self.missed = 0
        """Texts that were written here and that another model did not embed."""

    def now(self, connection: Joinable | None = None) -> TableModels:
        """Return the models as the registry has them now, or had them two seconds ago at most.

        With ``connection`` it is looked at there: the caller may have the only one of the pool.
        """
        last, now = self._last, time.monotonic()
        # While one looks, the others go by what was found last, unless that is too old, as after a pause.
        fresh = now - self._asked_at < last.seconds and now - last.began < 2 * last.seconds
        if fresh or self._table.own_column is not None:
            return last.models
        self._asked_at = now
        try:
            return self._look(now) if connection is None else self._look_on(connection, now)
        except BaseException:
            self.look_again()
            raise

    def look_again(self) -> None:
        """Look at the registry at the next use."""
        self._asked_at = -math.inf

    def embed_others(
        self,
        records: Sequence[Record],
        others: Sequence[ModelColumn],
        aside: Callable[[Callable[[], dict[str, Any]]], dict[str, Any]],
    ) -> list[Embedded]:
        """Return the texts of records embedded by other models than the one that made their vectors.

        What is ``aside`` is not waited for by other tasks. A model that fails is counted, and its values are None, as
        are those of one that nobody but the application can embed for.
        """
        texts = texts_of(records, self._table) if others else {}
        made = []
        for other in others:
            if other.model.provider is None:
                made.append(Embedded(other, dict.fromkeys(texts), texts))
                continue
            embed = partial(self._embed, other.model)
            vectors = aside(partial(embed_texts, other.model.name, embed, texts))
            self.missed += sum(vector is None for vector in vectors.values())
            made.append(Embedded(other, vectors, texts))
        return made

    def _embed(self, model: RegisteredModel, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.embedder(model).embed(texts)

    def embedder(self, model: RegisteredModel) -> ModelEmbedder:
        """Return the embedder of a model, opened at the first use, and again where it is registered anew.

        Raises what opening it raises.
        """
        if self._has_loaded(model):
            return self._embedders[model.name][1]
        if self._open_model is None:
            raise ConfigError(
                f"this store has no settings to open an embedder of {model.name} by",
                hint="get_vector_store(), or query by vector with model=",
            )
        try:
            opened = self._open_model(model)
        except Exception as error:
            self._failed[model.name] = for_a_log(error)
            raise
        self._embedders[model.name] = (model, opened)
        self._failed.pop(model.name, None)
        return opened

    def can_embed(self, model: RegisteredModel) -> bool:
        """Return whether this process can embed a text for a model, as far as is known without trying."""
        return model.provider is not None and self._open_model is not None

    def of_texts(self, name: str | None) -> RegisteredModel | None:
        """Return the model that texts are to be embedded by here; None for whatever the application embeds by.

        ``name`` is the model that the application embeds by, if it says so. Where that is what is searched, or where
        nobody but the application can embed for what is searched, it embeds itself.
        """
        searched = self.now().searched
        if searched is None or searched.model.name == (name or self._declared) or not self.can_embed(searched.model):
            return None
        return searched.model

    def close(self) -> None:
        """Say that this process does not use the table any more."""
        self._noting.leave()

    def _has_loaded(self, model: RegisteredModel) -> bool:
        return model.name in self._embedders and self._embedders[model.name][0] == model

    def _look(self, began: float) -> TableModels:
        with self._engine.connect() as connection:
            found = self._keep(self._read(connection, began))
        written = [each.model for each in found.models.columns if each.written]
        if found.target is not None and len(written) > 1 and self._open_model is not None:
            self._note()
            self._load(written)
        return found.models

    def _look_on(self, connection: Joinable, began: float) -> TableModels:
        with joining(connection) as joined:
            found = self._read(joined, began)
            if joined.get_isolation_level() == "READ COMMITTED":
                self._keep(found)
            # Any other sees the registry as it was when the transaction began.
            return found.models

    def _keep(self, found: _Look) -> _Look:
        if found.began >= self._last.began:
            self._last = found
        return found

    def _read(self, connection: Connection, began: float) -> _Look:
        if not may_read_models(connection):
            if has_registry(connection):
                _warn_unreadable(self._table.qualified_name)
            return _Look(TableModels(self._table, (), self._declared), None, began)
        table = located(connection, self._table)
        return _Look(TableModels(self._table, models_of(connection, table), self._declared), table.own_target, began)

    def _load(self, written: Sequence[RegisteredModel]) -> None:
        """Load what is written and not loaded, beside whatever this process does; what fails is tried again later."""
        left = [model for model in written if self.can_embed(model) and not self._has_loaded(model)]
        if not left or not self._loading.acquire(blocking=False):
            return

        def load() -> None:
            try:
                for model in left:
                    try:
                        self.embedder(model)
                    except Exception as error:
                        if model.name not in self._warned:
                            log.warning("model %s cannot be loaded here: %s", model.name, for_a_log(error))
                        self._warned.add(model.name)
            finally:
                self._loading.release()
                self.look_again()
                # An asynchronous engine is its loop's alone: there the next use notes it.
                if not self._engine.dialect.is_async:
                    self._note()

        threading.Thread(target=load, name="load models", daemon=True).start()

    def _note(self) -> None:
        last = self._last
        if last.target is not None:
            searched = last.models.searched
            self._noting.note(
                last.target,
                loaded=list(self._embedders),
                failed=dict(self._failed),
                searched=None if searched is None else searched.model.name,
                missed=self.missed,
            )


@cache
def _warn_unreadable(table: str) -> None:
    """Warn once in a process: a store goes on as if the table had the one model of its own column."""
    log.warning(
        "this role may not read which models %s has, so that its own column alone is searched and written: "
        "GRANT SELECT ON embedding_models, model_column (docs/grants.md)",
        table,
    )
