"""The whole sandbox, started through the command line as its users start it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import numpy as np
import psutil
import psycopg2
import pytest
from click.testing import CliRunner, Result
from sandboxes import ROWS, record

from amprenta_vectors.backends.pinecone.client import open_index
from amprenta_vectors.cli.sandbox import sandbox
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.errors import AmprentaError, ConfigError
from amprenta_vectors.sandbox import control
from amprenta_vectors.sandbox.corpus import embed_corpus


def command(*arguments: object) -> Result:
    return CliRunner().invoke(sandbox, [str(argument) for argument in arguments], catch_exceptions=False)


def pid_of(folder: Path) -> int:
    pid = json.loads((folder / "sandbox.json").read_text())["pid"]
    assert isinstance(pid, int)
    return pid


def is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def settings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a shell that evaluated what ``env`` printed."""
    printed = command("env", "--folder", folder).output
    shown = subprocess.run(["sh", "-c", f"{printed}\nenv"], capture_output=True, text=True, check=True, env={}).stdout
    for line in shown.splitlines():
        name, _, value = line.partition("=")
        if name != "PWD":
            monkeypatch.setenv(name, value)
    return Settings.load()


def test_the_command_starts_a_sandbox_where_there_is_none_and_says_how_to_use_it(
    server_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = server_folder.with_name("another's sandbox")
    try:
        result = command("start", "--folder", folder, "--rows", 20)
        assert result.exit_code == 0
        assert "loaded with 20 vectors" in result.output
        assert f"sandbox env --folder {shlex.quote(str(folder))}" in result.output
        assert open_index(settings(folder, monkeypatch)).namespaces() == {"": 20}
    finally:
        control.stop(folder)


def test_env_points_the_package_at_a_database_and_a_full_index(
    started: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shell = settings(started, monkeypatch)
    available = "SELECT current_database(), count(*) FROM pg_available_extensions WHERE name = 'vector'"
    with create_engine(shell).connect() as connection:
        assert connection.exec_driver_sql(available).one() == ("app", 1)

    index = open_index(shell)
    assert index.namespaces() == {"": ROWS}
    assert (index.dimension, index.model) == (shell.vector_dimension, shell.embedding_model)
    assert index.grpc_host == shell.pinecone_grpc_host

    corpus = embed_corpus(tmp_path, ROWS)
    record = index.rest.fetch(ids=[corpus.ids[7]]).vectors[corpus.ids[7]]
    assert np.array_equal(np.asarray(record.values, dtype=np.float32), corpus.vectors[7])
    assert record.metadata == {**corpus.metadata[7], "text": corpus.texts[7]}


def test_starting_and_stopping_twice_change_nothing(started: Path) -> None:
    pid = pid_of(started)
    assert "200 vectors" in command("start", "--folder", started).output
    assert pid_of(started) == pid
    for _ in range(2):
        command("stop", "--folder", started)
    assert not is_alive(pid)
    assert not control._postgres(started).running


def test_addresses_and_data_survive_a_stop(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = control.env(started)
    with closing(psycopg2.connect(before["DATABASE_URL"])) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE kept ()")
        connection.commit()
    open_index(settings(started, monkeypatch)).rest.delete(ids=[embed_corpus(started / "corpus", ROWS).ids[0]])
    command("stop", "--folder", started)
    command("start", "--folder", started)
    assert control.env(started) == before
    with closing(psycopg2.connect(before["DATABASE_URL"])) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM kept")
    assert open_index(settings(started, monkeypatch)).namespaces() == {"": ROWS - 1}


def test_what_was_killed_is_started_again(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = pid_of(started)
    os.kill(killed, signal.SIGKILL)
    control._postgres(started).stop("immediate")
    assert command("start", "--folder", started).exit_code == 0
    assert pid_of(started) != killed
    assert open_index(settings(started, monkeypatch)).namespaces() == {"": ROWS}


def test_a_process_that_has_the_emulators_old_id_is_not_signalled(stopped: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as bystander:
        record(stopped, pid=bystander.pid)
        command("stop", "--folder", stopped)
        assert bystander.poll() is None
        record(stopped, pid=bystander.pid)
        command("start", "--folder", stopped)
        assert pid_of(stopped) != bystander.pid
        assert bystander.poll() is None
        bystander.kill()


def test_a_port_that_was_taken_meanwhile_is_named(stopped: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        record(stopped, host=f"http://127.0.0.1:{port}")
        with pytest.raises(AmprentaError, match=f"port {port}") as caught:
            control.start(stopped)
    assert "pinecone.log" in caught.value.hint


def test_remove_deletes_everything_and_only_a_sandbox(started: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    command("stop", "--folder", tmp_path, "--remove")
    assert (tmp_path / "precious").exists()
    command("stop", "--folder", started, "--remove")
    assert not started.exists()


def test_another_number_of_rows_is_refused(stopped: Path) -> None:
    with pytest.raises(ConfigError, match=f"has {ROWS} rows; 300 were asked for") as caught:
        control.start(stopped, 300)
    assert "--remove" in caught.value.hint
