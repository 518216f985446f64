"""An assistant's documents: the same caller on files and on PostgreSQL, each user alone, nothing lost on the way."""

from __future__ import annotations

import functools
import json
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import sqlalchemy as sa
from backfill_tools import execute
from click.testing import CliRunner
from cryptography.fernet import Fernet
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings

from amprenta_vectors.backends.simple.cipher import MetadataCipher
from amprenta_vectors.backends.simple.source import open_simple_origin
from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder
from amprenta_vectors.errors import (
    ConfigError,
    CredentialsRefused,
    FilterError,
    RowError,
    TransientError,
    UnknownBackend,
)
from amprenta_vectors.sandbox.embedding_servers import GeminiServer
from amprenta_vectors.schema.keymaps import Uuid5
from amprenta_vectors.schema.registry import VECTOR_DOCUMENTS
from amprenta_vectors.stores.factory import get_vector_store, open_pgvector_store, open_simple_store
from amprenta_vectors.stores.protocol import Record
from amprenta_vectors.systems.documents import assistant
from amprenta_vectors.systems.documents.assistant import (
    AssistantStore,
    PgVectorStore,
    SimpleVectorStore,
    get_document_store,
)

DIMENSION = 256
KEY = Fernet.generate_key().decode()
TEXTS = [
    "The cat sat on the mat.",
    "A dog barked at the postman.",
    "Stocks fell sharply on Monday.",
    "The interview is on Tuesday at nine.",
    "Prepare questions for the interview.",
    "Bread is baked with yeast and flour.",
]
METADATAS = [{"page": number, "source": "notes.txt" if number % 2 else "plan.pdf"} for number in range(len(TEXTS))]
OLD_IDS = ["doc-1", "5b0c1f0e-2a3b-4c4d-8e5f-001122334455", "doc/3", "4", "doc 5", "doc-6"]


@pytest.fixture
def engine(documents_url: str) -> Iterator[sa.Engine]:
    engine = create_engine(Settings.load(database_url=documents_url))
    yield engine
    engine.dispose()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents_url: str) -> Path:
    """The folder of all users; the environment is that of an application that may use either backend."""
    monkeypatch.setenv("DATABASE_URL", documents_url)
    monkeypatch.setenv("SIMPLE_STORE_ROOT", str(tmp_path / "user_data"))
    monkeypatch.setenv("AMPRENTA_EMBEDDER", "wordllama")
    monkeypatch.setenv("VECTOR_STORE_USER_ID", "alice")
    return tmp_path / "user_data"


@functools.cache
def embedded_texts() -> Any:
    return WordLlamaEmbedder().embed(TEXTS)


def write_old_store(root: Path, user: str = "alice", *, key: str | None = None) -> Path:
    """What the old application left of a user: two files in a shape of its own."""
    folder = root / user / "vector_store_personal_assistant"
    folder.mkdir(parents=True)
    vectors = embedded_texts()
    documents = [
        {"id": name, "page_content": text, "metadata": fields}
        for name, text, fields in zip(OLD_IDS, TEXTS, METADATAS, strict=True)
    ]
    content = json.dumps(documents).encode()
    (folder / "vectors.pkl").write_bytes(pickle.dumps(dict(zip(OLD_IDS, vectors.tolist(), strict=True))))
    (folder / "metadata.json").write_bytes(content if key is None else Fernet(key).encrypt(content))
    return folder


def migrate(user: str = "alice") -> None:
    """What the backfill brings, by the source and the key map that it uses."""
    settings = Settings.load(table="vector_documents", namespace=f"{user}/personal_assistant")
    store = open_pgvector_store(settings)
    origin = open_simple_origin(settings)
    table = VECTOR_DOCUMENTS.with_columns(dimension=DIMENSION)
    source = origin.open(table, settings.namespace, with_metadata=True)
    namespace = VECTOR_DOCUMENTS.key_rule.uuid_namespace
    assert namespace is not None
    key_map = Uuid5(namespace, VECTOR_DOCUMENTS.scope_for(settings.namespace))
    batch = key_map.apply(source.fetch([name for names, _ in source.iter_keys() for name in names]))
    assert batch.keys
    assert batch.texts
    assert batch.metadata
    rows = zip(batch.keys, batch.vectors, batch.texts, batch.metadata, strict=True)
    store.upsert([Record(key, vector, text, metadata or {}) for (key,), vector, text, metadata in rows])
    store.close()


def rows_of(engine: sa.Engine) -> list[Any]:
    return list(execute(engine, "SELECT * FROM vector_documents ORDER BY user_id, text"))


def caller() -> list[Any]:
    """An application as it is, whatever the backend; returns everything that it saw."""
    store = get_document_store()
    said: list[Any] = []

    def say(answer: Any) -> None:
        said.append(answer)

    say([(item.page_content, item.metadata, item.id) for item in store.similarity_search("animals")])
    say([item.page_content for item in store.similarity_search("When is the interview?", k=2)])
    say([(item.id, round(score, 5)) for item, score in store.similarity_search_with_score("bread", k=3)])
    say([item.id for item in store.similarity_search("interview", filter={"source": "notes.txt", "page": {"$gt": 1}})])
    new = store.add_texts(["The cat is called Murr."], [{"page": 7}])
    newer = store.add_documents([Document(page_content="Murr likes fish.", metadata={"page": 8, "tags": ["cat"]})])
    say([len(new), len(newer), new[0] != newer[0]])
    say([(item.page_content, item.metadata) for item in store.similarity_search("the cat Murr", k=2)])
    say([item.id == newer[0] for item in store.similarity_search("fish for a cat", k=1, filter={"tags": "cat"})])
    say(store.delete([OLD_IDS[0], OLD_IDS[1], new[0], "no such id"]))
    say([item.page_content for item in store.similarity_search("the cat", k=10)])
    say(store.get_collection_stats())
    store.add_texts(["The dog barks no more."], [{"page": 1}], ids=[OLD_IDS[1]])
    say([(item.id, item.page_content, item.metadata) for item in store.similarity_search("dog barks", k=1)])
    store.close()
    return said


def test_an_unchanged_caller_gets_the_same_answers_of_either_backend(
    root: Path, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_old_store(root)
    migrate()
    answers = {}
    for backend in ("pgvector", "simple"):
        monkeypatch.setenv("VECTOR_BACKEND", backend)
        answers[backend] = caller()
    assert answers["pgvector"] == answers["simple"]
    stats = {"user_id": "alice", "collection_name": "personal_assistant", "count": 5}
    assert answers["simple"][9] == {**stats, "embedding_model": "models/gemini-embedding-001"}
    assert {row.metadata["original_id"] for row in rows_of(engine)} > {"doc/3", OLD_IDS[1]}


def test_the_classes_have_the_methods_and_defaults_that_callers_rely_on(root: Path) -> None:
    folder = write_old_store(root)
    simple = SimpleVectorStore(str(folder), "models/gemini-embedding-001", "alice")
    pgvector = PgVectorStore()
    for store in (simple, pgvector):
        assert store.get_collection_stats()["collection_name"] == "personal_assistant"
        (made,) = store.add_texts(["A new text about a bicycle."])
        found = store.similarity_search("bicycle", k=1)
        assert isinstance(found[0], Document)
        assert (found[0].page_content, found[0].metadata, found[0].id) == ("A new text about a bicycle.", {}, made)
        assert store.delete([made]) is None
    assert len(simple.similarity_search("interview")) == 4
    other = PgVectorStore.from_texts(TEXTS, metadatas=METADATAS, collection_name="other", user_id="bob")
    assert type(other) is PgVectorStore
    assert other.get_collection_stats() == {
        "user_id": "bob",
        "collection_name": "other",
        "embedding_model": "models/gemini-embedding-001",
        "count": 6,
    }
    assert pgvector.get_collection_stats()["count"] == 0
    made_of = SimpleVectorStore.from_texts(TEXTS[:2], store_path=root / "bob" / "vector_store_x", embedding_model="any")
    assert made_of.get_collection_stats()["count"] == 2


def test_a_store_is_confined_to_a_user_and_collection_that_are_names(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_old_store(root, "bob")
    for name in ("", "a/b", "alice/personal_assistant", cast("str", 5)):
        with pytest.raises(ConfigError, match=r"user_id is .*expected a name"):
            PgVectorStore(user_id=name)
        with pytest.raises(ConfigError, match=r"collection_name is .*expected a name"):
            PgVectorStore(name)
    monkeypatch.setenv("VECTOR_BACKEND", "simple")
    for name in ("..", ".", "a\\b", "nul\0"):
        with pytest.raises(ConfigError, match="expected the name of a folder"):
            get_document_store(user_id=name)
    with pytest.raises(ConfigError, match=r"a folder of 'bob', and user_id is 'alice'"):
        SimpleVectorStore(root / "bob" / "vector_store_personal_assistant", user_id="alice")
    with pytest.raises(ConfigError, match="a folder of 'bob'"):
        SimpleVectorStore(root / "alice" / ".." / "bob" / "vector_store_personal_assistant", user_id="alice")
    for path in (root / "alice" / "store", root / "alice" / "vector_store_", "/vector_store_x"):
        with pytest.raises(ConfigError, match="expected …/USER/vector_store_COLLECTION"):
            SimpleVectorStore(path)
    monkeypatch.delenv("VECTOR_STORE_USER_ID")
    with pytest.raises(ConfigError, match="VECTOR_STORE_USER_ID is not set"):
        PgVectorStore()


def test_a_backend_that_keeps_no_documents_and_a_model_that_is_none_are_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variables in ({"VECTOR_BACKEND": "pinecone"}, {"VECTOR_SECONDARY": "chroma", "VECTOR_MODE": "dual"}):
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            with pytest.raises(UnknownBackend, match="where no documents are kept"):
                get_document_store()
    monkeypatch.delenv("AMPRENTA_EMBEDDER")
    with pytest.raises(ConfigError, match="embedding_model is 'models/text-embedding-004'"):
        get_document_store(embedding_model="models/text-embedding-004")
    with pytest.raises(ConfigError, match="GOOGLE_API_KEY is not set"):
        get_document_store()


def test_the_default_model_is_asked_of_gemini(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with GeminiServer("a-key") as server:
        monkeypatch.delenv("AMPRENTA_EMBEDDER")
        monkeypatch.setenv("GOOGLE_API_KEY", "a-key")
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.host)
        store = SimpleVectorStore.from_texts(TEXTS, store_path=root / "alice" / "vector_store_x")
        assert store.similarity_search(TEXTS[3], k=1)[0].page_content == TEXTS[3]
        ((_, score),) = store.similarity_search_with_score(TEXTS[2], k=1)
        assert score == pytest.approx(1)
        asked = [request["outputDimensionality"] for body in server.requests for request in body["requests"]]
        assert asked == [768] * (len(TEXTS) + 2)


# Encryption.


def test_metadata_is_encrypted_on_both_sides_where_there_is_a_key_and_read_with_it(
    root: Path, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_old_store(root, key=KEY)
    monkeypatch.setenv("VECTOR_STORE_ENCRYPTION_KEY", KEY)
    migrate()
    answers = []
    for backend in ("simple", "pgvector"):
        monkeypatch.setenv("VECTOR_BACKEND", backend)
        store = get_document_store()
        store.add_texts(["Murr is a cat."], [{"page": 9, "secret": "fish"}], ids=["murr"])
        answers.append([(i.id, i.page_content, i.metadata) for i in store.similarity_search("cat", k=10)])
        with pytest.raises(FilterError, match="encrypted, and cannot be filtered by"):
            store.similarity_search("cat", filter={"page": 9})
    assert answers[0] == answers[1]
    assert ("murr", "Murr is a cat.", {"page": 9, "secret": "fish"}) in answers[0]
    assert ("doc-6", TEXTS[5], METADATAS[5]) in answers[0]
    rows = rows_of(engine)
    assert len(rows) == 7
    assert all(row.metadata.keys() == {"encrypted", "original_id"} for row in rows)
    assert not any("notes.txt" in str(row) or "fish" in str(row) for row in rows)
    assert b"notes" not in (folder / "metadata.json").read_bytes()


def test_encrypted_metadata_without_its_key_is_an_error_and_never_an_answer(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("VECTOR_STORE_ENCRYPTION_KEY", KEY)
        PgVectorStore().add_texts(["Murr is a cat."], [{"page": 9}])
    store = PgVectorStore()
    with pytest.raises(ConfigError, match="VECTOR_STORE_ENCRYPTION_KEY is not set"):
        store.similarity_search("cat")
    with pytest.raises(FilterError, match="encrypted"):
        store.similarity_search("cat", filter={"page": 9})
    monkeypatch.setenv("VECTOR_STORE_ENCRYPTION_KEY", Fernet.generate_key().decode())
    with pytest.raises(CredentialsRefused, match="another key than VECTOR_STORE_ENCRYPTION_KEY"):
        PgVectorStore().similarity_search("cat")
    monkeypatch.setenv("VECTOR_STORE_ENCRYPTION_KEY", "no key")
    with pytest.raises(CredentialsRefused, match="is no Fernet key"):
        PgVectorStore()


def test_what_could_not_be_read_back_is_refused_and_what_is_there_spoils_its_own_hit_only(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PgVectorStore()
    token = MetadataCipher(KEY).encrypt({"page": 9})
    with pytest.raises(RowError, match="could not be read back"):
        store.add_texts(["Murr is a cat."], [token])
    store.add_texts(["Murr is a cat."], [{"encrypted": "no token", "page": 1}])
    with monkeypatch.context() as patch:
        patch.setenv("VECTOR_STORE_ENCRYPTION_KEY", KEY)
        # With a key it is a field like any other.
        keyed = PgVectorStore()
        (key,) = keyed.add_texts(["Murr is a black cat."], [token])
        assert keyed.store.fetch([key])[key].metadata == token
    found = store.store.query(embedded_texts()[0], top_k=10)
    assert [hit.metadata for hit in found] == [{"encrypted": "no token", "page": 1}]


@pytest.mark.parametrize("content", [b"some text", b"[1]", b"null", b"\xff", b"[" * 100_000])
def test_a_token_of_the_key_that_holds_no_metadata_spoils_its_own_hit_only(
    root: Path, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setenv("VECTOR_STORE_ENCRYPTION_KEY", KEY)
    store = PgVectorStore()
    bad, good = store.add_texts(["Murr is a cat.", "Murr is a black cat."], [{"page": 1}, {"page": 2}])
    token = json.dumps({"encrypted": Fernet(KEY).encrypt(content).decode(), "original_id": bad})
    execute(engine, "UPDATE vector_documents SET metadata = :token WHERE text = 'Murr is a cat.'", token=token)
    assert [document.id for document in store.similarity_search("cat")] == [good]
    with pytest.raises(ConfigError, match="what is encrypted is no JSON object"):
        store.store.fetch([bad])


@pytest.mark.parametrize("plain", [[True] * 101, [str(n) for n in range(150)]])
def test_encrypted_documents_behind_any_number_with_a_field_of_that_name_are_no_answer(
    root: Path, monkeypatch: pytest.MonkeyPatch, plain: list[Any]
) -> None:
    store = PgVectorStore()
    vector = embedded_texts()[0]
    ids = [f"own {n}" for n in range(len(plain))]
    store.store.upsert([Record(i, vector, "cat", {"encrypted": flag}) for i, flag in zip(ids, plain, strict=True)])
    assert store.store.query(vector, filter={"page": 9}) == []
    with monkeypatch.context() as patch:
        patch.setenv("VECTOR_STORE_ENCRYPTION_KEY", KEY)
        PgVectorStore().store.upsert([Record("secret", embedded_texts()[5], "far", {"page": 9})])
    with pytest.raises(FilterError, match="encrypted"):
        store.store.query(vector, filter={"page": {"$ne": 9}})


# Writes.


class Failing(Embeddings):
    """Fails on a text of some thousand; otherwise every text has a vector of its own."""

    def __init__(self, at: str | None = None) -> None:
        self._at = at

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        if self._at in texts:
            raise TransientError("the model is away")
        generator = np.random.default_rng(len(texts))
        return generator.standard_normal((len(texts), DIMENSION), dtype=np.float32).tolist()  # type: ignore[no-any-return]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


@pytest.mark.parametrize("backend", ["pgvector", "simple"])
def test_texts_are_added_all_or_none(
    backend: str, root: Path, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTOR_BACKEND", backend)
    # The index takes most of the time of so many rows, and no search follows.
    execute(
        engine,
        """
        DROP INDEX idx_vector_documents_embedding_hnsw;
        CREATE SEQUENCE seen;
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF nextval('seen') = 1150 THEN RAISE 'refused'; END IF; RETURN NEW; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON vector_documents FOR EACH ROW EXECUTE FUNCTION refuse()
        """,
    )
    texts = [f"text {number}" for number in range(1200)]
    store = get_document_store(embedding_model=Failing())
    (kept,) = store.add_texts(["kept"])
    if backend == "pgvector":
        # More than one statement, of which the last one fails.
        with pytest.raises(Exception, match="refused"):
            store.add_texts(texts)
    with pytest.raises(RowError):
        store.add_texts(texts, [{}] * 1199 + [{"n": object()}])
    with pytest.raises(TransientError):
        get_document_store(embedding_model=Failing("text 7")).add_texts(texts)
    with pytest.raises(ConfigError, match="2 texts and 1 metadatas"):
        store.add_texts(["a", "b"], [{}])
    with pytest.raises(ConfigError, match="has original_id 'x', a field that keeps its own id"):
        store.add_texts(["a"], [{"original_id": "x"}])
    assert store.get_collection_stats()["count"] == 1
    assert [item.id for item in store.get_by_ids([kept])] == [kept]


def test_a_document_goes_by_its_id_or_by_its_key_and_rows_of_others_by_their_key(root: Path, engine: sa.Engine) -> None:
    store = PgVectorStore()
    store.add_texts(["first", "second"], ids=["one", "two"])
    rows = {row.metadata["original_id"]: str(row.id) for row in rows_of(engine)}
    assert [item.id for item in store.get_by_ids(["one", rows["two"]])] == ["one", "two"]
    execute(engine, "UPDATE vector_documents SET metadata = '{}' WHERE text = 'second'")
    assert {item.id for item in store.similarity_search("second")} == {"one", rows["two"]}
    store.delete([rows["two"], rows["one"].upper()])
    assert rows_of(engine) == []


def test_objects_of_a_process_share_a_pool(root: Path) -> None:
    stores = [PgVectorStore(user_id=f"user {number}") for number in range(20)]
    for store in stores:
        store.get_collection_stats()
    engines = {id(store.store._store._engine) for store in stores}  # type: ignore[attr-defined]
    assert len(engines) == 1


# Two stores at once.


@pytest.mark.parametrize("primary", ["simple", "pgvector"])
@pytest.mark.parametrize("mode", ["dual", "fallback", "hybrid", "shadow"])
def test_files_and_postgresql_answer_as_one(
    mode: str, primary: str, root: Path, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_old_store(root)
    migrate()
    monkeypatch.setenv("VECTOR_BACKEND", primary)
    monkeypatch.setenv("VECTOR_MODE", mode)
    monkeypatch.setenv("VECTOR_SECONDARY", {"simple": "pgvector", "pgvector": "simple"}[primary])
    store = get_document_store()
    store.add_texts(["Murr is a cat."], [{"page": 9}], ids=["murr"])
    store.delete(["doc-1"])
    found = store.similarity_search("cat", k=10)
    assert len({item.id for item in found}) == len(found)
    assert ("murr", {"page": 9}) in [(item.id, item.metadata) for item in found]
    assert ("doc-1" in {item.id for item in found}) is (mode == "hybrid")
    store.close()
    of_scope = Settings.load(
        table="vector_documents", namespace="alice/personal_assistant", vector_mode="single"
    ).model_copy(update={"vector_secondary": None})
    sides = [open_simple_store(of_scope), open_pgvector_store(of_scope)]
    contents = [
        {hit.metadata["original_id"]: (hit.key, hit.text, hit.metadata) for hit in side.query([1.0] * 256, top_k=100)}
        for side in sides
    ]
    if mode == "dual":
        assert contents[0] == contents[1]
        assert execute(engine, "SELECT count(*) FROM vector_outbox WHERE cleared_at IS NULL")[0][0] == 0
    if mode == "shadow":
        (row,) = execute(engine, "SELECT overlap, missing, error FROM shadow_query")
        assert (row.error, len(row.missing)) == (None, 1)
    assert ("murr" in contents[0]) is (primary == "simple" or mode == "dual")


def test_what_the_files_did_not_get_is_brought_by_the_outbox(
    root: Path, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amprenta_vectors.stores.composites.dual.DRAIN_SECONDS", 3600.0)
    for name, value in (("BACKEND", "pgvector"), ("MODE", "dual"), ("SECONDARY", "simple")):
        monkeypatch.setenv(f"VECTOR_{name}", value)
    root.mkdir()
    # Where the folder of a user should be.
    (root / "bob").write_text("")
    store = get_document_store(user_id="bob")
    with pytest.raises(Exception, match="cannot be read or written"):
        store.add_texts(["Murr is a cat."], ids=["murr"])
    store.close()
    assert [row.user_id for row in rows_of(engine)] == ["bob"]
    (root / "bob").unlink()
    monkeypatch.setenv("AMPRENTA_TABLE", "vector_documents")
    execute(engine, "UPDATE vector_outbox SET claimed_until = now()")
    drained = CliRunner().invoke(main, ["outbox", "drain"])
    assert (drained.exit_code, drained.output) == (0, "1 key(s) brought to simple, 0 pending\n")
    files = SimpleVectorStore(root / "bob" / "vector_store_personal_assistant")
    assert [item.id for item in files.similarity_search("cat")] == ["murr"]


def test_stores_whose_keys_differ_are_not_joined(root: Path) -> None:
    options = {"table": "vector_documents", "namespace": "a/b", "vector_mode": "dual"}
    with pytest.raises(ConfigError, match="cannot be joined"):
        get_vector_store(Settings.load(**options, vector_backend="pgvector", vector_secondary="pinecone"))
    with pytest.raises(ConfigError, match="a simple store is one user's collection"):
        get_vector_store(Settings.load(vector_backend="simple"))


def test_a_store_that_nothing_refers_to_is_closed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    class Closable:
        name, distance = "closable", "cosine"

        def close(self) -> None:
            closed.append(True)

    settings = Settings.load(namespace="alice/x")
    store = AssistantStore(settings, open_store=lambda _: Closable())  # type: ignore[arg-type,return-value]
    del store
    assert closed == [True]
    again = AssistantStore(settings, open_store=lambda _: Closable())  # type: ignore[arg-type,return-value]
    again.close()
    again.close()
    assert closed == [True, True]


def test_an_embedder_is_opened_once_a_process(root: Path) -> None:
    assistant._shared_embedder.cache_clear()
    PgVectorStore(user_id="a")
    PgVectorStore(user_id="b")
    assert assistant._shared_embedder.cache_info().misses == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: SimpleVectorStore(folder),
        lambda folder: SimpleVectorStore.from_texts(TEXTS[:1], store_path=folder, embedding_model="any"),
        lambda folder: SimpleVectorStore.from_documents(
            [Document(TEXTS[0])], None, store_path=folder, embedding_model="any"
        ),
    ],
    ids=["class", "from_texts", "from_documents"],
)
def test_the_old_class_says_what_takes_its_place_and_where_it_is_made(
    root: Path, make: Callable[[Path], SimpleVectorStore]
) -> None:
    with pytest.warns(DeprecationWarning, match="PgVectorStore") as caught:
        make(root / "bob" / "vector_store_notes")
    assert [warning.filename for warning in caught] == [__file__]


def test_asking_for_the_store_of_the_backend_warns_of_nothing(root: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        get_document_store(user_id="bob")
