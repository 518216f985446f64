"""Filters compiled to SQL mean what they mean in Python, and no stored metadata makes them raise."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from databases import janitor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects.postgresql import JSONB
from store_pairs import Pair

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres
from amprenta_vectors.schema.registry import RAG_CHUNKS
from amprenta_vectors.stores.filters import columns as filter_columns
from amprenta_vectors.stores.filters import sql as filter_sql
from amprenta_vectors.stores.filters.columns import FilterColumn
from amprenta_vectors.stores.filters.language import parse_filter
from amprenta_vectors.stores.filters.sql import to_sql
from amprenta_vectors.stores.pgvector.options import StoreOptions
from amprenta_vectors.stores.protocol import Record

FIELDS = ["genre", "year", "a\"b'c", "a.b", "", "%(x)s :y ?", "naïve ключ", "0", "a\\b", "x[*]", "nul\0", "\ud800"]
TEXTS = ["drama", "comedy", "", "1990", "true", "null", "it's 100%", "\\", '"', "ж", "{}", "[]"]
NUMBERS = [0, 1, -1, 1990, 1990.0, 0.1, 0.1 + 0.2, -0.0, 2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1, 2**63, 1e22, 1e308]
NUMBERS += [1.7976931348623157e308, 5e-324, 2.5e-308]
BEYOND = [10**309, -(10**309), 2**1024 - 2**970]

storable = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=3)
numbers = st.sampled_from(NUMBERS) | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.sampled_from(TEXTS) | storable | st.booleans() | numbers | st.sampled_from(BEYOND)
values = st.recursive(
    scalars | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TEXTS), inner, max_size=2),
    max_leaves=4,
)
documents = st.dictionaries(st.sampled_from(FIELDS[:-2]), values, max_size=5)
texts = st.sampled_from([*TEXTS, "nul\0", "\udfff"]) | storable
operands = texts | st.booleans() | numbers
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
filters = st.recursive(
    st.dictionaries(st.sampled_from(FIELDS), comparisons, min_size=1, max_size=2),
    lambda inner: st.fixed_dictionaries(
        {}, optional={"$and": st.lists(inner, min_size=1, max_size=3), "$or": st.lists(inner, min_size=1, max_size=3)}
    ),
    max_leaves=5,
)

METADATA: sa.ColumnClause[Any] = sa.column("metadata", JSONB)
BODY: sa.ColumnClause[Any] = sa.column("body", sa.Text)
TEXT = FilterColumn(BODY, "text")
TABLE = sa.table("documents", sa.column("id", sa.Integer), METADATA, BODY)


@pytest.fixture(scope="module")
def empty_engine(postgres_server: EmbeddedPostgres) -> Iterator[sa.Engine]:
    """An engine on a database in which nothing is."""
    with janitor(postgres_server, "filters") as database:
        engine = create_engine(Settings.load(database_url=postgres_server.url(database.dbname)))
        yield engine
        engine.dispose()


@pytest.fixture
def connection(empty_engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that is rolled back, and with it the table of documents."""
    with empty_engine.connect() as connection:
        connection.execute(sa.text("CREATE TABLE documents (id int PRIMARY KEY, metadata jsonb, body text)"))
        yield connection


def store(connection: sa.Connection, documents: list[Any], bodies: list[str | None] | None = None) -> None:
    """Store documents as JSON text, for a driver's own encoder might change them."""
    connection.execute(sa.text("DELETE FROM documents"))
    connection.execute(
        sa.text(
            "INSERT INTO documents SELECT place - 1, CAST(metadata AS jsonb), body "
            "FROM unnest(CAST(:documents AS text[]), CAST(:bodies AS text[])) "
            "WITH ORDINALITY AS given(metadata, body, place)"
        ),
        {
            "documents": [document if isinstance(document, str) else json.dumps(document) for document in documents],
            "bodies": bodies or [None] * len(documents),
        },
    )


def found(connection: sa.Connection, filter: dict[str, Any], **columns: FilterColumn) -> list[int]:
    statement = sa.select(TABLE.c.id).where(to_sql(parse_filter(filter), METADATA, columns)).order_by(TABLE.c.id)
    return list(connection.scalars(statement))


STORED = [
    *(number + step for number in (2**53, -(2**53), 2**60) for step in (-2, -1, 0, 1, 2, 3)),
    *(
        math.nextafter(number, towards)
        for number in (1990.0, 2.0**53, 0.1)
        for towards in (-math.inf, number, math.inf)
    ),
    *(2**1024 - 2**970 - 1, 2**1024 - 2**970, -(2**1024) + 2**970, 10**400, 1.7976931348623157e308, 5e-324, 0, -0.0),
    *(True, False, None, "", "drama", "1990", "true", "null", 1990, 1, [], ["drama"], ["comedy", "drama"], [["drama"]]),
    *([1990], [True], [None], [""], {}, {"drama": 1}, {"": "drama"}, [{"drama": 1}], ["1990", 1990]),
]
ASKED = [
    item
    for item in STORED
    if isinstance(item, str | bool) or (isinstance(item, int | float) and abs(item) < 2**1024 - 2**970)
]


@pytest.fixture(params=[0, filter_sql.MOST_INDEXED], ids=["long lists", "short lists"])
def _most_indexed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of any length is compiled as a long one, or as a short one."""
    monkeypatch.setattr(filter_sql, "MOST_INDEXED", request.param)


@pytest.mark.usefixtures("_most_indexed")
def test_every_operator_agrees_with_matches_at_the_edges(connection: sa.Connection) -> None:
    documents = [{"f": value} for value in STORED] + [{}, {"g": "drama"}]
    store(connection, documents)
    for operand in ASKED:
        operators = ["$eq", "$ne"]
        if not isinstance(operand, bool):
            operators += ["$in", "$nin"]
        if not isinstance(operand, str | bool):
            operators += ["$gt", "$gte", "$lt", "$lte"]
        for operator in operators:
            asked = {"f": {operator: [operand] if operator in ("$in", "$nin") else operand}}
            condition = parse_filter(asked)
            assert found(connection, asked) == [i for i, item in enumerate(documents) if condition.matches(item)], asked


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(documents, min_size=1, max_size=8), st.lists(filters, min_size=1, max_size=5))
def test_sql_agrees_with_matches(
    connection: sa.Connection, documents: list[dict[str, Any]], filters: list[dict[str, Any]]
) -> None:
    store(connection, documents)
    for asked in filters:
        condition = parse_filter(asked)
        expected = [i for i, item in enumerate(documents) if condition.matches(item)]
        for most in (0, filter_sql.MOST_INDEXED):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(filter_sql, "MOST_INDEXED", most)
                assert found(connection, asked) == expected, (asked, most)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(documents, min_size=1, max_size=8), st.lists(filters, min_size=1, max_size=5))
def test_every_driver_stores_documents_and_asks_for_them_alike(
    engine: sa.Engine, pair: Pair, documents: list[dict[str, Any]], filters: list[dict[str, Any]]
) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM rag_chunks"))
    store = pair.store(engine, RAG_CHUNKS, {"namespace": "a"}, StoreOptions(text_field="\t"))
    vector = np.ones(8, np.float32)
    store.upsert([Record(str(i), vector, None, document) for i, document in enumerate(documents)])
    keys = [str(i) for i in range(len(documents))]
    with engine.connect() as connection:
        texts = connection.scalars(sa.text("SELECT CAST(metadata AS text) FROM rag_chunks ORDER BY chunk_id")).all()
    # As PostgreSQL writes it: of a large number its value, not its spelling.
    assert [store.fetch(keys)[key].metadata for key in keys] == [json.loads(text) for text in texts]
    for asked in filters:
        condition = parse_filter(asked)
        expected = [key for key, item in zip(keys, documents, strict=True) if condition.matches(item)]
        assert sorted(hit.key for hit in store.query(vector, filter=asked)) == expected, asked


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.lists(st.none() | storable, min_size=1, max_size=5), filters)
def test_the_text_field_is_looked_for_in_the_text_column(
    connection: sa.Connection, bodies: list[str | None], filter: dict[str, Any]
) -> None:
    store(connection, [{"year": 1}] * len(bodies), bodies)
    condition = parse_filter(filter)
    expected = [
        i
        for i, body in enumerate(bodies)
        if condition.matches({"year": 1} if body is None else {"year": 1, "genre": body})
    ]
    assert found(connection, filter, genre=TEXT) == expected


@pytest.mark.parametrize(
    ("operand", "expected"),
    [
        ("a", [0]),
        ({"$ne": "a"}, [1, 2]),
        ({"$in": ["a", ""]}, [0, 1]),
        ({"$nin": ["a", ""]}, [2]),
        ({"$exists": True}, [0, 1]),
        ({"$exists": False}, [2]),
        ({"$gte": 0}, []),
        (1, []),
        ({"$in": [1]}, []),
        ({"$ne": True}, [0, 1, 2]),
    ],
)
def test_a_text_column_is_a_field_that_holds_a_string_or_is_missing(
    connection: sa.Connection, operand: Any, expected: list[int]
) -> None:
    store(connection, [{"text": "never looked at"}] * 3, ["a", "", None])
    assert found(connection, {"text": operand}, text=TEXT) == expected


@pytest.mark.parametrize(
    "metadata",
    [
        '{"year": "1990"}',
        '{"year": "not a number"}',
        '{"year": 1e400}',
        '{"year": -1e400}',
        '{"year": 1e-400}',
        '{"year": null}',
        '{"year": [1990, null, {"a": 1}]}',
        '{"year": {"1990": 1}}',
        "[]",
        '["year"]',
        '"year"',
        "1990",
        "null",
        None,
    ],
)
def test_odd_metadata_does_not_match_and_does_not_raise(connection: sa.Connection, metadata: str | None) -> None:
    connection.execute(sa.text("INSERT INTO documents VALUES (0, CAST(:m AS jsonb))"), {"m": metadata})
    year = {"$gte": 1989, "$lte": 1991}
    assert found(connection, {"year": year}) == []
    assert found(connection, {"year": 1990}) == []
    assert found(connection, {"year": {"$in": [1990, 2**60]}}) == []
    assert found(connection, {"year": {"$ne": 1990, "$nin": [1990]}}) == [0]


def test_ten_thousand_values_are_looked_up_not_tried_one_by_one(connection: sa.Connection) -> None:
    store(connection, [{"id": f"doc-{i}"} for i in range(20_000)])
    # One by one they take minutes.
    connection.execute(sa.text("SET LOCAL statement_timeout = '20s'"))
    wanted = [f"doc-{i}" for i in range(0, 20_000, 2)]
    assert found(connection, {"id": {"$in": wanted}}) == list(range(0, 20_000, 2))


@pytest.mark.parametrize("kind", ["metadata", "numeric", "bigint"])
def test_ten_thousand_numbers_past_2_53_are_looked_up_too(connection: sa.Connection, kind: str) -> None:
    numbers = [2**53 + 2 * i for i in range(20_000)]
    store(connection, [{"n": number} for number in numbers])
    # One by one they take minutes.
    connection.execute(sa.text("SET LOCAL statement_timeout = '20s'"))
    columns: dict[str, FilterColumn] = {}
    if kind != "metadata":
        connection.execute(sa.text(f"ALTER TABLE documents ADD n {kind}"))
        connection.execute(sa.text("UPDATE documents SET n = CAST(metadata ->> 'n' AS numeric)"))
        columns["n"] = FilterColumn(sa.column("n"), kind)
    assert found(connection, {"n": {"$in": numbers[::2]}}, **columns) == list(range(0, 20_000, 2))


@pytest.mark.parametrize("kind", ["numeric", "bigint"])
def test_a_long_list_on_a_column_agrees_with_a_short_one(
    connection: sa.Connection, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    whole = [item for item in STORED if isinstance(item, int) and not isinstance(item, bool) and abs(item) < 2**63]
    stored = whole if kind == "bigint" else [*whole, 0.1, 2**53 + 0.5, 10**400]
    store(connection, [{"n": number} for number in stored])
    connection.execute(sa.text(f"ALTER TABLE documents ADD n {kind}"))
    connection.execute(sa.text("UPDATE documents SET n = CAST(metadata ->> 'n' AS numeric)"))
    column = FilterColumn(sa.column("n"), kind)
    for asked in ([1990.0, 2.0**53, 0.1], [float(number) for number in whole], [1e300, -(2.0**60), 0.5]):
        short = found(connection, {"n": {"$in": asked}}, n=column)
        with monkeypatch.context() as patch:
            patch.setattr(filter_columns, "MOST_INDEXED", 0)
            assert found(connection, {"n": {"$in": asked}}, n=column) == short


def test_equality_is_served_by_a_gin_index(connection: sa.Connection) -> None:
    store(connection, [{"genre": f"g{i}", "year": i} for i in range(2000)])
    connection.execute(sa.text("CREATE INDEX ON documents USING gin (metadata jsonb_path_ops)"))
    connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
    statement = sa.select(TABLE.c.id).where(to_sql(parse_filter({"genre": "g7", "year": 7}), METADATA))
    compiled = statement.compile(connection.engine, compile_kwargs={"render_postcompile": True})
    plan = "\n".join(
        row[0]
        for row in connection.exec_driver_sql("EXPLAIN " + str(compiled), compiled.params)  # type: ignore[arg-type]
    )
    assert "Bitmap Index Scan on documents_metadata_idx" in plan
    assert found(connection, {"genre": "g7", "year": 7}) == [7]


def test_names_and_operands_are_bound_never_part_of_the_statement() -> None:
    condition = parse_filter({"fie'ld": {"$eq": "val'ue", "$gt": 12345, "$in": ["el'em"]}})
    statement = str(sa.select(TABLE.c.id).where(to_sql(condition, METADATA)).compile())
    for part in ("fie", "val'ue", "12345", "el'em"):
        assert part not in statement
