"""Whether a model's column is fit to be searched: every text embedded as it is now, and the index valid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from amprenta_vectors.backends.own_rows import OwnScopes
from amprenta_vectors.backends.rows.row_texts import RowTexts
from amprenta_vectors.backends.rows.texts import TextRule
from amprenta_vectors.backfill.progress import indexes, quarantine
from amprenta_vectors.backfill.reconcile.changed_texts import ChangedTexts
from amprenta_vectors.config import Settings
from amprenta_vectors.moves.ends import scope_of
from amprenta_vectors.moves.models.tables import ModelTable
from amprenta_vectors.schema.ann_indexes import ann_indexes, serving
from amprenta_vectors.schema.models import ModelColumn
from amprenta_vectors.schema.row_keys import EmptyRows
from amprenta_vectors.schema.vector_table import VectorTable

EXAMPLES = 5


@dataclass(frozen=True)
class Completeness:
    """How many rows with a text a model has no vector of, or one of an earlier text, and whether its index serves.

    Rows that a run has quarantined do not count. ``waiting`` are the indexes that are deferred.
    """

    left: int
    examples: tuple[str, ...]
    indexed: bool
    waiting: tuple[str, ...]


def completeness_of(settings: Settings, table: ModelTable, model: ModelColumn) -> Completeness:
    """Look at every row that is not embedded, and by its hash at every other whose text may have changed.

    A model that was searched before was written all the time: of its rows only those without a vector are looked at.
    """
    with table.engine.connect() as connection:
        resolved = table.resolved(connection, model)
        served = serving(resolved, ann_indexes(connection, resolved), table.scope_of_model(model)) is not None
        waiting = tuple(row.index_name for row in indexes.deferred_indexes(connection, resolved.target))
    left = 0
    examples: list[str] = []
    for namespace in _namespaces(settings, table, model, resolved):
        for key in _left(settings, table, model, resolved, scope_of(resolved, namespace)):
            left += 1
            if len(examples) < EXAMPLES:
                examples.append(key)
    return Completeness(left, tuple(examples), served, waiting)


def _namespaces(settings: Settings, table: ModelTable, model: ModelColumn, resolved: VectorTable) -> list[str]:
    ours = table.settings_for(settings, model)
    if ours.namespace or not resolved.namespace_columns:
        return [ours.namespace]
    return sorted(OwnScopes(table.engine, resolved).namespaces())


def _left(
    settings: Settings, table: ModelTable, model: ModelColumn, resolved: VectorTable, scope: Mapping[str, str]
) -> Iterator[str]:
    texts = RowTexts(table.engine, resolved, scope)
    rule = TextRule(settings.text_characters, settings.long_texts)
    with table.engine.connect() as connection:
        known = quarantine.quarantined_keys(connection, resolved.target, scope)
    slice_ = texts.slice
    changes = resolved.text_hash is not None and not model.switched
    pages = ChangedTexts(table.engine, slice_, texts) if changes else EmptyRows(table.engine, slice_)
    for keys, _ in pages.iter_keys():
        asked = [key for key in keys if key not in known]
        if asked:
            found = texts.texts(asked)
            yield from (key for key in asked if rule.fault_of(found.get(key, "")) is None)
