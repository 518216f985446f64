"""The queries that two models of a table are compared on."""

from __future__ import annotations

from pathlib import Path

from amprenta_vectors.backends.rows.row_texts import text_columns_of
from amprenta_vectors.compare.judged import JudgedQuery, read_judged
from amprenta_vectors.compare.models import sampled_queries
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.moves.ends import scope_of
from amprenta_vectors.moves.models.tables import ModelTable
from amprenta_vectors.schema.models import ModelColumn
from amprenta_vectors.schema.vector_table import VectorTable


def judged_or_sampled(
    settings: Settings,
    table: ModelTable,
    of_model: tuple[ModelColumn, VectorTable],
    judged: Path | None,
    most: int | None,
    seed: int,
) -> list[JudgedQuery]:
    """Return the queries of a file, or the beginnings of stored texts that a model has embedded.

    Raises `ConfigError` where neither has any.
    """
    if judged is not None:
        return read_judged(judged, most)
    model, resolved = of_model
    namespace = table.settings_for(settings, model).namespace or settings.namespace
    scope = scope_of(resolved, namespace)
    found = sampled_queries(table.engine, resolved, scope, text_columns_of(resolved), most or 1, seed)
    if not found:
        raise ConfigError(
            f"model {model.model.name} has embedded no text to make queries of",
            hint=f"amprenta-vectors models migrate --to {model.model.name} --subset 1000; or --judged FILE",
        )
    return found
