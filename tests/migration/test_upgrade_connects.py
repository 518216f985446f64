"""Databases that cannot be reached, or cannot be upgraded: exit code 2, the reason, what to do, never the password."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator

import psycopg2
import pytest
import sqlalchemy as sa
from migrating import Database
from poolers import free_port, pooled

from amprenta_vectors.errors import ServerUnsuitable
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres

Alembic = Callable[..., subprocess.CompletedProcess[str]]
SECRET = "hunter2:@/%"


def refused(done: subprocess.CompletedProcess[str], *messages: str, code: int = 2) -> None:
    assert done.returncode == code, done.stderr
    for message in messages:
        assert message in done.stderr
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert "hunter2" not in said


def url_of(db: Database, **changes: object) -> str:
    """The database's URL with some of it replaced."""
    return sa.engine.make_url(db.url).set(**changes).render_as_string(hide_password=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("command", [("alembic", "upgrade", "head"), ("amprenta_vectors", "db", "upgrade")])
def test_no_database_configured(typed: Alembic, command: tuple[str, ...]) -> None:
    done = typed(*command, DATABASE_URL="")
    refused(done, "neither DATABASE_URL nor POSTGRES_HOST is set", "export DATABASE_URL=postgresql://")


@pytest.mark.parametrize(
    "url",
    ["not a url", "postgresql://me:hunter2@host:port/db", "hunter2"],
    ids=["no url", "port is no number", "word"],
)
def test_a_malformed_url(alembic: Alembic, url: str) -> None:
    refused(alembic("upgrade", "head", DATABASE_URL=url), "DATABASE_URL is not a database URL", "export DATABASE_URL=")


@pytest.mark.parametrize("kind", ["mysql", "sqlite", "postgresql+pg8000"])
def test_a_url_of_another_kind(alembic: Alembic, kind: str) -> None:
    done = alembic("upgrade", "head", DATABASE_URL=f"{kind}://me:hunter2@host/db")
    refused(done, f"DATABASE_URL is of kind '{kind}'; expected postgresql")


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_url_of_the_applications_own_driver_is_upgraded_by(alembic: Alembic, db: Database, driver: str) -> None:
    url = sa.make_url(db.url).set(drivername=f"postgresql+{driver}").render_as_string(hide_password=False)
    done = alembic("upgrade", "core@head", DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    assert ("migration_progress",) in db.execute("SELECT relname::text FROM pg_class WHERE relkind = 'r'")


def test_a_refused_connection(alembic: Alembic) -> None:
    port = free_port()
    done = alembic("upgrade", "head", DATABASE_URL=f"postgresql://me:hunter2@127.0.0.1:{port}/db")
    refused(done, "cannot connect to database 'db' at 127.0.0.1", "Connection refused")
    assert "Connection refused Is the server running" in done.stderr


def test_a_database_that_does_not_exist(db: Database, alembic: Alembic) -> None:
    done = alembic("upgrade", "head", DATABASE_URL=url_of(db, database="nowhere", password=SECRET))
    refused(done, 'database "nowhere" does not exist', "check that the server runs")


def test_a_wrong_password_and_a_right_one(own_server: EmbeddedPostgres, alembic: Alembic) -> None:
    rules = own_server.folder / "pg_hba.conf"
    rules.write_text("local all migrator scram-sha-256\n" + rules.read_text())
    db = Database(own_server.url())
    db.execute("SELECT pg_reload_conf()")
    db.execute("CREATE ROLE migrator LOGIN SUPERUSER")
    literal = str(psycopg2.extensions.adapt(SECRET).getquoted(), "utf8")
    with psycopg2.connect(db.url) as connection:
        connection.cursor().execute(f"ALTER ROLE migrator PASSWORD {literal}")
    done = alembic("upgrade", "head", DATABASE_URL=url_of(db, username="migrator", password="hunter2 wrong"))
    refused(done, 'password authentication failed for user "migrator"', "check that the server runs")

    parts = {
        "DATABASE_URL": "",
        "POSTGRES_HOST": str(own_server.socket_folder),
        "POSTGRES_DB": "postgres",
        "POSTGRES_USER": "migrator",
        "POSTGRES_PASSWORD": SECRET,
    }
    done = alembic("upgrade", "head", **parts)
    assert done.returncode == 0, done.stderr
    assert db.columns("rag_chunks")


def test_a_server_without_pgvector(db: Database, alembic: Alembic) -> None:
    db.execute(f"ALTER DATABASE {db.scalar('SELECT current_database()')} SET extension_control_path = '/nonexistent'")
    done = alembic("upgrade", "head")
    refused(done, 'extension "vector" is not available on this server', "install pgvector", "Amazon RDS")
    assert [row[0] for row in db.catalogue()] == ["plpgsql"]


@pytest.mark.parametrize(
    ("versions", "message"),
    [((130012, "0.8.5"), "PostgreSQL 13 is too old"), ((180000, "0.6.2"), "pgvector 0.6.2 is too old")],
)
def test_a_server_that_is_too_old_is_refused_before_anything_is_made(
    db: Database, monkeypatch: pytest.MonkeyPatch, versions: tuple[int, str], message: str
) -> None:
    from amprenta_vectors import server

    check = server.check_server
    monkeypatch.setattr(server, "check_server", lambda *_: check(*versions))
    with pytest.raises(ServerUnsuitable, match=message):
        db.upgrade()
    assert [row[0] for row in db.catalogue()] == ["plpgsql"]


def as_migrator(db: Database) -> str:
    """A URL for a role that may make tables but not extensions, and owns nothing."""
    if not db.execute("SELECT FROM pg_roles WHERE rolname = 'plain_migrator'"):
        db.execute("CREATE ROLE plain_migrator LOGIN")
    db.execute("GRANT USAGE, CREATE ON SCHEMA public TO plain_migrator")
    return url_of(db, username="plain_migrator", password=SECRET)


def test_a_role_that_may_not_create_extensions(db: Database, alembic: Alembic) -> None:
    done = alembic("upgrade", "head", DATABASE_URL=as_migrator(db))
    refused(done, 'this role may not enable extension "vector"', "CREATE EXTENSION vector", "rds_superuser")
    db.execute("CREATE EXTENSION vector")
    done = alembic("upgrade", "head", DATABASE_URL=as_migrator(db))
    assert done.returncode == 0, done.stderr


def test_a_role_that_does_not_own_the_table(adopted: Database, alembic: Alembic) -> None:
    adopted.execute("CREATE EXTENSION vector")
    done = alembic("upgrade", "head", DATABASE_URL=as_migrator(adopted))
    refused(
        done, "role plain_migrator may not alter table rag_chunks: postgres owns it", "GRANT postgres TO plain_migrator"
    )
    assert "embedding" not in adopted.columns("rag_chunks")


@pytest.fixture
def pooler_url(db: Database) -> Iterator[str]:
    with pooled(db.url) as url:
        yield url


def test_a_connection_through_a_pooler(db: Database, alembic: Alembic, pooler_url: str) -> None:
    done = alembic("upgrade", "head", DATABASE_URL=pooler_url)
    refused(done, "through a connection pooler; they need a direct connection", "export MIGRATION_DATABASE_URL=")
    assert [row[0] for row in db.catalogue()] == ["plpgsql"]


def test_a_direct_connection_beside_a_pooler(db: Database, alembic: Alembic, pooler_url: str) -> None:
    done = alembic("upgrade", "head", DATABASE_URL=pooler_url, MIGRATION_DATABASE_URL=db.url)
    assert done.returncode == 0, done.stderr
    assert db.columns("rag_chunks")
