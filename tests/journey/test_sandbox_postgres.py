"""EmbeddedPostgres; a test that stops a server, or changes its settings, has one of its own."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.errors import AmprentaError
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres


def ask(server: EmbeddedPostgres, query: str, database: str = "postgres") -> Any:
    with closing(psycopg2.connect(server.url(database))) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(query)
        return cursor.fetchone()[0] if cursor.description else None


def in_another_process(code: str, folder: Path) -> str:
    program = (
        "import sys; from pathlib import Path; from amprenta_vectors.sandbox.postgres import EmbeddedPostgres\n"
        f"server = EmbeddedPostgres(Path(sys.argv[1]), {{'fsync': 'off'}})\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.strip()


@pytest.fixture
def stopped_afterwards(server_folder: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(server_folder, {"fsync": "off"})
    yield server
    server.stop("immediate")


@pytest.fixture(scope="module")
def shared_server() -> Iterator[EmbeddedPostgres]:
    """A server with the settings that it has where nothing else is asked for."""
    with tempfile.TemporaryDirectory(prefix="amprenta-test-") as folder:
        server = EmbeddedPostgres(Path(folder, "postgres"), {"fsync": "off"})
        server.start()
        yield server
        server.stop("immediate")


def test_pgvector_is_there(shared_server: EmbeddedPostgres) -> None:
    ask(shared_server, "CREATE EXTENSION vector")
    assert ask(shared_server, "SELECT '[1,2]'::vector <-> '[1,4]'::vector") == 2


def test_nothing_listens_on_the_network_and_the_socket_is_private(shared_server: EmbeddedPostgres) -> None:
    assert ask(shared_server, "SHOW listen_addresses") == ""
    assert shared_server.socket_folder.stat().st_mode & 0o077 == 0


def test_settings_reach_the_server_and_there_is_room_for_connections(shared_server: EmbeddedPostgres) -> None:
    assert ask(shared_server, "SHOW fsync") == "off"
    assert ask(shared_server, "SHOW max_connections") == "200"


def test_settings_can_be_changed_from_one_start_to_the_next(own_server: EmbeddedPostgres) -> None:
    own_server.stop()
    changed = EmbeddedPostgres(own_server.folder, {"max_connections": "20", "cluster_name": 'it\'s "quoted" $HOME'})
    changed.start()
    assert ask(changed, "SHOW max_connections") == "20"
    assert ask(changed, "SHOW cluster_name") == 'it\'s "quoted" $HOME'


def test_a_database_is_created_once_under_any_name(shared_server: EmbeddedPostgres) -> None:
    for _ in range(2):
        shared_server.create_database('my "app"/ä?')
    assert ask(shared_server, "SELECT current_database()", 'my "app"/ä?') == 'my "app"/ä?'


def test_the_url_serves_the_package_itself(shared_server: EmbeddedPostgres) -> None:
    engine = create_engine(Settings.load(database_url=shared_server.url()))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT current_user").scalar_one() == "postgres"
    engine.dispose()


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_what_was_committed_survives_a_restart_under_the_same_url(own_server: EmbeddedPostgres, mode: Any) -> None:
    url = own_server.url()
    ask(own_server, "CREATE TABLE kept AS SELECT 7 AS value")
    own_server.restart(mode)
    assert ask(own_server, "SELECT value FROM kept") == 7
    assert own_server.url() == url


def test_start_and_stop_twice_change_nothing(own_server: EmbeddedPostgres) -> None:
    began = ask(own_server, "SELECT pg_postmaster_start_time()")
    own_server.start()
    assert ask(own_server, "SELECT pg_postmaster_start_time()") == began
    own_server.stop()
    own_server.stop()
    assert not own_server.running


def test_it_outlives_its_starter_and_another_process_stops_it(stopped_afterwards: EmbeddedPostgres) -> None:
    server = stopped_afterwards
    assert in_another_process("server.start(); print(server.url())", server.folder) == server.url()
    assert server.running
    assert ask(server, "SELECT 1") == 1
    in_another_process("server.stop()", server.folder)
    assert not server.running


@pytest.mark.parametrize("name", ["long" * 30, "one, two"])
def test_a_path_unfit_for_a_socket_works(server_folder: Path, name: str) -> None:
    server = EmbeddedPostgres(server_folder.with_name(name), {"fsync": "off"})
    server.start()
    try:
        assert ask(server, "SELECT 1") == 1
        assert not server.socket_folder.is_relative_to(server.folder)
        assert server.socket_folder.stat().st_mode & 0o077 == 0
    finally:
        server.stop("immediate")
    assert not server.socket_folder.exists()


def test_a_path_with_spaces_and_quotes_works(server_folder: Path) -> None:
    server = EmbeddedPostgres(server_folder.with_name('it\'s "my" $(touch folder); %d `ä`'), {"fsync": "off"})
    server.start()
    try:
        assert ask(server, "SELECT 1") == 1
    finally:
        server.stop("immediate")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_server_that_root_starts_is_another_users_and_no_process_is_forked_for_it(
    own_server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork in a process in which gRPC is at work may crash."""
    started: list[set[str]] = []

    class Recorded(subprocess.Popen[str]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            started.append(set(options))
            super().__init__(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    own_server.restart()
    assert len(started) == 2
    assert not set().union(*started) & {"user", "group", "extra_groups", "preexec_fn"}
    process = psutil.Process(int((own_server.folder / "postmaster.pid").read_text().split()[0]))
    owner = pwd.getpwnam("pgserver")
    assert (set(process.uids()), set(process.gids())) == ({owner.pw_uid}, {owner.pw_gid})
    status = Path(f"/proc/{process.pid}/status")
    assert not status.exists() or "Groups:\t \n" in status.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_who_is_not_root_needs_no_system_user(server_folder: Path) -> None:
    os.chown(server_folder.parent, nobody := 65534, -1)
    code = (
        f"import amprenta_vectors.sandbox.postgres as module; module.binaries(); server.running\n"
        f"import os; os.setuid({nobody}); server = EmbeddedPostgres(server.folder)\n"
        "server.start(); server.create_database('app'); server.restart(); print(server.running); server.stop()"
    )
    assert in_another_process(code, server_folder) == "True"
    assert server_folder.stat().st_uid == nobody


def test_a_process_that_has_the_old_servers_id_is_neither_the_server_nor_stopped(own_server: EmbeddedPostgres) -> None:
    own_server.stop()
    user = "pgserver" if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "600"], user=user, cwd="/") as bystander:
        (own_server.folder / "postmaster.pid").write_text(
            f"{bystander.pid}\n{own_server.folder}\n1\n5432\n\n\n\nready\n"
        )
        assert not own_server.running
        own_server.stop()
        assert bystander.poll() is None
        own_server.start()
        assert ask(own_server, "SELECT 1") == 1
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_socket_folder_of_somebody_else_is_refused(server_folder: Path) -> None:
    server = EmbeddedPostgres(server_folder.with_name("long" * 30))
    server.socket_folder.mkdir()
    os.chown(server.socket_folder, 65534, -1)
    try:
        with pytest.raises(AmprentaError, match="belongs to another user"):
            server.start()
    finally:
        server.socket_folder.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_that_holds_something_else_keeps_its_owner(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(AmprentaError, match="holds something else"):
        EmbeddedPostgres(tmp_path).start()
    assert tmp_path.stat().st_uid == os.geteuid()


def test_a_start_that_fails_says_why_and_where_the_log_is(server_folder: Path) -> None:
    server = EmbeddedPostgres(server_folder, {"fsync": "off", "shared_buffers": "plenty"})
    with pytest.raises(AmprentaError, match="pg_ctl failed") as caught:
        server.start()
    assert str(server.log) in caught.value.hint
    assert "plenty" in server.log.read_text()
