"""The models of a table as the registry had them at one moment, and which of them a vector or a text is of."""

from __future__ import annotations

from dataclasses import dataclass

from amprenta_vectors.errors import ConfigError, DimensionMismatch, UnknownModel
from amprenta_vectors.schema.models import MODEL_SCOPE, ModelColumn, searched_of
from amprenta_vectors.schema.vector_table import VectorTable


@dataclass(frozen=True)
class TableModels:
    """The models of ``table``; ``declared`` is the one that the application says its vectors are from.

    One call of a store goes by one of these, so that a switch meanwhile cannot make it mix two models.
    """

    table: VectorTable
    columns: tuple[ModelColumn, ...] = ()
    declared: str | None = None

    @property
    def searched(self) -> ModelColumn | None:
        """The model that is searched; None if the table has no registered model."""
        return searched_of(self.columns)

    def chosen(self, name: str | None) -> ModelColumn:
        """Return the model by which a text is searched: that of a name, or the one that is searched."""
        if name is not None:
            return self._named(name, None)
        if self.searched is None:
            raise UnknownModel(
                f"no model is registered for table {self.table.qualified_name}, by which a text could be searched",
                hint=f"amprenta-vectors models add NAME --provider … --column {self.table.embedding}, or query by "
                "vector",
            )
        return self.searched

    def others(self, own: ModelColumn | None) -> list[ModelColumn]:
        """Return the models that a text is written for beside ``own``, which made the vectors given with it.

        Where each model has rows of its own, those of a model that nobody but the application can embed for are its to
        write: nothing there says whether they are of the same text.
        """
        if own is None:
            return []
        by_model = MODEL_SCOPE in self.table.scope
        return [
            each
            for each in self.columns
            if each.written and each.model.id != own.model.id and not (by_model and each.model.provider is None)
        ]

    def in_other_rows(self) -> list[ModelColumn]:
        """Return the models that are not searched, where each model has rows of its own."""
        return [each for each in self.columns if not each.searched] if MODEL_SCOPE in self.table.scope else []

    def column_of(self, name: str | None, dimension: int | None) -> ModelColumn | None:
        """Return the model that a vector of so many values is from; None if the table has no registered model.

        ``name`` is what the caller says, who may name it before any is registered. Raises `ConfigError` for a model
        that the table does not have, and where several have that dimension and nothing says which it is;
        `DimensionMismatch`.
        """
        if not self.columns:
            if None not in (name, self.declared) and name != self.declared:
                raise UnknownModel(
                    f"no model is registered for table {self.table.qualified_name}; its vectors are of "
                    f"{self.declared!r} by EMBEDDING_MODEL, and model={name!r} is asked for",
                    hint=f"amprenta-vectors models add {name}",
                )
            return None
        name = name or self.declared
        if name is not None:
            return self._named(name, dimension)
        fitting = [each for each in self.columns if dimension in (None, each.model.dimension)]
        if not fitting:
            listed = ", ".join(f"{each.model.name} ({each.model.dimension})" for each in self.columns)
            raise DimensionMismatch(
                f"a vector of {dimension} dimensions is from no model of table {self.table.qualified_name}; its "
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

    def _named(self, name: str, dimension: int | None) -> ModelColumn:
        found = next((each for each in self.columns if each.model.name == name), None)
        names = ", ".join(each.model.name for each in self.columns)
        if found is None:
            raise UnknownModel(
                f"{name!r} is no model of table {self.table.qualified_name}; its models: {names}",
                hint="model= one of those, or without EMBEDDING_MODEL; amprenta-vectors models list",
            )
        if dimension not in (None, found.model.dimension):
            raise DimensionMismatch(
                f"embedding dimension mismatch: the vector has {dimension} dimensions, {name} has "
                f"{found.model.dimension}",
                hint=f"embed by {name}, or name the model of the vector: model= one of {names}",
            )
        return found
