"""The sandbox: an application's database and a Pinecone index full of real vectors, started and stopped as one."""

from __future__ import annotations

import fcntl
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from amprenta_vectors.embedders.wordllama import MODEL
from amprenta_vectors.errors import AmprentaError, ConfigError
from amprenta_vectors.extras import require_extra
from amprenta_vectors.sandbox import DEFAULT_FOLDER
from amprenta_vectors.sandbox.corpus import embed_corpus
from amprenta_vectors.sandbox.postgres import EmbeddedPostgres

DATABASE = "app"
INDEX_NAME = "standard-library"
METRIC = "cosine"
API_KEY = "sandbox-key"
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class _State:
    """The state that outlives a start: ``rows`` once the index is loaded, the emulator's addresses once it has run."""

    rows: int | None = None
    pid: int | None = None
    host: str | None = None
    grpc_host: str | None = None


def start(folder: Path = DEFAULT_FOLDER, rows: int | None = None) -> int:
    """Start what does not run; at the first start, load the index with ``rows`` chunks of the corpus, or with all.

    Returns how many chunks it was loaded with. Addresses stay the same from one start to the next. Raises `ConfigError`
    if ``folder`` holds something else, or a sandbox of another number of rows.
    """
    folder = folder.resolve()
    if folder.exists() and any(folder.iterdir()) and not _state_file(folder).exists():
        raise ConfigError(f"{folder} is neither empty nor a sandbox", hint="name another folder with --folder")
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        state = _read(folder)
        if rows is not None and state.rows not in {None, rows}:
            raise ConfigError(
                f"the sandbox in {folder} has {state.rows} rows; {rows} were asked for",
                hint=f"amprenta-vectors sandbox stop --folder {shlex.quote(str(folder))} --remove",
            )
        _write(folder, state)
        postgres = _postgres(folder)
        postgres.start()
        postgres.create_database(DATABASE)
        loaded = state.rows if state.rows is not None else _load(folder, rows)
        state = replace(state, rows=loaded)
        _write(folder, state)
        if _emulator(folder, state) is None:
            _write(folder, _start_emulator(folder, state))
        return loaded


def stop(folder: Path = DEFAULT_FOLDER, *, remove: bool = False) -> None:
    """Stop what runs; with ``remove``, delete the folder. Does nothing if there is no sandbox."""
    folder = folder.resolve()
    if not _state_file(folder).exists():
        return
    with _alone(folder):
        state = _read(folder)
        _stop_emulator(folder, state)
        _write(folder, replace(state, pid=None))
        _postgres(folder).stop()
        if remove:
            shutil.rmtree(folder)


def env(folder: Path = DEFAULT_FOLDER) -> dict[str, str]:
    """Return the variables that point an application, or this package, at the sandbox.

    Raises `ConfigError` if no sandbox was started in ``folder``.
    """
    folder = folder.resolve()
    state = _read(folder)
    if state.host is None or state.grpc_host is None:
        raise ConfigError(
            f"no sandbox was started in {folder}",
            hint=f"amprenta-vectors sandbox start --folder {shlex.quote(str(folder))}",
        )
    return {
        "DATABASE_URL": _postgres(folder).url(DATABASE),
        "PINECONE_API_KEY": API_KEY,
        "PINECONE_INDEX_NAME": INDEX_NAME,
        "PINECONE_CONTROLLER_HOST": state.host,
        "PINECONE_GRPC_HOST": state.grpc_host,
        "VECTOR_DIMENSION": str(MODEL.dimension),
        "EMBEDDING_MODEL": MODEL.name,
    }


def _postgres(folder: Path) -> EmbeddedPostgres:
    return EmbeddedPostgres(folder / "postgres")


def _index_file(folder: Path) -> Path:
    return folder / "pinecone.db"


def _load(folder: Path, rows: int | None) -> int:
    # Its help can be read without the extra.
    from amprenta_vectors.sandbox.pinecone import PineconeEmulator

    corpus = embed_corpus(folder / "corpus", rows)
    metadata = [{**one, "text": text} for one, text in zip(corpus.metadata, corpus.texts, strict=True)]
    index = PineconeEmulator(
        _index_file(folder),
        name=INDEX_NAME,
        dimension=MODEL.dimension,
        metric=METRIC,
        model=MODEL.name,
        api_key=API_KEY,
    )
    try:
        index.load("", corpus.ids, corpus.vectors, metadata)
    finally:
        index.stop()
    return len(corpus.ids)


def _start_emulator(folder: Path, state: _State) -> _State:
    options = {
        "--file": _index_file(folder),
        "--port": _port(state.host),
        "--grpc-port": _port(state.grpc_host),
        "--name": INDEX_NAME,
        "--dimension": MODEL.dimension,
        "--metric": METRIC,
        "--model": MODEL.name,
        "--api-key": API_KEY,
    }
    command = [sys.executable, "-m", "amprenta_vectors.sandbox.pinecone"]
    command += [str(part) for option in options.items() for part in option]
    log = folder / "pinecone.log"
    with log.open("w") as errors:
        # The shell leaves the emulator to init, so that it is nobody's unfinished child.
        shell = subprocess.Popen(  # noqa: S603 - this Python and our own arguments
            ["/bin/sh", "-c", '"$@" &', "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    with shell:
        assert shell.stdout is not None  # noqa: S101 - for the type checker
        ready = shell.stdout.readline()
    if not ready:
        reason = next((line for line in reversed(log.read_text().splitlines()) if not line.startswith(" ")), "")
        raise AmprentaError(f"the Pinecone emulator did not start: {reason}", hint=f"its log is {log}")
    said = json.loads(ready)
    return replace(state, pid=said["pid"], host=said["host"], grpc_host=said["grpc_host"])


def _port(host: str | None) -> int:
    """Return the port in ``host``; without a host yet 0, which is any free port."""
    return (urlsplit(host).port or 0) if host else 0


def _stop_emulator(folder: Path, state: _State) -> None:
    psutil = require_extra("psutil", "sandbox")
    ask_until = time.monotonic() + STOP_SECONDS
    with suppress(psutil.NoSuchProcess):
        # Not a wait for the process id: where init reaps no orphan, the id of an ended one stays taken.
        while (process := _emulator(folder, state)) is not None:
            if time.monotonic() < ask_until:
                process.terminate()
            else:
                process.kill()
            time.sleep(0.05)


def _emulator(folder: Path, state: _State) -> Any:
    """Return the running emulator's ``psutil.Process``, or None.

    The emulator is known by its command line, so that another process that was given its old id is never taken for it.
    """
    psutil = require_extra("psutil", "sandbox")
    try:
        process = psutil.Process(state.pid) if state.pid is not None else None
        return process if process is not None and str(_index_file(folder)) in process.cmdline() else None
    except psutil.Error:
        return None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process starts or stops this sandbox."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _state_file(folder: Path) -> Path:
    return folder / "sandbox.json"


def _read(folder: Path) -> _State:
    file = _state_file(folder)
    return _State(**json.loads(file.read_text())) if file.exists() else _State()


def _write(folder: Path, state: _State) -> None:
    unfinished = _state_file(folder).with_suffix(".new")
    unfinished.write_text(json.dumps(asdict(state)))
    unfinished.replace(_state_file(folder))
