"""What the registry says of a table's models, as the operations on their columns ask it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from amprenta_vectors.ddl.catalogue import Fact
from amprenta_vectors.ddl.steps import Step, execute
from amprenta_vectors.errors import SchemaMismatch
from amprenta_vectors.pg.names import compose, literal, qualified, quoted
from amprenta_vectors.pg.tables import table_of

SCOPE = "model_id"
"""The column of a table that has a row for each key and model; only there may models share a column."""
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


@dataclass(frozen=True)
class AddedColumnsFact(Fact["Mapping[str, int]"]):
    """The columns that other models have beside an embedding column, ``target``, and their dimensions."""

    target: str
    table: str
    column: str
    schema: str | None = None

    def find(self, connection: Connection) -> Mapping[str, int]:
        """Return the columns; none without the registry."""
        if table_of(connection, "model_column") is None:
            return {}
        rows = connection.execute(
            sa.text("""
                SELECT column_name, min(dimension) AS dimension FROM model_column JOIN embedding_models ON id = model_id
                WHERE target = :target AND column_name <> :column GROUP BY column_name ORDER BY column_name
            """),
            {"target": self.target, "column": self.column},
        )
        return {row.column_name: row.dimension for row in rows}

    def guard(self, value: Mapping[str, int]) -> tuple[str, str] | None:
        """Return the check that there is none, told by the table alone: there may be no registry."""
        if value:
            return None
        name = qualified(self.table, self.schema)
        condition = f"""NOT EXISTS (
        SELECT FROM pg_attribute a WHERE a.attrelid = to_regclass({literal(quoted(self.schema, self.table))})
        AND NOT a.attisdropped AND starts_with(a.attname, {literal(TEXT_HASH)})
        AND col_description(a.attrelid, a.attnum) LIKE '%amprenta_vectors%')"""
        return condition, f"{name} has no column of another model"


HASH, TEXT_HASH = "hash_", "text_hash_"
"""What the columns begin with in which the engine keeps what it wrote into the column of another model."""


def hashes_of(column: str) -> tuple[str, str]:
    """Return the columns that come and go with the column of another model."""
    return f"{HASH}{column}", f"{TEXT_HASH}{column}"


def forget_models(target: str, added: AddedColumnsFact) -> Step:
    """Return the step that forgets which models a table has, once its columns are purged."""
    statement = compose("DELETE FROM model_column WHERE target = {target}", target=literal(target))
    return Step(
        f"forget the models of {target}",
        lambda operations: execute(operations, statement),
        {ModelColumnsFact(target): {}, SearchedFact(target): False, added: {}},
        object=qualified(added.table, added.schema),
    )
