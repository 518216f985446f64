"""No command tells a secret or lets a name speak to the terminal, whatever is planted in what it is given."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import quote

import click
import numpy as np
import pytest
import sqlalchemy as sa
from click.testing import CliRunner
from cryptography.fernet import Fernet

from amprenta_vectors.cli import main
from amprenta_vectors.sandbox.pinecone import PineconeEmulator

PLANTED = "S3CR3T"
KEY = f"pc-{PLANTED}-key"
FERNET = Fernet.generate_key().decode()
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "backfill": ("--keys-from", "source"),
    "report": ("1",),
    "db upgrade": ("--sql",),
    "products search": ("a red coat",),
    "documents remove-files": ("--yes",),
}
"""What a command is given that has to be given something, or does more with it."""
LAST = ("index drop", "db downgrade")
STARTS_SERVERS = "sandbox"
"""Its commands have servers and keys of their own, and take nothing from the environment."""


def every_command(command: click.Command = main, name: str = "") -> Iterator[str]:
    if not isinstance(command, click.Group):
        yield name
        return
    context = click.Context(command)
    for part in command.list_commands(context):
        found = command.get_command(context, part)
        if part != STARTS_SERVERS and found is not None:
            yield from every_command(found, f"{name} {part}".strip())


def with_secrets(url: str) -> str:
    """The URL of a server that asks for no password, with one in each part that takes one."""
    given = {"password": f"{PLANTED}/@?", "sslpassword": PLANTED, "options": f"-c amprenta.note={PLANTED}"}
    more = "".join(f"&{name}={quote(value, safe='')}" for name, value in given.items())
    return url.replace("://postgres@", f"://postgres:{PLANTED}%40%2F@") + more


@contextmanager
def server_that_quotes_what_it_refuses(status: int) -> Iterator[str]:
    """The address of a server that refuses everything and quotes the key, or the address, that it was sent."""

    class Refusing(BaseHTTPRequestHandler):
        def refuse(self) -> None:
            sent = dict(self.headers) if status in (401, 403) else f"http://me:{PLANTED}@{self.headers['Host']}"
            body = f"{status} for {self.path}: {sent!r}".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = refuse  # noqa: N815 - the names are the library's

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://me:{PLANTED}@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def environment(upgraded_url: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    with PineconeEmulator(None, name="test-index", dimension=8, metric="cosine", api_key=KEY) as index:
        index.load("", ["a", "b"], np.eye(2, 8, dtype=np.float32), [{"text": "one"}, {"text": "two"}])
        yield {
            "DATABASE_URL": with_secrets(upgraded_url),
            "MIGRATION_DATABASE_URL": with_secrets(upgraded_url),
            "READ_DATABASE_URL": with_secrets(upgraded_url),
            "PINECONE_API_KEY": KEY,
            "PINECONE_INDEX_NAME": "test-index",
            "PINECONE_CONTROLLER_HOST": index.host.replace("://", f"://me:{PLANTED}@"),
            "PINECONE_GRPC_HOST": index.grpc_host,
            "VECTOR_STORE_ENCRYPTION_KEY": FERNET,
            "SIMPLE_STORE_ROOT": str(tmp_path),
            "CHROMA_PATH": str(tmp_path / "chroma"),
            "OLLAMA_HOST": f"http://me:{PLANTED}@127.0.0.1:1",
            "AMPRENTA_EMBEDDER": "ollama",
            "GOOGLE_API_KEY": f"AI-{PLANTED}",
            "GEMINI_API_KEY": f"AI-{PLANTED}",
            "GOOGLE_GEMINI_BASE_URL": f"http://me:{PLANTED}@127.0.0.1:1",
            "OPENAI_API_KEY": f"sk-{PLANTED}",
            "OPENAI_BASE_URL": f"http://me:{PLANTED}@127.0.0.1:1",
            "AMPRENTA_JWT_ALGORITHM": "HS256",
            "AMPRENTA_JWT_SECRET": PLANTED,
            "AMPRENTA_JWT_ISSUER": "issuer",
            "AMPRENTA_JWT_AUDIENCE": "audience",
            "AMPRENTA_REPORT": str(tmp_path / "reports"),
            "AMPRENTA_RETRY_SECONDS": "0",
        }


@pytest.fixture
def run(caplog: pytest.LogCaptureFixture) -> Callable[..., str]:
    """A function that runs a command; returns all that it printed, raised and logged."""
    caplog.set_level(logging.DEBUG, "amprenta_vectors")

    def run(environment: Mapping[str, str], command: str, *arguments: str) -> str:
        result = CliRunner().invoke(main, [*command.split(), *arguments], env=dict(environment))
        raised = "" if isinstance(result.exception, SystemExit | None) else repr(result.exception)
        return result.output + raised + "".join(record.getMessage() for record in caplog.records)

    return run


def told(text: str) -> bool:
    return PLANTED in text or FERNET in text


def processes() -> str:
    """The command line of every process, as `ps` shows it."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            lines.append(path.read_text(errors="replace"))
    return "\n".join(lines)


def everything_stored(engine: sa.Engine) -> str:
    """Every value of every table, and what the server shows of its sessions."""
    with engine.connect() as connection:
        names = connection.scalars(
            sa.text(
                "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
            )
        ).all()
        queries = [*(f"SELECT t::text FROM {name} t" for name in names), "SELECT s::text FROM pg_stat_activity s"]
        return "\n".join(str(row) for query in queries for row in connection.exec_driver_sql(query).scalars())


def test_no_command_tells_a_secret(
    environment: dict[str, str], run: Callable[..., str], engine: sa.Engine, tmp_path: Path
) -> None:
    commands = sorted(every_command(), key=lambda name: (name in LAST, name != "backfill", name))
    assert len(commands) > 30
    for command in commands:
        said = run(environment, command, *ARGUMENTS.get(command, ()))
        assert not told(said), (command, said)
        assert not told(processes()), command
    for more in (("--dry-run",), ("--dry-run", "--offline"), ("--json", "--restart")):
        assert not told(run(environment, "backfill", "--keys-from", "source", *more)), more
    pages = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".html" for path in pages)
    assert not any(told(path.read_text(errors="replace")) for path in pages)
    run(environment, "db upgrade")
    assert not told(everything_stored(engine))


@pytest.mark.parametrize("status", [401, 403, 404, 400, 500])
def test_what_a_server_quotes_is_not_repeated(
    environment: dict[str, str], run: Callable[..., str], status: int
) -> None:
    with server_that_quotes_what_it_refuses(status) as address:
        refused = environment | {
            "PINECONE_CONTROLLER_HOST": address,
            "OLLAMA_HOST": address,
            "GOOGLE_GEMINI_BASE_URL": address,
            "OPENAI_BASE_URL": address,
        }
        for command in ("backfill", "sources inspect", "canary", "verify", "doctor"):
            assert not told(run(refused, command)), command
        for embedder in ("ollama", "gemini", "openai"):
            rows = refused | {"AMPRENTA_EMBEDDER": embedder, "VECTOR_DIMENSION": "8"}
            assert not told(run(rows, "backfill", "--source", "rows")), embedder


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", f"postgresql://me:{PLANTED}@127.0.0.1:1/db?password={PLANTED}"),
        ("DATABASE_URL", f"postgresql://me:a@{PLANTED}@127.0.0.1/db"),
        ("DATABASE_URL", f"postgresql://me:a/{PLANTED}"),
        ("DATABASE_URL", f"host=127.0.0.1 password={PLANTED}"),
        ("PINECONE_CONTROLLER_HOST", f"http://me:{PLANTED}@127.0.0.1:1"),
        ("PINECONE_CONTROLLER_HOST", f"http://me:a/{PLANTED}@127.0.0.1:1"),
        ("PINECONE_GRPC_HOST", f"http://me:{PLANTED}@example.invalid:1"),
        ("PINECONE_API_KEY", f"{PLANTED}\n"),
        ("CHROMA_HOST", f"http://me:{PLANTED}@127.0.0.1"),
        ("VECTOR_STORE_ENCRYPTION_KEY", PLANTED),
        ("POSTGRES_HOST", f"postgresql://me:{PLANTED}@127.0.0.1/db"),
    ],
)
def test_a_setting_that_leads_nowhere_is_named_without_its_secret(
    environment: dict[str, str], run: Callable[..., str], variable: str, value: str
) -> None:
    wrong = environment | {variable: value}
    for command in (
        "backfill",
        "sources inspect",
        "canary",
        "doctor",
        "documents migrate",
        "products migrate",
        "db plan",
    ):
        assert not told(run(wrong, command)), command
    assert not told(run(wrong, "backfill", "--dry-run", "--offline"))
    for source in ("chroma", "simple"):
        assert not told(run(wrong, "sources inspect", "--source", source)), source


SPEAKS = "x\x1b[2J\x1b]0;title\x07\x9b1m\u202e\r\nforged: all is well\n"


def test_no_name_and_no_error_speaks_to_the_terminal_or_makes_a_line_of_its_own(
    environment: dict[str, str], run: Callable[..., str], engine: sa.Engine
) -> None:
    run(environment, "backfill", "--keys-from", "source")
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE migration_run SET source = :s, last_error = :s, throttle_reason = :s"), {"s": SPEAKS}
        )
        connection.execute(sa.text("UPDATE rag_chunks SET chunk_id = :s WHERE chunk_id = 'a'"), {"s": SPEAKS})
    names = (
        "PINECONE_INDEX_NAME",
        "PINECONE_NAMESPACE",
        "AMPRENTA_TABLE",
        "SIMPLE_STORE_ROOT",
        "CHROMA_PATH",
        "CHROMA_COLLECTION",
        "VECTOR_BACKEND",
        "EMBEDDING_MODEL",
    )
    commands = [name for name in every_command() if name not in LAST]
    for planted in [{}, *({name: SPEAKS} for name in names)]:
        for command in (
            commands if not planted else ("backfill", "canary", "doctor", "documents migrate", "sources inspect")
        ):
            said = run(environment | planted, command, *ARGUMENTS.get(command, ()))
            assert not {"\x1b", "\x07", "\x9b", "\u202e", "\r"} & set(said), (command, planted, said)
            assert not any(line.startswith("forged") for line in said.splitlines()), (command, planted, said)
