"""What the tests of the backfill share: jobs against an emulator or a stub, processes, and what ended up in a table."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import sqlalchemy as sa
from forked import ForkedProcess

from amprenta_vectors.backends.pinecone.client import open_index
from amprenta_vectors.backends.pinecone.source import PineconeSource, open_source
from amprenta_vectors.backends.protocol import Source, SourceDescription
from amprenta_vectors.backfill.database.load_gate import Gate
from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.engine.kinds import open_kind
from amprenta_vectors.backfill.engine.observer import (
    IndexBuilding,
    MoveEvent,
    Observer,
    RunAdvanced,
    RunStarted,
    Waiting,
)
from amprenta_vectors.backfill.engine.planner import Planner
from amprenta_vectors.backfill.engine.run import Backfill, Summary
from amprenta_vectors.backfill.engine.starting import Mode
from amprenta_vectors.backfill.engine.worker import Worker
from amprenta_vectors.backfill.progress.batches import Batch, Outcome
from amprenta_vectors.backfill.progress.figures import Counts
from amprenta_vectors.backfill.progress.keys_from import KeysFrom
from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.backfill.writing.sink import Writer
from amprenta_vectors.batch import VectorBatch, Vectors
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import RowError
from amprenta_vectors.sandbox.pinecone import PineconeEmulator
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.keymaps import Identity, KeyMap
from amprenta_vectors.schema.registry import RAG_CHUNKS
from amprenta_vectors.schema.slice import Slice
from amprenta_vectors.schema.vector_table import VectorTable

ROOT = Path(__file__).parent.parent
API_KEY = "test-key"
INDEX_NAME = "test-index"
LEASE_SECONDS = 2.0
POLL_SECONDS = 0.02
"""As the commands are told in `conftest`."""


def to_vectors(count: int, dimension: int = 8, seed: int = 0) -> Vectors:
    """Random and finite, ``(count, dimension)``."""
    return np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)


def to_ids(count: int) -> list[str]:
    return [f"chunk-{number:06d}" for number in range(count)]


def on_the_wire(vector: Vectors) -> bytes:
    """A vector as ``vector_send`` gives it."""
    return struct.pack(">hh", len(vector), 0) + vector.astype(">f4").tobytes()


def write_fetched(worker: Worker, batch: Batch, fetched: VectorBatch) -> Outcome:
    """Write what was fetched of a batch, as the worker does that has it in hand."""
    prepared = worker._prepare(batch, fetched)
    return worker._write(batch, partial(worker._put, batch, prepared, cast("Writer", worker._writer)))


class StubSource:
    """A source in memory. A key may have several vectors, none of the dimension, or a `RowError`."""

    def __init__(
        self,
        records: Mapping[str, Sequence[Any] | RowError],
        dimension: int = 8,
        *,
        identity: str = "stub",
        distance: str = "cosine",
        page: int = 10,
        metadata: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.records = records
        self.metadata = metadata or {}
        self.description = SourceDescription("stub", identity, dimension, distance, count=len(records))
        self.page = page
        self.before_page: Callable[[str | None], None] = lambda token: None
        self.before_fetch: Callable[[Sequence[str]], None] = lambda keys: None
        self.fetched: list[str] = []

    def iter_keys(self, token: str | None = None) -> Iterator[tuple[Sequence[str], str | None]]:
        keys, start = list(self.records), int(token or 0)
        while True:
            self.before_page(str(start) if start else None)
            end = start + self.page
            yield keys[start:end], str(end) if end < len(keys) else None
            if end >= len(keys):
                return
            start = end

    def fetch(self, keys: Sequence[str]) -> VectorBatch:
        self.before_fetch(keys)
        self.fetched.extend(keys)
        rows: list[tuple[str, Any]] = []
        quarantined: list[RowError] = []
        for key in reversed(keys):
            found = self.records.get(key, ())
            if isinstance(found, RowError):
                quarantined.append(found)
            else:
                rows.extend((key, vector) for vector in found)
        dimension = self.description.dimension
        vectors = np.array([vector for _, vector in rows], dtype=np.float32).reshape(-1, dimension)
        return VectorBatch(
            source_keys=[key for key, _ in rows],
            vectors=vectors,
            texts=[None] * len(rows),
            metadata=[self.metadata.get(key, {}) for key, _ in rows],
            quarantined=tuple(quarantined),
        )


class Recorder:
    """An observer that keeps what it was told."""

    def __init__(self) -> None:
        self.deferred: list[str] = []
        self.reasons: list[str | None] = []
        self.built: list[str] = []
        self.counts: list[Counts] = []

    def __call__(self, event: MoveEvent) -> None:
        match event:
            case RunStarted(_, deferred):
                self.deferred = deferred
            case RunAdvanced(_, counts):
                self.counts.append(counts)
            case Waiting(_, reason):
                self.reasons.append(reason)
            case IndexBuilding(_, target):
                self.built.append(target)


def settings_for(emulator: PineconeEmulator, **overrides: Any) -> Settings:
    return Settings.load(
        pinecone_api_key=API_KEY,
        pinecone_index_name=INDEX_NAME,
        pinecone_controller_host=emulator.host,
        pinecone_grpc_host=emulator.grpc_host,
        **overrides,
    )


def open_pinecone(
    emulator: PineconeEmulator, namespace: str = "", *, with_metadata: bool = True, transport: str = "grpc"
) -> PineconeSource:
    settings = settings_for(emulator, pinecone_transport=transport)
    return open_source(settings, open_index(settings), namespace, with_metadata=with_metadata)


def pinecone_index(emulator: PineconeEmulator) -> Any:
    """The emulator's index by the official client, as an application writes to it."""
    from pinecone import Pinecone

    return Pinecone(api_key=API_KEY).index(host=emulator.host)


def to_job(
    engine: sa.Engine,
    source: Source,
    *,
    table: VectorTable = RAG_CHUNKS,
    namespace: str = "",
    scope: Mapping[str, str] | None = None,
    key_map: KeyMap | None = None,
    keys_from: KeysFrom = "source",
    replaces: bool = False,
    delete: bool = False,
    given: Sequence[str] = (),
    reason: str | None = None,
    **changes: Any,
) -> Job:
    """A job from ``source`` into a table as the catalogue has it; keys from the source, two workers, small batches."""
    with engine.connect() as connection:
        resolved = resolve_table(connection, table)
    if scope is None:
        scope = {"namespace": namespace} if "namespace" in resolved.scope else {}
    job = Job(
        slice=Slice(resolved, scope, key_map or Identity()),
        source=source,
        kind=open_kind(keys_from, replace=replaces, delete=delete, given=given, reason=reason),
        model=None,
        batch_size=50,
        workers=2,
        lease_seconds=LEASE_SECONDS,
        poll_seconds=POLL_SECONDS,
        longest_wait_seconds=0.2,
        retry_seconds=20.0,
    )
    return replace(job, **changes)


def open_worker(work: Backfill, run: Run, *, owner: str | None = None, lease_seconds: float | None = None) -> Worker:
    """A worker of a process that works at ``run``, for a test that takes its steps one by one."""
    context = work.open_context(run)
    job = replace(context.job, lease_seconds=context.job.lease_seconds if lease_seconds is None else lease_seconds)
    context = replace(context, owner=owner or context.owner, job=job)
    gate = Gate(lambda: None, lambda reason: None, lambda reason: None)
    return Worker(context, context.job.kind.open_writer(context), gate, lambda batch, outcome: None)


def open_planner(engine: sa.Engine, job: Job, run: Run, stop: threading.Event | None = None) -> Planner:
    """The planner of a process whose batches keep the job's size."""
    stop = stop or threading.Event()
    context = Backfill(engine, job, Recorder(), stop).open_context(run)
    return Planner(context, job.kind.open_keys(context), lambda: job.batch_size)


def run_job(
    engine: sa.Engine,
    job: Job,
    mode: Mode = "new",
    *,
    observer: Observer | None = None,
    stop: threading.Event | None = None,
) -> Summary:
    work = Backfill(engine, job, observer or Recorder(), stop or threading.Event())
    return work.work(work.start(mode))


def stored(engine: sa.Engine, namespace: str | None = None, table: str = "rag_chunks") -> dict[str, bytes]:
    """The vector of every row that has one, as ``vector_send`` gives it."""
    where = "" if namespace is None else " AND namespace = :namespace"
    statement = f"SELECT chunk_id, vector_send(embedding) FROM {table} WHERE embedding IS NOT NULL{where}"
    with engine.connect() as connection:
        rows = connection.execute(sa.text(statement), {"namespace": namespace}).all()
    return {key: bytes(vector) for key, vector in rows}


def expected(ids: Sequence[str], vectors: Vectors) -> dict[str, bytes]:
    return {key: on_the_wire(vector) for key, vector in zip(ids, vectors, strict=True)}


def add_rows(engine: sa.Engine, ids: Sequence[str], namespace: str = "") -> None:
    """Rows of the application that have no embedding yet."""
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO rag_chunks (namespace, chunk_id, content) SELECT :namespace, id, 'own text' "
                "FROM unnest(CAST(:ids AS text[])) AS given(id)"
            ),
            {"namespace": namespace, "ids": list(ids)},
        )


def execute(engine: sa.Engine, statement: str, **values: Any) -> Any:
    """The rows of a statement, where it has any; committed."""
    with engine.begin() as connection:
        result = connection.execute(sa.text(statement), values)
        return result.all() if result.returns_rows else None


def refuse(engine: sa.Engine, keys: list[str]) -> None:
    """From now on a trigger raises for those keys."""
    quoted = ", ".join(f"'{key}'" for key in keys)
    execute(
        engine,
        f"""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'no % here', NEW.chunk_id;
        END $$;
        CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON rag_chunks FOR EACH ROW
            WHEN (NEW.chunk_id IN ({quoted})) EXECUTE FUNCTION refuse()
        """,
    )


@contextmanager
def counted(engine: sa.Engine, beginning: str) -> Iterator[list[str]]:
    """The statements that begin so, as they are sent."""
    seen: list[str] = []

    def see(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith(beginning):
            seen.append(statement)

    sa.event.listen(engine, "before_cursor_execute", see)
    yield seen
    sa.event.remove(engine, "before_cursor_execute", see)


COUNTING = """
CREATE TABLE embedding_writes (namespace text, key text);
CREATE FUNCTION count_embedding_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO embedding_writes VALUES (NEW.namespace, NEW.chunk_id);
    RETURN NULL;
END $$;
CREATE TRIGGER count_insert AFTER INSERT ON rag_chunks FOR EACH ROW WHEN (NEW.embedding IS NOT NULL)
    EXECUTE FUNCTION count_embedding_write();
CREATE TRIGGER count_update AFTER UPDATE ON rag_chunks FOR EACH ROW
    WHEN (NEW.embedding::text IS DISTINCT FROM OLD.embedding::text) EXECUTE FUNCTION count_embedding_write();
"""


def count_writes(engine: sa.Engine) -> None:
    """From now on a trigger records every write of an embedding; one that is rolled back leaves no record."""
    with engine.begin() as connection:
        connection.exec_driver_sql(COUNTING)


def writes_per_key(engine: sa.Engine) -> dict[str, int]:
    rows: list[tuple[str, int]] = execute(engine, "SELECT key, count(*) FROM embedding_writes GROUP BY namespace, key")
    return dict(rows)


def errors_of(engine: sa.Engine, run_id: int) -> dict[str, str]:
    """The reason of every row that a run has quarantined."""
    rows: list[tuple[str, str]] = execute(
        engine, "SELECT key, reason FROM migration_quarantine WHERE run_id = :run AND resolved_at IS NULL", run=run_id
    )
    return dict(rows)


def environment(url: str, emulator: PineconeEmulator, **more: str) -> dict[str, str]:
    """The environment that a person who runs a backfill has set up."""
    names = ("PATH", "HOME", "LANG", "TMPDIR", "AMPRENTA_REPORT")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return {
        **kept,
        "DATABASE_URL": url,
        "PINECONE_API_KEY": API_KEY,
        "PINECONE_INDEX_NAME": INDEX_NAME,
        "PINECONE_CONTROLLER_HOST": emulator.host,
        "PINECONE_GRPC_HOST": emulator.grpc_host,
        "AMPRENTA_LEASE_SECONDS": str(LEASE_SECONDS),
        "AMPRENTA_POLL_SECONDS": str(POLL_SECONDS),
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def start_process(variables: Mapping[str, str], *arguments: str, script: str = "backfill.py") -> subprocess.Popen[str]:
    """``python scripts/backfill.py …`` as a person would type it."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / script), *arguments],
        env=dict(variables),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_process(variables: Mapping[str, str], *arguments: str, script: str = "backfill.py") -> tuple[int, str]:
    """The exit code and everything printed."""
    process = start_process(variables, *arguments, script=script)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def fork_process(variables: Mapping[str, str], *arguments: str, script: str = "backfill.py") -> ForkedProcess:
    """A process as `start_process` starts it, but forked from one that has made the imports."""
    return ForkedProcess(ROOT / "scripts" / script, arguments, variables)


def run_forked(variables: Mapping[str, str], *arguments: str, script: str = "backfill.py") -> tuple[int, str]:
    """The exit code and everything printed."""
    process = fork_process(variables, *arguments, script=script)
    output, _ = process.communicate(timeout=120)
    assert process.returncode is not None
    return process.returncode, output


def end_process(process: subprocess.Popen[str] | ForkedProcess) -> None:
    """However it is: running, stopped or gone."""
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.communicate()
