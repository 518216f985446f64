"""The table's own rows as a source: the text of their columns, embedded when they are fetched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backends.own_rows import OwnScopes
from amprenta_vectors.backends.protocol import Meter, SourceDescription, TextSurvey, TextVectors
from amprenta_vectors.backends.rows.paying import PayingEmbedder
from amprenta_vectors.backends.rows.row_texts import RowTexts, text_columns_of
from amprenta_vectors.backends.rows.texts import EVERY_TEXT_WHOLE, TextRule, join_pieces
from amprenta_vectors.batch import VectorBatch, Vectors
from amprenta_vectors.config import Settings
from amprenta_vectors.embedders.factory import open_embedder
from amprenta_vectors.embedders.protocol import Embedder, EmbeddingService
from amprenta_vectors.embedders.registered import open_registered
from amprenta_vectors.embedders.tokens import ERROR, estimate_tokens
from amprenta_vectors.errors import ConfigError, DimensionMismatch, RowError, SourceError
from amprenta_vectors.pg.errors import to_error
from amprenta_vectors.schema.kinds import SourceKind, Unit
from amprenta_vectors.schema.models import MODEL_SCOPE, RegisteredModel, models_of
from amprenta_vectors.schema.vector_table import VectorTable

SAMPLE = 1000
"""The texts whose tokens are estimated before a run: those first by a digest of theirs, which is as good as chance."""


class RowsSource:
    """The rows of one scope. The source keys are the rows' own keys, as `OwnKeys` spells them.

    The texts of a row's columns are joined in their order, one a line; blank ones are left out. ``rule`` says what of a
    text is embedded. Safe to share between threads if the embedder is.
    """

    def __init__(
        self,
        engine: Engine,
        table: VectorTable,
        scope: Mapping[str, str],
        embedder: Embedder,
        count: int,
        rule: TextRule = EVERY_TEXT_WHOLE,
    ) -> None:
        self._engine = engine
        self._rule = rule
        self._embedder = embedder
        self._texts = RowTexts(engine, table, scope)
        self._columns = self._texts.columns
        of_scope = "/".join(scope.values())
        self.description = SourceDescription(
            kind="rows",
            identity=f"{table.qualified_name}({', '.join(self._columns)})/{of_scope}",
            dimension=embedder.model.dimension,
            distance=None,
            model=embedder.model.name,
            count=count,
            computed=True,
        )

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        """Yield the keys of all rows, in the order of the table's own unique index."""
        return self._texts.iter_keys(token)

    def fetch(self, keys: Sequence[str]) -> VectorBatch:
        """Return the vectors of the rows' texts as they are now; a row without a text to embed is quarantined.

        A text that several rows of ``keys`` have is embedded once. Raises `TransientError` if database or embedder is
        away, `SourceError` for vectors of another shape.
        """
        texts = self.texts(keys)
        faults = {key: fault for key, text in texts.items() if (fault := self._rule.fault_of(text)) is not None}
        named = {key: text for key, text in texts.items() if key not in faults}
        pieces = [self._rule.pieces(text) for text in named.values()]
        different = list(dict.fromkeys(piece for parts in pieces for piece in parts))
        vectors = dict(zip(different, self._embed(different), strict=True))
        listed = ", ".join(self._columns)
        return VectorBatch(
            source_keys=list(named),
            vectors=join_pieces(pieces, vectors, self._embedder.model.dimension),
            texts=list(named.values()),
            quarantined=tuple(
                RowError(key, reason, f"nothing to embed in {listed}: {detail}")
                for key, (reason, detail) in faults.items()
            ),
        )

    def texts(self, keys: Sequence[str]) -> dict[str, str]:
        """Return the text to embed of each row that exists, ``""`` if it has none, by source key."""
        return self._texts.texts(keys)

    def _embed(self, texts: Sequence[str]) -> Sequence[Vectors] | Vectors:
        expected = (len(texts), self._embedder.model.dimension)
        if not texts:
            return []
        vectors = np.ascontiguousarray(self._embedder.embed(texts), dtype=np.float32)
        if vectors.shape != expected:
            raise SourceError(f"{self._embedder.model.name} gave vectors of shape {vectors.shape}; expected {expected}")
        return vectors


class PaidRowsSource(RowsSource):
    """Rows that a service embeds, which charges by the tokens of their texts."""

    unit: Unit = "tokens"

    def __init__(
        self,
        engine: Engine,
        table: VectorTable,
        scope: Mapping[str, str],
        embedder: EmbeddingService,
        count: int,
        rule: TextRule = EVERY_TEXT_WHOLE,
    ) -> None:
        super().__init__(engine, table, scope, embedder, count, rule)
        self._service = embedder
        self._paying = PayingEmbedder(embedder)

    @property
    def meter(self) -> Meter:
        """The meter that is asked before each request."""
        return self._paying.meter

    @meter.setter
    def meter(self, meter: Meter) -> None:
        self._paying.meter = meter

    @property
    def shared(self) -> TextVectors:
        """The vectors that were paid for, which are asked before the service is."""
        return self._paying.shared

    @shared.setter
    def shared(self, shared: TextVectors) -> None:
        self._paying.shared = shared

    def survey(self, *, only_empty: bool) -> TextSurvey:
        """Measure the texts of all rows, or of those without an embedding, by one reading of them."""
        texts = self._texts.selected(only_empty=only_empty).subquery()
        digest = sa.func.md5(texts.c.text)
        length = sa.func.max(sa.func.octet_length(texts.c.text)).label("length")
        each = sa.select(sa.func.count().label("rows"), length).group_by(digest).subquery()
        measured = sa.select(sa.func.coalesce(sa.func.sum(each.c.rows), 0), sa.func.count(), sa.func.sum(each.c.length))
        some = sa.select(texts.c.text).order_by(digest).limit(SAMPLE)
        try:
            with self._engine.connect() as connection:
                count, different, length_in_all = connection.execute(measured).one()
                sample = list(connection.execute(some).scalars())
        except DBAPIError as error:
            raise to_error(error, "measuring the texts of rows") from error
        pieces = [piece for text in sample if self._rule.fault_of(text) is None for piece in self._rule.pieces(text)]
        sample_bytes = sum(len(text.encode()) for text in sample)
        tokens = sum(map(estimate_tokens, pieces))
        return TextSurvey(
            int(count), different, int(length_in_all or 0), tokens / sample_bytes if sample_bytes else 0.0, ERROR
        )

    def requests_for(self, texts: int, bytes_: int) -> int:
        """Return how many requests of the service so many texts take at least."""
        limits = self._service.limits
        by_bytes = 0 if limits.bytes_ is None else -(-bytes_ // limits.bytes_)
        return max(-(-texts // limits.texts), by_bytes)

    def _embed(self, texts: Sequence[str]) -> Sequence[Vectors] | Vectors:
        return self._paying.embed(texts)


class RowsOrigin:
    """The rows of one table, scope by scope. Opened by :func:`open_rows_origin`."""

    kind: SourceKind = "rows"
    distance = None
    lists = True

    def __init__(
        self, engine: Engine, table: VectorTable, embedder: Embedder, rule: TextRule = EVERY_TEXT_WHOLE
    ) -> None:
        self._engine = engine
        self._rule = rule
        self._scopes = OwnScopes(engine, table)
        self._embedder = embedder
        self.name = self._scopes.name
        self.dimension: int | None = embedder.model.dimension
        self.model: str | None = embedder.model.name

    def namespaces(self) -> Mapping[str, int]:
        """Return the scopes that have rows, each with its number of rows."""
        return self._scopes.namespaces()

    def open(self, table: VectorTable, namespace: str, *, with_metadata: bool) -> RowsSource:
        """Open the rows of one scope of ``table``, which is the origin's own; they keep the metadata that they have.

        Raises `SourceNotFound` for a scope without a row.
        """
        count = self._scopes.count(namespace)
        if isinstance(self._embedder, EmbeddingService):
            scope = table.scope_for(namespace)
            return PaidRowsSource(self._engine, table, scope, self._embedder, count, self._rule)
        return RowsSource(self._engine, table, table.scope_for(namespace), self._embedder, count, self._rule)

    def close(self) -> None:
        """Do nothing: no resource is held."""


def open_rows_origin(settings: Settings, table: VectorTable, engine: Engine) -> RowsOrigin:
    """Open the rows of ``table``, which is from the catalogue, to be embedded by ``AMPRENTA_EMBEDDER``.

    A column that has a registered model is embedded by that, as it is registered; the table's own, unless
    ``AMPRENTA_EMBEDDER`` names another.

    Raises `ConfigError` without an embedder, without a column to embed, with a limit on the cost and no price, and if
    ``EMBEDDING_MODEL`` is another model than the embedder's; `DimensionMismatch` if the embedder's vectors do not fit
    the column.
    """
    text_columns_of(table)
    settings.source_limits.most("tokens")
    registered = _model_of(settings, table, engine)
    embedder = open_embedder(settings) if registered is None else open_registered(registered, settings)
    model = embedder.model
    if settings.embedding_model is not None and not model.is_called(settings.embedding_model):
        raise ConfigError(
            f"EMBEDDING_MODEL is {settings.embedding_model!r}; AMPRENTA_EMBEDDER={settings.embedder} embeds by "
            f"{model.name!r}",
            hint="unset EMBEDDING_MODEL, or set AMPRENTA_EMBEDDER to that model's own embedder",
        )
    if model.dimension != table.dimension:
        raise DimensionMismatch(
            f"AMPRENTA_EMBEDDER={settings.embedder} ({model.name}) makes vectors of {model.dimension} dimensions, "
            f"{table.target} has {table.dimension}",
            hint=f"set AMPRENTA_EMBEDDER to the model of the column, or add a column of {model.dimension} dimensions",
        )
    return RowsOrigin(engine, table, embedder, TextRule(settings.text_characters, settings.long_texts))


def _model_of(settings: Settings, table: VectorTable, engine: Engine) -> RegisteredModel | None:
    """Return the registered model of a column; None of a table's own, where the settings or nothing name its embedder.

    Raises `ConfigError` for a column that was added, without a model.
    """
    added = table.own_column is not None
    if not added and settings.embedder is not None:
        return None
    with engine.connect() as connection:
        models = [each.model for each in models_of(connection, table) if each.column == table.embedding]
    if MODEL_SCOPE in table.scope:
        models = [model for model in models if str(model.id) == settings.namespace]
    if len(models) != 1:
        if not added:
            return None
        raise ConfigError(
            f"no registered model has column {table.target}",
            hint=f"amprenta-vectors models add NAME --column {table.embedding}",
        )
    return models[0]
