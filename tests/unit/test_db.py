"""How a database is reached, what its errors mean, and which servers are refused; nothing here connects."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import asyncpg
import psycopg2
import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError

from amprenta_vectors import db
from amprenta_vectors.config import Settings
from amprenta_vectors.db import (
    UnencryptedConnection,
    check_connection,
    create_async_engine,
    create_engine,
    engine_url,
)
from amprenta_vectors.errors import AmprentaError, ConfigError, ServerUnsuitable, TransientError
from amprenta_vectors.pg.errors import is_row_refusal, is_transient, to_error
from amprenta_vectors.server import check_server, parse_version

REMOTE = "postgresql://me:hunter2@db.example.com/app"


def of(url: str, **settings: Any) -> Settings:
    return Settings.load(database_url=url, **settings)


@pytest.mark.parametrize("kind", ["postgres", "postgresql", "postgresql+psycopg2"])
def test_every_usual_kind_of_postgresql_url_is_understood(kind: str) -> None:
    assert engine_url(of(f"{kind}://me@host/db")).drivername == "postgresql+psycopg2"


@pytest.mark.parametrize("url", ["no url", "postgresql://me:hunter2@host:port/db", "://", "hunter2"])
def test_a_malformed_url_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ConfigError, match="DATABASE_URL is not a database URL") as caught:
        engine_url(of(url))
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("kind", ["mysql", "sqlite", "postgresql+pg8000", "redis"])
def test_a_url_of_another_kind_is_refused_by_its_kind(kind: str) -> None:
    with pytest.raises(ConfigError, match="expected postgresql") as caught:
        engine_url(of(f"{kind}://me:hunter2@host/db"))
    assert repr(kind) in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_url_of_an_asynchronous_driver_is_read_by_libpq_too() -> None:
    given = "postgresql+asyncpg://me:pw@host:5433/db?ssl=verify-full&prepared_statement_cache_size=0&sslrootcert=ca.pem"
    url = engine_url(of(given))
    assert url.drivername == "postgresql+psycopg2"
    assert url.query == {"sslmode": "verify-full", "sslrootcert": "ca.pem"}
    assert (url.username, url.password, url.host, url.port, url.database) == ("me", "pw", "host", 5433, "db")
    for kind in ("postgresql+psycopg", "postgresql+psycopg_async"):
        assert engine_url(of(f"{kind}://host/db?sslmode=require")).query == {"sslmode": "require"}


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("postgresql://host/db?sslmode=require&sslrootcert=ca.pem", "asyncpg"),
        ("postgresql+asyncpg://host/db?ssl=require&sslrootcert=ca.pem", "asyncpg"),
        ("postgresql+psycopg://host/db?sslmode=require&sslrootcert=ca.pem", "psycopg"),
    ],
)
def test_an_asynchronous_engine_is_on_the_driver_of_the_url_and_names_no_statement(url: str, driver: str) -> None:
    engine = create_async_engine(of(url))
    assert engine.url.drivername == f"postgresql+{driver}"
    _, sent = engine.dialect.create_connect_args(engine.url)
    if driver == "asyncpg":
        # asyncpg reads what libpq knows from a URL alone.
        assert "sslmode" not in sent
        assert db._asyncpg_arguments(engine_url(of(url)), "name")[1] == {
            "dsn": "postgresql://?sslmode=require&sslrootcert=ca.pem",
            "timeout": 10,
            "server_settings": {"application_name": "name"},
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
        }
    else:
        assert sent["sslmode"] == "require"
        assert db._libpq_arguments("psycopg", "name")["prepare_threshold"] is None


def test_a_malformed_url_for_migrations_is_refused_by_its_own_name() -> None:
    with pytest.raises(ConfigError, match="MIGRATION_DATABASE_URL is not a database URL"):
        engine_url(of(REMOTE, migration_database_url="no url"), migrations=True)


def test_tls_settings_reach_the_driver_with_any_characters_in_a_path() -> None:
    settings = of(
        "postgresql://me:100%25@host/db",
        postgres_sslmode="verify-full",
        postgres_sslrootcert="/etc/50% safe/root ca.crt",
        postgres_sslcert="/etc/client.crt",
        postgres_sslkey="/etc/client.key",
    )
    for migrations in (False, True):
        engine = create_engine(settings, migrations=migrations)
        _, arguments = engine.dialect.create_connect_args(engine.url)
        assert arguments["password"] == "100%"
        assert {name: value for name, value in arguments.items() if name.startswith("ssl")} == {
            "sslmode": "verify-full",
            "sslrootcert": "/etc/50% safe/root ca.crt",
            "sslcert": "/etc/client.crt",
            "sslkey": "/etc/client.key",
        }


def test_tls_settings_reach_a_url_composed_of_parts_and_the_url_for_migrations() -> None:
    composed = Settings.load(postgres_host="host", postgres_sslmode="require")
    assert engine_url(composed).query["sslmode"] == "require"
    direct = of("postgresql://pooler/db", migration_database_url="postgresql://direct/db", postgres_sslmode="require")
    assert engine_url(direct, migrations=True).query["sslmode"] == "require"


def test_what_the_url_itself_says_of_tls_comes_first() -> None:
    url = engine_url(of(f"{REMOTE}?sslmode=verify-ca", postgres_sslmode="require", postgres_sslrootcert="/ca"))
    assert dict(url.query) == {"sslmode": "verify-ca", "sslrootcert": "/ca"}


@pytest.mark.parametrize("mode", [None, "disable", "allow", "prefer"])
@pytest.mark.parametrize("host", ["db.example.com", "10.0.0.7", "[2001:db8::1]"])
def test_a_remote_connection_that_may_be_unencrypted_is_warned_about(host: str, mode: Any) -> None:
    with pytest.warns(UnencryptedConnection, match="POSTGRES_SSLMODE=verify-full") as caught:
        create_engine(of(f"postgresql://me:hunter2@{host}/app", postgres_sslmode=mode))
    assert host.strip("[]") in str(caught[0].message)
    assert "hunter2" not in str(caught[0].message)


@pytest.mark.parametrize(
    "url",
    [
        f"{REMOTE}?sslmode=require",
        f"{REMOTE}?sslmode=verify-full",
        "postgresql://me@localhost/db",
        "postgresql://me@127.0.0.1:5432/db",
        "postgresql://me@[::1]/db",
        "postgresql://me@/db?host=/var/run/postgresql",
        "postgresql:///db",
    ],
)
def test_an_encrypted_or_local_connection_is_not_warned_about(url: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_engine(of(url))


@pytest.fixture
def service_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the file of services that libpq reads."""
    path = tmp_path / "pg_service.conf"
    path.write_text(
        "# ours\n[remote]\nhost=db.example.com\nport=5432\n\n[sure]\nhost = db.example.com\nsslmode = verify-full\n"
        "[here]\nhost=/tmp\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(path))


@pytest.mark.usefixtures("service_file")
@pytest.mark.parametrize(
    ("url", "variables", "host"),
    [
        ("postgresql:///db?hostaddr=10.0.0.7", {}, "10.0.0.7"),
        ("postgresql://localhost/db?hostaddr=10.0.0.7", {}, "10.0.0.7"),
        ("postgresql:///db", {"PGHOST": "db.example.com"}, "db.example.com"),
        ("postgresql:///db", {"PGHOST": "/tmp,db.example.com"}, "db.example.com"),
        ("postgresql:///db", {"PGHOSTADDR": "10.0.0.7", "PGHOST": "localhost"}, "10.0.0.7"),
        ("postgresql:///db?service=remote", {}, "db.example.com"),
        ("postgresql:///db", {"PGSERVICE": "remote"}, "db.example.com"),
        ("postgresql:///db?service=remote", {"PGHOST": "localhost"}, "db.example.com"),
        ("postgresql:///db?service=unheard-of", {}, "service unheard-of"),
        (REMOTE, {"PGSSLMODE": "allow"}, "sslmode=allow"),
        (f"{REMOTE}?sslmode=prefer", {"PGSSLMODE": "verify-full"}, "sslmode=verify-full into its URL"),
    ],
)
def test_whatever_names_a_remote_host_to_libpq_is_warned_about(
    url: str, variables: dict[str, str], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.warns(UnencryptedConnection, match=re.escape(host)):
        create_engine(of(url))


@pytest.mark.usefixtures("service_file")
@pytest.mark.parametrize(
    ("url", "variables"),
    [
        (REMOTE, {"PGSSLMODE": "verify-full"}),
        (REMOTE, {"PGSSLMODE": "require"}),
        (REMOTE, {"PGREQUIRESSL": "1"}),
        (REMOTE, {"PGSSLROOTCERT": "system"}),
        (f"{REMOTE}?hostaddr=127.0.0.1", {}),
        ("postgresql:///db?service=sure", {}),
        ("postgresql:///db?service=here", {"PGHOST": "db.example.com"}),
        ("postgresql:///db", {"PGSERVICE": "sure"}),
        ("postgresql://localhost/db", {"PGHOST": "db.example.com"}),
        ("postgresql:///db", {"PGHOST": ""}),
    ],
)
def test_whatever_makes_libpq_encrypt_or_stay_here_is_not_warned_about(
    url: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_engine(of(url))


def test_an_engine_has_as_many_connections_as_are_asked_for() -> None:
    engine = create_engine(of("postgresql://localhost/db"), pool_size=7)
    assert engine.pool.size() == 7  # type: ignore[attr-defined]


class Failure(psycopg2.OperationalError):
    """A driver error with the SQLSTATE that a server would send."""

    pgcode = None

    def __init__(self, state: str | None, message: str = "it failed") -> None:
        super().__init__(message)
        self.pgcode = state


@pytest.mark.parametrize("state", ["08006", "40001", "40P01", "53300", "53100", "55P03", "57014", "57P01", "57P03"])
def test_outages_deadlocks_and_time_outs_are_worth_another_try(state: str) -> None:
    error = OperationalError("SELECT 1", {}, Failure(state))
    assert is_transient(error)
    assert isinstance(to_error(error, "writing a batch"), TransientError)


@pytest.mark.parametrize("state", ["42501", "42703", "28P01", "3D000", "22003", "23505"])
def test_a_wrong_statement_password_or_row_is_not_worth_another_try(state: str) -> None:
    error = ProgrammingError("SELECT 1", {}, Failure(state))
    assert not is_transient(error)
    assert type(to_error(error, "writing a batch")) is AmprentaError


def test_a_lost_connection_has_no_state_and_is_worth_another_try() -> None:
    assert is_transient(OperationalError("SELECT 1", {}, Failure(None)))
    assert is_transient(psycopg2.InterfaceError("connection already closed"))
    assert is_transient(psycopg2.DatabaseError("server closed the connection unexpectedly"))
    assert not is_transient(psycopg2.ProgrammingError("can't adapt type 'object'"))


@pytest.mark.parametrize(("state", "of_row"), [("22003", True), ("23514", True), ("P0001", True), ("42P01", False)])
def test_a_refused_row_is_told_from_a_refused_statement(state: str, of_row: bool) -> None:
    assert is_row_refusal(Failure(state)) is of_row


def test_an_error_is_one_line_that_says_what_was_being_done() -> None:
    error = to_error(OperationalError("SELECT 1", {}, Failure("08006", "gone\nfor good\n")), "writing batch 7")
    assert str(error) == "writing batch 7: gone for good"


@pytest.mark.parametrize(
    ("text", "version"), [("0.8.5", (0, 8, 5)), ("0.8", (0, 8)), ("0.10.0", (0, 10, 0)), ("0.8.0-dev", (0, 8))]
)
def test_a_version_is_compared_by_its_numbers(text: str, version: tuple[int, ...]) -> None:
    assert parse_version(text) == version


@pytest.mark.parametrize(
    ("server", "pgvector", "message"),
    [
        (130012, "0.8.5", "PostgreSQL 13 is too old; expected 14 or newer"),
        (90624, "0.8.5", "PostgreSQL 9 is too old"),
        (180000, None, 'extension "vector" is not available'),
        (180000, "0.6.2", "pgvector 0.6.2 is too old; expected 0.8.0 or newer"),
    ],
)
def test_a_server_that_cannot_work_is_refused_with_what_to_do(server: int, pgvector: str | None, message: str) -> None:
    with pytest.raises(ServerUnsuitable, match=message) as caught:
        check_server(server, pgvector)
    assert caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("pgvector", ["0.8.0", "0.8.1", "0.8.3"])
def test_a_pgvector_with_known_faults_is_warned_about(pgvector: str) -> None:
    (warning,) = check_server(140000, pgvector)
    assert f"pgvector {pgvector} has known faults" in warning
    assert "0.8.4" in warning


@pytest.mark.parametrize("pgvector", ["0.8.4", "0.8.5", "0.10.0", "1.0.0"])
def test_a_sound_server_is_accepted_without_a_word(pgvector: str) -> None:
    assert check_server(180000, pgvector) == []


def test_an_at_sign_left_in_a_password_is_refused_without_printing_any_of_it() -> None:
    with pytest.raises(ConfigError) as caught:
        engine_url(Settings.load(database_url="postgresql://user:first@second@127.0.0.1:1/app"))
    assert "%40" in str(caught.value)
    assert "first" not in str(caught.value)
    assert "second" not in str(caught.value)


def test_a_password_in_the_query_of_the_url_is_never_printed() -> None:
    url = "postgresql://user@127.0.0.1:1/app?password=in-the-query"
    engine = create_engine(Settings.load(database_url=url))
    with pytest.raises(ConfigError) as caught:
        check_connection(engine)
    assert "in-the-query" not in str(caught.value)


@pytest.mark.parametrize("query", ["host=db1.example.com&host=db2.example.com", "host=/tmp,db1.example.com"])
def test_every_one_of_several_hosts_counts_for_the_warning_about_tls(query: str) -> None:
    with pytest.warns(UnencryptedConnection, match=r"db1\.example\.com"):
        create_engine(Settings.load(database_url=f"postgresql://user@/app?{query}"))


def test_what_asyncpg_raises_itself_is_told_without_the_row_and_is_transient_where_the_socket_fails() -> None:
    fields = {"S": "ERROR", "C": "23514", "M": "violates a constraint", "D": "Failing row contains (secret)."}
    refused = asyncpg.exceptions.PostgresError.new(fields)
    assert to_error(refused, "writing").message == "writing: violates a constraint"
    assert not is_transient(refused)
    # An error of the interface to PEP 249, and of the value to whoever gave it.
    assert not is_transient(asyncpg.exceptions.DataError("value out of int32 range"))
    assert is_transient(asyncpg.exceptions.InterfaceError("connection is closed"))
    assert is_transient(ConnectionRefusedError(111, "Connect call failed"))
