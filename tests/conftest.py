"""Real servers for every test: PostgreSQL with pgvector in a folder of its own, Pinecone emulators on loopback."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import cache
from pathlib import Path
from typing import Any

import httpx._transports.default as httpx_transport
import pytest
import sqlalchemy as sa
from databases import janitor
from embedded_rows import TEXTS, embed_rows
from forms import FORM, SEED, SEED_VARIABLE
from hypothesis import settings
from servers import copy_server
from sqlalchemy.util import LRUCache
from store_pairs import PAIRS, Pair

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.sandbox import postgres
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres

DIMENSION = 8
DOCUMENT_DIMENSION = 256
"""That of the embedder which needs no network."""
API_KEY = "test-key"
INDEX_NAME = "test-index"
# The same examples at every run, however long one takes on a busy machine; ``--hypothesis-profile default`` has others.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")

# Another server than that of the wheel: a folder with `postgres`, `initdb` and `pg_ctl`, and pgvector beside them.
if binaries := os.environ.get("AMPRENTA_TEST_POSTGRES"):
    postgres.binaries = lambda: Path(binaries)
    # PostgreSQL 16 and older have none built in.
    postgres.LOCALE = ("--locale=C.UTF-8",)

OUR_VARIABLES = ("DATABASE_URL", "MIGRATION_DATABASE_URL", "READ_DATABASE_URL", "EMBEDDING_MODEL")
POLL_SECONDS = 0.02
"""How often a backfill looks for work and orders, so that no test waits for it."""
OUR_PREFIXES = (
    "POSTGRES_",
    "PINECONE_",
    "VECTOR_",
    "AMPRENTA_",
    "CHROMA_",
    "OLLAMA_",
    "OPENAI_",
    "GOOGLE_",
    "GEMINI_",
    "SIMPLE_",
)
LONGEST = ("test_steps.py", "test_killed.py", "test_command_lines.py", "test_sections.py", "test_pytest_alembic.py")
"""Files whose tests take a quarter of a minute and more: they begin first, so that none runs alone at the end."""
KINDS = ("torture", "journey", "local_models")
"""Folders whose tests are marked with the folder's name, and run only when asked for by it."""


def pytest_report_header(config: pytest.Config) -> str:
    """Say which server is tested on, and what repeats a run of the tests that draw lots."""
    server = subprocess.run([postgres.binaries() / "postgres", "--version"], capture_output=True, text=True, check=True)
    asked_for = "not torture" not in config.getoption("markexpr")
    return server.stdout.strip() + (f", {FORM.name} form, {SEED_VARIABLE}={SEED}" if asked_for else "")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder, so that no file there can be forgotten; and begin with what takes longest."""
    for item in items:
        for kind in KINDS:
            if Path(__file__).with_name(kind) in item.path.parents:
                item.add_marker(kind)
                item.add_marker(pytest.mark.timeout(FORM.test_seconds))
    items.sort(key=lambda item: item.path.name not in LONGEST)


# Each client of Pinecone reads the certificates of all authorities twice, which takes longer than many a test.
httpx_transport.create_ssl_context = cache(httpx_transport.create_ssl_context)


class CompiledOnce(LRUCache[Any, Any]):
    """Statements as SQLAlchemy compiled them, for all engines of a process: each test makes engines of its own."""

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the statement as it was compiled for any engine like the one that asks."""
        return super().get(self._of_any(key), default)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(self._of_any(key), value)

    @staticmethod
    def _of_any(key: Any) -> tuple[Any, ...]:
        dialect, *statement = key
        return (type(dialect), dialect.paramstyle, dialect.server_version_info, *statement)


COMPILED = CompiledOnce(4096)
sa.Engine._compiled_cache = property(lambda _: COMPILED, lambda *_: None)  # type: ignore[assignment]


def pytest_collection_finish() -> None:
    """Leave what is there by now, modules and tests, out of every collection of garbage, and collect less often."""
    gc.freeze()
    # Of the processor time of a backfill's tests a twentieth went into collections, of which this leaves the half.
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(autouse=True)
def _no_project_variables(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in list(os.environ):
        if name in OUR_VARIABLES or name.startswith(OUR_PREFIXES):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AMPRENTA_POLL_SECONDS", str(POLL_SECONDS))
    # Not into the folder that the tests are started in.
    monkeypatch.setenv("AMPRENTA_REPORT", str(tmp_path_factory.getbasetemp() / "reports"))


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report that ends every run has no plot, which takes longer than the run; tests of reports override this."""
    monkeypatch.setattr("amprenta_vectors.backfill.report.page.draw_rate", lambda *_: "")


@pytest.fixture
def server_folder() -> Iterator[Path]:
    """A folder for a server that a test starts, and stops, itself."""
    # Not below pytest's own folder, which is closed to the system user that a server started by root runs as.
    with tempfile.TemporaryDirectory(prefix="amprenta-test-") as folder:
        yield Path(folder, "postgres")


MEMORY = Path("/dev/shm")
SPARE_MEMORY = 8 * 2**30
"""Bytes that are free there, where it is used."""


def in_memory() -> Path | None:
    """The folder that is in memory, where it is roomy: databases are made and dropped there at a fifth of the cost."""
    return MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > SPARE_MEMORY else None


@pytest.fixture(scope="session")
def initialised() -> Iterator[Path]:
    """A server's folder as initdb makes it, which takes a second of a processor; a copy takes a twentieth."""
    with tempfile.TemporaryDirectory(prefix="amprenta-test-", dir=in_memory()) as folder:
        server = EmbeddedPostgres(Path(folder, "postgres"), {"fsync": "off"})
        server.start()
        server.stop()
        yield server.folder


@pytest.fixture
def own_folder(server_folder: Path, initialised: Path) -> Path:
    """The folder of a server for this test alone, which starts and stops it itself."""
    return copy_server(initialised, server_folder)


@pytest.fixture
def own_server(own_folder: Path) -> Iterator[EmbeddedPostgres]:
    """A server for this test alone, which may stop or crash it; what was committed survives."""
    server = EmbeddedPostgres(own_folder, {"fsync": "off"})
    server.start()
    yield server
    server.stop("immediate")


@pytest.fixture(scope="session")
def postgres_server(initialised: Path) -> Iterator[EmbeddedPostgres]:
    """The server that all tests share; a test that stops a server takes ``own_server``."""
    with tempfile.TemporaryDirectory(prefix="amprenta-test-", dir=in_memory()) as folder:
        server = EmbeddedPostgres(
            copy_server(initialised, Path(folder, "postgres")),
            {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"},
        )
        server.start()
        yield server
        server.stop("immediate")


def load_template(*, host: str, port: int, user: str, dbname: str, **_: object) -> None:
    """Upgrade the database that ``upgraded_url`` clones. Called by pytest-postgresql."""
    from amprenta_vectors.migrate import upgrade

    url = sa.URL.create("postgresql", user, database=dbname, query={"host": host, "port": str(port)})
    upgrade(Settings.load(database_url=url.render_as_string(hide_password=False), vector_dimension=DIMENSION))


@pytest.fixture(scope="session")
def upgraded_template(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The name of a database at head, made once."""
    with janitor(postgres_server, "upgraded_template", as_template=True) as template:
        template.load(load_template)
        yield template.dbname


@pytest.fixture
def database_url(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The URL of an empty database without pgvector, for this test alone."""
    with janitor(postgres_server, "empty") as database:
        yield postgres_server.url(database.dbname)


@pytest.fixture
def upgraded_url(postgres_server: EmbeddedPostgres, upgraded_template: str) -> Iterator[str]:
    """The URL of a database at head with `DIMENSION` dimensions, for this test alone."""
    with janitor(postgres_server, "upgraded", template=upgraded_template) as database:
        yield postgres_server.url(database.dbname)


def load_documents_template(*, host: str, port: int, user: str, dbname: str, **_: object) -> None:
    """Upgrade the database that ``documents_url`` clones."""
    from amprenta_vectors.migrate import upgrade

    url = sa.URL.create("postgresql", user, database=dbname, query={"host": host, "port": str(port)})
    text = url.render_as_string(hide_password=False)
    upgrade(Settings.load(database_url=text, vector_dimension=DOCUMENT_DIMENSION), "documents")


@pytest.fixture(scope="session")
def documents_template(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The name of a database with the section ``documents`` at head, made once."""
    with janitor(postgres_server, "documents_template", as_template=True) as template:
        template.load(load_documents_template)
        yield template.dbname


@pytest.fixture
def documents_url(postgres_server: EmbeddedPostgres, documents_template: str) -> Iterator[str]:
    """The URL of a database with ``vector_documents`` of `DOCUMENT_DIMENSION` dimensions, for this test alone."""
    with janitor(postgres_server, "documents", template=documents_template) as database:
        yield postgres_server.url(database.dbname)


def load_embedded_template(*, host: str, port: int, user: str, dbname: str, **_: object) -> None:
    """Upgrade the database that ``embedded_url`` clones, and fill it with real texts and their embeddings."""
    from amprenta_vectors.migrate import upgrade

    url = sa.URL.create("postgresql", user, database=dbname, query={"host": host, "port": str(port)})
    settings = Settings.load(database_url=url.render_as_string(hide_password=False), vector_dimension=256)
    upgrade(settings)
    engine = create_engine(settings)
    embed_rows(engine, TEXTS)
    engine.dispose()


@pytest.fixture(scope="session")
def embedded_template(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The name of a database with ``rag_chunks`` full of texts and their vectors, made once."""
    with janitor(postgres_server, "embedded_template", as_template=True) as template:
        template.load(load_embedded_template)
        yield template.dbname


@pytest.fixture
def embedded_url(postgres_server: EmbeddedPostgres, embedded_template: str) -> Iterator[str]:
    """The URL of a database with ``rag_chunks`` full of texts and their vectors, for this test alone."""
    with janitor(postgres_server, "embedded", template=embedded_template) as database:
        yield postgres_server.url(database.dbname)


def load_models_template(*, host: str, port: int, user: str, dbname: str, **_: object) -> None:
    """Upgrade the database that ``models_url`` clones."""
    from amprenta_vectors.migrate import upgrade

    url = sa.URL.create("postgresql", user, database=dbname, query={"host": host, "port": str(port)})
    upgrade(Settings.load(database_url=url.render_as_string(hide_password=False)), "models")


@pytest.fixture(scope="session")
def models_template(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The name of a database with the section ``models`` at head, made once."""
    with janitor(postgres_server, "models_template", as_template=True) as template:
        template.load(load_models_template)
        yield template.dbname


@pytest.fixture
def models_url(postgres_server: EmbeddedPostgres, models_template: str) -> Iterator[str]:
    """The URL of a database with documents, chunks and chunk_embeddings, empty, for this test alone."""
    with janitor(postgres_server, "models", template=models_template) as database:
        yield postgres_server.url(database.dbname)


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """Each pair of driver and mode in turn; a test that asks for one alone parametrizes it."""
    with closing(Pair(request.param)) as opened:
        yield opened


@pytest.fixture
def engine(upgraded_url: str) -> Iterator[sa.Engine]:
    """An engine on ``upgraded_url``, made as the package makes its own."""
    engine = create_engine(Settings.load(database_url=upgraded_url))
    yield engine
    engine.dispose()


@pytest.fixture
def emulator() -> Iterator[Callable[..., PineconeEmulator]]:
    """A function that starts a Pinecone emulator, in memory unless it is given a file; all end with the test."""
    with ExitStack() as running:

        def start(
            dimension: int = DIMENSION, metric: str = "cosine", path: Path | None = None, **kind: Any
        ) -> PineconeEmulator:
            return running.enter_context(
                PineconeEmulator(
                    path,
                    name=INDEX_NAME,
                    dimension=dimension,
                    metric=metric,
                    api_key=API_KEY,
                    **kind,
                )
            )

        yield start
