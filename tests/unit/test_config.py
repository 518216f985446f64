"""Settings come from the environment once, say what is wrong with it by name, and never show a secret."""

from __future__ import annotations

from typing import Any

import pytest

from amprenta_vectors.config import Settings
from amprenta_vectors.db import engine_url
from amprenta_vectors.errors import ConfigError

PASSWORDS = ["simple", "p@ss:w/rd", "100%", "%40", "a b+c", "#?&=", "ключ", "[brackets]", "back\\slash", "'\""]


def composed(**parts: Any) -> Any:
    return engine_url(Settings.load(**{"postgres_host": "db.example.com", **parts}))


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_password_of_any_characters_reaches_the_driver_unchanged(password: str) -> None:
    url = composed(postgres_password=password, postgres_sslmode="require")
    assert url.password == password
    assert (url.host, url.port) == ("db.example.com", 5432)


@pytest.mark.parametrize("name", ["me@example.com", "a/b", "50%", "ключ"])
def test_a_user_and_a_database_of_any_characters_reach_the_driver_unchanged(name: str) -> None:
    url = composed(postgres_user=name, postgres_db=name)
    assert (url.username, url.database) == (name, name)


def test_the_parts_have_postgresqls_own_defaults() -> None:
    url = composed()
    assert (url.port, url.username, url.password, url.database) == (5432, "postgres", None, "postgres")


def test_every_part_is_used() -> None:
    url = composed(postgres_port=6543, postgres_db="app", postgres_user="me", postgres_password="secret")
    assert url.render_as_string(hide_password=False) == "postgresql+psycopg2://me:secret@db.example.com:6543/app"


def test_an_ipv6_address_is_a_host() -> None:
    url = composed(postgres_host="::1", postgres_port=6543)
    assert (url.host, url.port) == ("::1", 6543)


def test_a_folder_as_host_is_a_unix_socket() -> None:
    url = composed(postgres_host="/var/run/my sockets", postgres_port=6543, postgres_password="p@ss")
    assert (url.host, url.password) == (None, "p@ss")
    assert dict(url.query) == {"host": "/var/run/my sockets", "port": "6543"}


def test_database_url_comes_before_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@one/db")
    monkeypatch.setenv("POSTGRES_HOST", "two")
    assert engine_url(Settings.load()).host == "one"


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "")
    monkeypatch.setenv("VECTOR_DIMENSION", "")
    monkeypatch.setenv("POSTGRES_HOST", "two")
    settings = Settings.load()
    assert engine_url(settings).host == "two"
    assert settings.vector_dimension is None


@pytest.mark.parametrize("variable", ["THRESHOLDS", "SOURCE_LIMITS"])
def test_a_variable_that_has_the_name_of_a_group_is_another_applications(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "of another's")
    monkeypatch.setenv("AMPRENTA_MAX_LOCK_WAITERS", "9")
    monkeypatch.setenv("AMPRENTA_LIST_PER_SECOND", "off")
    settings = Settings.load(max_wal_mb_per_second=3)
    assert (settings.thresholds.max_lock_waiters, settings.thresholds.max_wal_mb_per_second) == (9, 3)
    assert settings.source_limits.list_per_second is None


def test_migrations_have_a_url_of_their_own_where_it_is_given() -> None:
    settings = Settings.load(database_url="postgresql://pooler/db", migration_database_url="postgresql://direct/db")
    assert engine_url(settings).host == "pooler"
    assert engine_url(settings, migrations=True).host == "direct"
    assert engine_url(Settings.load(database_url="postgresql://one/db"), migrations=True).host == "one"


def test_without_any_database_setting_the_message_says_what_to_export() -> None:
    with pytest.raises(ConfigError, match="neither DATABASE_URL nor POSTGRES_HOST is set") as caught:
        engine_url(Settings.load())
    assert caught.value.exit_code == 2
    assert "export DATABASE_URL=postgresql://" in caught.value.hint


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("VECTOR_DIMENSION", "many"),
        ("VECTOR_DIMENSION", "0"),
        ("VECTOR_DIMENSION", "16001"),
        ("POSTGRES_PORT", "port"),
        ("POSTGRES_SSLMODE", "sometimes"),
        ("PINECONE_TRANSPORT", "pigeon"),
        ("AMPRENTA_BATCH_SIZE", "0"),
        ("AMPRENTA_WORKERS", "-1"),
        ("AMPRENTA_MIGRATION_LOCK_TIMEOUT", "soon"),
        ("AMPRENTA_JWT_ALGORITHM", "none"),
        ("AMPRENTA_REQUEST_SECONDS", "0"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError) as caught:
        Settings.load()
    assert variable in str(caught.value)
    assert repr(value) in str(caught.value)


def test_an_option_comes_before_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMPRENTA_BATCH_SIZE", "10")
    assert Settings.load().batch_size == 10
    assert Settings.load(batch_size=20).batch_size == 20
    assert Settings.load(batch_size=None).batch_size == 10


def test_the_wrong_value_of_an_option_is_refused_too() -> None:
    with pytest.raises(ConfigError, match="AMPRENTA_BATCH_SIZE"):
        Settings.load(batch_size=0)


def test_what_a_command_cannot_do_without_is_asked_for_by_the_name_of_its_variable() -> None:
    with pytest.raises(ConfigError, match="PINECONE_API_KEY is not set") as caught:
        Settings.load().require("pinecone_api_key")
    assert caught.value.hint == "export PINECONE_API_KEY=…"
    assert Settings.load(pinecone_api_key="k").require("pinecone_api_key") == "k"


def test_no_secret_is_shown_by_printing_the_settings() -> None:
    settings = Settings.load(
        database_url="postgresql://me:hunter2@host/db",
        migration_database_url="postgresql://me:hunter2@host/db",
        postgres_password="hunter2",
        pinecone_api_key="hunter2",
        jwt_secret="hunter2",
    )
    assert "hunter2" not in repr(settings) + str(settings)


def test_settings_do_not_change_after_they_are_read() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(Settings.load(), "table", "another")  # noqa: B010 - it is known to fail
