"""What the registry says of a table's models, as the operations on their columns ask it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import Fact
from amprenta_vectors.errors import SchemaMismatch
from amprenta_vectors.pg.names import literal
from amprenta_vectors.pg.tables import table_of

ANY_MODEL = ""
"""What a script, which has no database, takes the name of the model to be that queries search."""


@dataclass(frozen=True)
class RegisteredFact(Fact["int | None"]):
    """The dimension that a model is registered with; None if it is not."""

    model: str

    def guard(self, value: int | None) -> tuple[str, str]:
        """Return the check that the model is registered or not."""
        exists = f"EXISTS (SELECT FROM embedding_models WHERE model_name = {literal(self.model)})"
        if value is None:
            return f"NOT {exists}", f"model {self.model} is not registered"
        return exists, f"model {self.model} is registered"

    def find(self, connection: Connection) -> int | None:
        """Return the dimension. Raises `SchemaMismatch` without the registry."""
        if table_of(connection, "embedding_models") is None:
            raise SchemaMismatch("there is no table embedding_models", hint="alembic upgrade head")
        found: int | None = connection.scalar(
            sa.text("SELECT dimension FROM embedding_models WHERE model_name = :model"), {"model": self.model}
        )
        return found


@dataclass(frozen=True)
class ModelColumnsFact(Fact["Mapping[str, str]"]):
    """The columns of a table's models, by the name of the model."""

    target: str

    def find(self, connection: Connection) -> Mapping[str, str]:
        """Return the columns; none without the registry."""
        if table_of(connection, "model_column") is None:
            return {}
        rows = connection.execute(
            sa.text("""
                SELECT model_name, column_name FROM model_column JOIN embedding_models ON id = model_id
                WHERE target = :target
            """),
            {"target": self.target},
        )
        return {row.model_name: row.column_name for row in rows}


@dataclass(frozen=True)
class SearchedFact(Fact[bool]):
    """Whether queries of a table search ``model``, or, without one, any model that is registered."""

    target: str
    model: str | None = None

    def find(self, connection: Connection) -> bool:
        """Return whether they do; False without the registry."""
        if table_of(connection, "model_column") is None:
            return False
        return bool(connection.scalar(sa.text("SELECT " + self._exists.replace(":", r"\:"))))

    def guard(self, value: bool) -> tuple[str, str]:
        """Return the check that they do or not."""
        if self.model is None:
            expected = (
                f"queries of {self.target} search a model" if value else f"no model of {self.target} is registered"
            )
        else:
            expected = f"queries of {self.target} {'search' if value else 'do not search'} {self.model}"
        return (self._exists if value else f"NOT {self._exists}"), expected

    @property
    def _exists(self) -> str:
        of_model = "" if self.model is None else f" AND model_name = {literal(self.model)}"
        return (
            "EXISTS (SELECT FROM model_column JOIN embedding_models ON id = model_id "
            f"WHERE target = {literal(self.target)} AND searched{of_model})"
        )
