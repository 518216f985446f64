"""What is shown of URLs, and of texts from outside: no secret, and nothing that speaks to a terminal."""

from __future__ import annotations

import ast
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

import amprenta_vectors
from amprenta_vectors.config import Settings
from amprenta_vectors.db import engine_url
from amprenta_vectors.errors import AmprentaError, ConfigError
from amprenta_vectors.shown import printable, show_url, show_urls

SECRET = "S3CR3T"
around = st.text("ab1@/?#:&=%+ []", max_size=4)


@settings(deadline=None)
@given(around, around, st.sampled_from(["postgresql", "postgresql+psycopg2", "http", "https", "grpc"]), st.booleans())
def test_no_password_of_whatever_characters_is_shown(before: str, after: str, scheme: str, encoded: bool) -> None:
    password = before + SECRET + after
    url = f"{scheme}://user:{quote(password, safe='') if encoded else password}@host:1234/name"
    assert SECRET not in show_url(url)
    if encoded or " " not in password:
        assert SECRET not in show_urls(f"request to {url} failed")


@settings(deadline=None)
@given(around, around)
def test_a_url_with_a_secret_in_it_is_refused_without_it_or_leads_where_it_says(before: str, after: str) -> None:
    given_settings = Settings.load(database_url=f"postgresql://user:{before}{SECRET}{after}@host:1234/name")
    if "@" in before + after:
        with pytest.raises(ConfigError, match="DATABASE_URL") as caught:
            engine_url(given_settings)
        assert SECRET not in str(caught.value)
    else:
        found = engine_url(given_settings)
        assert (found.host, found.database) == ("host", "name")


@pytest.mark.parametrize("name", ["password", "sslpassword", "options", "oauth_client_secret", "anything"])
def test_of_a_databases_parameters_only_the_harmless_are_shown(name: str) -> None:
    url = sa.URL.create("postgresql", "me", "x", "h", 5432, "db", {name: SECRET, "sslmode": "require", "host": "a"})
    assert show_url(url.render_as_string(hide_password=False)) == "postgresql://me@h:5432/db?host=a&sslmode=require"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host.example/path?key=S3CR3T", "https://host.example"),
        ("http://S3CR3T@host:11434", "http://host:11434"),
        ("me:S3CR3T@host:8000", "host:8000"),
        ("host:8000", "host:8000"),
        ("http://[::1]:11434", "http://[::1]:11434"),
        ("postgresql:///db?host=%2Ftmp&port=5433", "postgresql:///db?host=%2Ftmp&port=5433"),
    ],
)
def test_what_is_no_secret_of_a_url_is_shown(url: str, shown: str) -> None:
    assert show_url(url) == shown


@pytest.mark.parametrize(
    "name", ["pinecone_controller_host", "pinecone_grpc_host", "ollama_host", "google_gemini_base_url", "chroma_host"]
)
@pytest.mark.parametrize("address", ["http://me:S3CR3T/x@host", "http://me:a@host:S3CR3T", "me:a/S3CR3T@host"])
def test_an_address_that_cannot_be_read_is_refused_without_being_shown(name: str, address: str) -> None:
    with pytest.raises(ConfigError, match=name.upper()) as caught:
        Settings.load(**{name: address})
    assert SECRET not in str(caught.value)


def test_a_url_in_the_place_of_a_host_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigError, match="a whole URL is for DATABASE_URL") as caught:
        Settings.load(postgres_host=f"postgresql://me:{SECRET}@host/db")
    assert SECRET not in str(caught.value)


@settings(deadline=None)
@given(st.text())
def test_a_printed_text_is_one_line_that_does_not_speak_to_the_terminal(text: str) -> None:
    assert printable(text).isprintable()
    error = str(AmprentaError(text, hint=text + "."))
    assert [line.isprintable() for line in error.split("\n")] == [True, True]


def test_nothing_but_the_printer_prints() -> None:
    """Of the commands; what prints SQL to be run, and tables that are laid out, is named."""
    folder = Path(amprenta_vectors.__file__).parent
    exempt = {"cli/printer.py": {"echo"}, "cli/table_text.py": {"print"}}
    for path in [*folder.glob("cli/*.py"), *folder.glob("moves/*.py"), *folder.glob("backfill/**/*.py")]:
        called = {
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
        }
        assert called & {"echo", "secho", "print", "basicConfig"} <= exempt.get(
            path.relative_to(folder).as_posix(), set()
        ) | ({"basicConfig"} if path.name == "printer.py" else set()), path
