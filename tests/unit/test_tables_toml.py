"""``amprenta.toml``: what it may say, and what every mistake is answered with."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.schema.registry import PRODUCTS, RAG_CHUNKS, declared_tables, get_table
from amprenta_vectors.schema.vector_table import KeyRule, VectorTable

SMALLEST = 'table = "chunks"\nkey = "id"\ndimension = 8\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "own.toml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        declared_tables(write(folder, text))
    return str(caught.value)


def test_everything_that_can_be_said_is_understood(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        [tables.own]
        schema = "My Schema"
        table = "My Chunks"
        key = ["document", "page"]
        scope = ["tenant", "kind"]
        scope_values = { kind = "faq" }
        embedding = "vec"
        text = "body"
        metadata = "meta"
        model = "made_by"
        dimension = 768
        storage = "halfvec"
        distance = "ip"
        sparse = "words"
        sparse_dimension = 30000
        key_map = "split"
        separator = "#"
        metadata_text_field = "chunk_text"
        """,
    )
    assert get_table("own", path) == VectorTable(
        name="own",
        schema="My Schema",
        table="My Chunks",
        key=("document", "page"),
        scope=("tenant", "kind"),
        scope_values={"kind": "faq"},
        embedding="vec",
        text="body",
        metadata="meta",
        model="made_by",
        dimension=768,
        storage="halfvec",
        distance="ip",
        sparse="words",
        sparse_dimension=30000,
        key_rule=KeyRule("split", separator="#"),
        metadata_text_field="chunk_text",
        declared=True,
    )


def test_table_key_and_dimension_are_enough(tmp_path: Path) -> None:
    table = get_table("own", write(tmp_path, "[tables.own]\n" + SMALLEST))
    assert (table.key, table.scope, table.embedding, table.storage) == (("id",), (), "embedding", "vector")
    assert (table.text, table.metadata, table.model, table.sparse) == (None, None, None, None)
    assert table.key_rule == KeyRule()


def test_the_one_scope_column_without_a_value_takes_the_namespace(tmp_path: Path) -> None:
    text = f'[tables.own]\n{SMALLEST}scope = ["tenant", "kind"]\nscope_values = {{ kind = "faq" }}\n'
    table = get_table("own", write(tmp_path, text))
    assert table.namespace_columns == ("tenant",)
    assert table.scope_for("acme") == {"tenant": "acme", "kind": "faq"}
    assert RAG_CHUNKS.scope_for("acme") == {"namespace": "acme"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('dimension = "8"', "dimension: expected a valid integer, found '8'"),
        ("dimension = 16001", "dimension: expected less than or equal to 16000, found 16001"),
        ('storage = "bit"', "storage: expected 'vector' or 'halfvec', found 'bit'"),
        ('distance = "euclidean"', "distance: expected 'cosine', 'l2' or 'ip', found 'euclidean'"),
        ('colour = "red"', "colour: expected one of the fields table, key, dimension, schema, scope,"),
        ("key = []", "key: expected at least 1 item"),
        ("key = 7", "key: expected a name or a list of names, found 7"),
        ('text = ""', "text: expected a name of 1 to 63 bytes, found ''"),
        (f'text = "{"n" * 64}"', "text: expected a name of 1 to 63 bytes"),
        ('text = "id"', "expected a column for each field, found id in two of them"),
        ('scope = ["a", "b"]', "scope: expected one column that takes the namespace, found a, b"),
        ('scope_values = { a = "b" }', "scope_values: expected columns of scope, found a"),
        ('sparse = "words"', "sparse: expected sparse_dimension beside it, found none"),
        ("sparse_dimension = 9", "sparse_dimension: expected sparse beside it, found none"),
        ('key_map = "hash"', "key_map: expected 'identity', 'uuid5', 'lookup', 'numbered' or 'split', found 'hash'"),
        ('key_map = "uuid5"', "key_map: expected uuid_namespace beside 'uuid5', found none"),
        ('key_map = "lookup"', "key_map: expected lookup beside 'lookup', found none"),
        ('key_map = "numbered"', "key: expected two columns for key_map = 'numbered', found id"),
        ('key_map = "split"\nseparator = "#"', "key: expected two columns or more for key_map = 'split', found id"),
        ('key = ["a", "b"]', "key: expected one column for key_map = 'identity', found a, b"),
        ('separator = "#"', "separator: expected key_map = 'split' with it, found 'identity'"),
        ('key_map = "uuid5"\nuuid_namespace = "no"', "uuid_namespace: expected a valid UUID"),
    ],
)
def test_a_mistake_is_named_with_file_table_and_field(tmp_path: Path, line: str, expected: str) -> None:
    names = {part.split(" = ")[0] for part in line.splitlines()}
    kept = "".join(f"{part}\n" for part in SMALLEST.splitlines() if part.split(" = ")[0] not in names)
    message = refused(tmp_path, f"[tables.own]\n{kept}{line}\n")
    assert f"{tmp_path}/own.toml: [tables.own]" in message
    assert expected in message
    assert "hint: correct" in message


@pytest.mark.parametrize("field", ["table", "key", "dimension"])
def test_a_field_that_is_needed_is_named(tmp_path: Path, field: str) -> None:
    kept = "".join(f"{line}\n" for line in SMALLEST.splitlines() if not line.startswith(field))
    assert f"{field}: expected a value, found none" in refused(tmp_path, f"[tables.own]\n{kept}")


def test_every_mistake_of_a_table_is_listed_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, '[tables.own]\ntable = "t"\nstorage = "bit"\n')
    assert all(name in message for name in ("key: expected", "dimension: expected", "storage: expected"))


def test_a_file_that_is_no_toml_says_where(tmp_path: Path) -> None:
    assert "line 2" in refused(tmp_path, "[tables.own]\nkey = \n")


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    assert "expected tables [tables.NAME] only, found own" in refused(tmp_path, "[own]\n")
    assert "expected tables [tables.NAME] only" in refused(tmp_path, "[tables]\nown = 1\n")


def test_two_declarations_of_one_column_and_a_name_of_the_package_are_refused(tmp_path: Path) -> None:
    twice = f"[tables.a]\n{SMALLEST}[tables.b]\n{SMALLEST}"
    assert "[tables.a] and [tables.b] are the same column chunks.embedding" in refused(tmp_path, twice)
    shipped = refused(tmp_path, f"[tables.rag_chunks]\n{SMALLEST}")
    assert "[tables.rag_chunks] is a table of the package" in shipped


def test_two_embedding_columns_of_one_table_are_two_vector_tables(tmp_path: Path) -> None:
    text = f'[tables.a]\n{SMALLEST}[tables.b]\n{SMALLEST}embedding = "other"\n'
    assert list(declared_tables(write(tmp_path, text))) == ["a", "b"]


def test_the_file_is_the_one_in_the_working_directory_or_the_one_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert declared_tables() == {}
    (tmp_path / "amprenta.toml").write_text(f"[tables.here]\n{SMALLEST}")
    assert list(declared_tables()) == ["here"]
    monkeypatch.setenv("AMPRENTA_CONFIG", str(write(tmp_path, f"[tables.there]\n{SMALLEST}")))
    settings = Settings.load()
    assert get_table("there", settings.config).name == "there"
    with pytest.raises(ConfigError, match="AMPRENTA_TABLE is 'here'") as caught:
        get_table("here", settings.config)
    assert (
        caught.value.hint == "one of: rag_chunks, vector_documents, products, chunk_embeddings, there; "
        "or declare it as [tables.here] in amprenta.toml"
    )


def test_a_file_that_is_named_and_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"AMPRENTA_CONFIG is '.*none.toml', which does not exist"):
        declared_tables(tmp_path / "none.toml")


def test_a_namespace_uuid_is_read(tmp_path: Path) -> None:
    text = f'[tables.own]\n{SMALLEST}key_map = "uuid5"\nuuid_namespace = "6BA7B811-9DAD-11D1-80B4-00C04FD430C8"\n'
    namespace = get_table("own", write(tmp_path, text)).key_rule.uuid_namespace
    assert namespace == UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")


def test_a_shipped_table_takes_the_columns_that_a_file_gives_it(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('[tables.rag_chunks]\nmetadata = "chunk_metadata"\nholds = "a"\nrows = "ours"\n')
    table = get_table("rag_chunks", path)
    assert (table.metadata, table.holds, table.rows, table.text) == ("chunk_metadata", "a", "ours", "content")
    assert table.overridden == {"metadata"}
    assert not table.declared
    assert list(declared_tables(path)) == []
    assert get_table("products", path) == PRODUCTS


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("dimension = 3", "dimension: expected one of the fields"),
        ('rows = "mine"', "rows: expected 'ours' or 'application', found 'mine'"),
        ('metadata = "content"', "found content in two of them"),
    ],
)
def test_what_a_file_cannot_say_of_a_shipped_table_is_refused(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(f"[tables.rag_chunks]\n{line}\n")
    with pytest.raises(ConfigError) as refused:
        get_table("rag_chunks", path)
    assert expected in refused.value.message
