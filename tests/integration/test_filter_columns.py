"""A filter on columns of the table means what it means over metadata, whatever the column's type."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_pairs import Pair

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.errors import FilterUnsupported
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.filters.columns import FilterColumn
from amprenta_vectors.stores.filters.language import parse_filter
from amprenta_vectors.stores.filters.sql import to_sql
from amprenta_vectors.stores.pgvector.options import StoreOptions

TYPES = {
    "a_text": "text",
    "a_varchar": "character varying(20)",
    "a_small": "smallint",
    "an_int": "integer",
    "a_big": "bigint",
    "a_numeric": "numeric(30,6)",
    "a_double": "double precision",
    "a_bool": "boolean",
}
TEXTS = ["Acer", "acer", "", "5", "true", "it's 100%", "NaN"]
NUMBERS = [0, 1, -1, 5, 5.0, 5.5, 9.99, 0.1 + 0.2, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 1e300, -1e300]
COLUMNS = {name: FilterColumn(sa.column(name), type_name) for name, type_name in TYPES.items()}
TABLE = sa.table("products", sa.column("id"), *(sa.column(name) for name in TYPES))

texts = st.sampled_from([*TEXTS, "nul\0", "\ud800"])
numbers = st.sampled_from(NUMBERS) | st.integers(-10, 10) | st.floats(-100, 100)
operands = texts | numbers | st.booleans()
comparisons = operands | st.fixed_dictionaries(
    {},
    optional={
        "$eq": operands,
        "$ne": operands,
        "$gt": numbers,
        "$gte": numbers,
        "$lt": numbers,
        "$lte": numbers,
        "$in": st.lists(texts, max_size=4) | st.lists(numbers, max_size=4),
        "$nin": st.lists(texts, max_size=4) | st.lists(numbers, max_size=4),
        "$exists": st.booleans(),
    },
)
fields = st.dictionaries(st.sampled_from(list(TYPES)), comparisons, min_size=1, max_size=3)
filters = fields | st.fixed_dictionaries({"$or": st.lists(fields, min_size=1, max_size=3)})

ROWS: list[dict[str, Any]] = [
    {},
    {"a_text": "Acer", "a_varchar": "Acer", "a_small": 5, "an_int": 5, "a_big": 5, "a_numeric": 5, "a_bool": True},
    {"a_text": "5", "a_small": 0, "an_int": -1, "a_big": 2**53 + 1, "a_numeric": 9.99, "a_double": 9.99},
    {"a_text": "", "an_int": 6, "a_big": 2**63 - 1, "a_numeric": 0.3, "a_double": 0.1 + 0.2, "a_bool": False},
    {"a_varchar": "it's 100%", "a_big": -(2**63), "a_numeric": 2**53 + 1, "a_double": 1e300},
    {"a_text": "true", "a_big": 2**53, "a_numeric": -5.5, "a_double": 5.5},
]


@pytest.fixture
def connection(database_url: str) -> Iterator[sa.Connection]:
    engine = create_engine(Settings.load(database_url=database_url))
    columns = ", ".join(f"{name} {type_name}" for name, type_name in TYPES.items())
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE TABLE products (id int PRIMARY KEY, {columns}, a_real real, a_time date)"))
        connection.execute(sa.insert(TABLE), [{"id": i, **dict.fromkeys(TYPES), **row} for i, row in enumerate(ROWS)])
        yield connection
    engine.dispose()


def found(connection: sa.Connection, filter: dict[str, Any], columns: Any = COLUMNS) -> list[int]:
    return list(
        connection.scalars(
            sa.select(TABLE.c.id).where(to_sql(parse_filter(filter), None, columns)).order_by(TABLE.c.id)
        )
    )


@given(filter=filters)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_columns_of_every_type_answer_as_the_language_is_defined(
    connection: sa.Connection, filter: dict[str, Any]
) -> None:
    condition = parse_filter(filter)
    expected = [i for i, row in enumerate(ROWS) if condition.matches(row)]
    assert found(connection, filter) == expected


@pytest.fixture
def products(database_url: str) -> Iterator[sa.Engine]:
    """The same rows with a vector each, as a store has them."""
    engine = create_engine(Settings.load(database_url=database_url))
    columns = ", ".join(f"{name} {type_name}" for name, type_name in TYPES.items())
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE EXTENSION vector"))
        connection.execute(
            sa.text(f"CREATE TABLE products (id int PRIMARY KEY, {columns}, embedding vector(2) DEFAULT '[1,1]')")
        )
        connection.execute(sa.insert(TABLE), [{"id": i, **dict.fromkeys(TYPES), **row} for i, row in enumerate(ROWS)])
    yield engine
    engine.dispose()


@given(filter=filters)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_driver_sends_the_operands_as_their_columns_take_them(
    products: sa.Engine, pair: Pair, filter: dict[str, Any]
) -> None:
    table = VectorTable(
        name="products", table="products", key=("id",), dimension=2, filter_columns={name: name for name in TYPES}
    )
    condition = parse_filter(filter)
    hits = pair.store(products, table, {}, StoreOptions()).query([1.0, 1.0], filter=filter)
    assert sorted(int(hit.key) for hit in hits) == [i for i, row in enumerate(ROWS) if condition.matches(row)]


EDGES = [*(sign * (2**53 + step) for sign in (1, -1) for step in range(-1, 5)), 2**63 - 1, -(2**63), 7, 0]


def test_exact_columns_agree_at_the_edges_of_what_a_float64_can_tell_apart(connection: sa.Connection) -> None:
    connection.execute(sa.text("DELETE FROM products"))
    rows = [{"a_big": number, "a_numeric": number} for number in EDGES]
    connection.execute(sa.insert(TABLE), [{"id": i, **row} for i, row in enumerate(rows)])
    for field in ("a_big", "a_numeric"):
        for operand in (*EDGES, 6.5, 2**63, -(2**64)):
            for operator in ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte"):
                asked = {field: {operator: operand}}
                condition = parse_filter(asked)
                assert found(connection, asked) == [i for i, row in enumerate(rows) if condition.matches(row)], asked


def test_a_real_column_is_compared_with_the_operand_as_a_real(connection: sa.Connection) -> None:
    connection.execute(sa.text("UPDATE products SET a_real = CASE id WHEN 0 THEN 9.99 WHEN 1 THEN 10.5 END"))
    columns = {"price": FilterColumn(sa.column("a_real"), "real")}
    assert found(connection, {"price": 9.99}, columns) == [0]
    assert found(connection, {"price": {"$gt": 9.99, "$lt": 1e300}}, columns) == [1]


@pytest.mark.parametrize(("name", "type_name"), [("a_numeric", "numeric"), ("a_double", "double precision")])
def test_a_stored_nan_is_in_no_range(connection: sa.Connection, name: str, type_name: str) -> None:
    connection.execute(sa.text(f"UPDATE products SET {name} = 'NaN'"))
    columns = {"price": FilterColumn(sa.column(name), type_name)}
    assert found(connection, {"price": {"$gt": 0}}, columns) == []
    assert found(connection, {"price": {"$ne": math.pi}}, columns) == list(range(len(ROWS)))


def test_an_integer_column_is_compared_so_that_its_index_serves(connection: sa.Connection) -> None:
    connection.execute(sa.text("CREATE INDEX by_stock ON products (an_int); SET enable_seqscan = off"))
    for operand in ({"$gt": 4.5}, {"$lte": 7}, 5, 5.0):
        condition = to_sql(parse_filter({"an_int": operand}), None, COLUMNS)
        statement = sa.select(TABLE.c.id).where(condition)
        compiled = statement.compile(connection, compile_kwargs={"literal_binds": True})
        plan = "\n".join(connection.scalars(sa.text(f"EXPLAIN {compiled}")))
        assert "Index Cond" in plan, (operand, plan)


def test_a_column_of_a_type_that_no_operand_equals_is_an_error_that_names_it() -> None:
    with pytest.raises(FilterUnsupported, match="'a_time' asks a column of type date"):
        to_sql(parse_filter({"a_time": 1}), None, {"a_time": FilterColumn(sa.column("a_time"), "date")})


def test_a_field_that_is_no_column_names_those_there_are() -> None:
    with pytest.raises(FilterUnsupported, match=r"(?s)no column for .colour.*one of: a_text"):
        to_sql(parse_filter({"colour": "red"}), None, COLUMNS)
