"""Opens a Chroma collection, in a folder or on a server, and raises its client's errors as ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from amprenta_vectors.backends.chroma.copies import COPY, copy_folder
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import (
    AmprentaError,
    ConfigError,
    CredentialsRefused,
    RateLimited,
    SourceError,
    SourceNotFound,
    TransientError,
)
from amprenta_vectors.extras import network_errors, require_extra
from amprenta_vectors.pg.types import Distance
from amprenta_vectors.shown import show_url, show_urls

DATABASE_FILE = "chroma.sqlite3"
REQUEST_SECONDS = 30.0
"""Seconds that a server may be silent before a request counts as failed."""
PAGE = 1000
"""Records requested at once. Chroma binds an SQLite variable to each id, and fails past 32,766."""


@dataclass(frozen=True)
class ChromaCollection:
    """A collection with its open client. ``where`` is its folder or ``host:port``; both handles are Chroma's own."""

    name: str
    where: str
    distance: Distance
    handle: Any = field(repr=False)
    client: Any = field(repr=False)
    copy: TemporaryDirectory[str] | None = field(default=None, repr=False)

    def dimension(self) -> int | None:
        """Return the dimension of the collection's vectors; None while it holds none."""
        with chroma_errors(f"reading collection {self.name!r}"):
            some = self.handle.get(limit=1, include=["embeddings"])["embeddings"]
        return len(some[0]) if len(some) else None

    def count(self) -> int:
        """Return the number of records."""
        with chroma_errors(f"counting collection {self.name!r}"):
            return int(self.handle.count())

    def close(self) -> None:
        """Close the client; a folder stays open while others of this process use it."""
        self.client.close()
        if self.copy is not None:
            self.copy.cleanup()


def open_collection(settings: Settings, *, reads_only: bool = False) -> ChromaCollection:
    """Open ``CHROMA_COLLECTION`` on the server ``CHROMA_HOST`` or, without one, in the folder ``CHROMA_PATH``.

    A folder is neither made nor migrated. Chroma writes to it when it opens it, so what ``reads_only`` is given a copy
    of its own, which goes when the collection is closed. Raises `SourceNotFound` listing the collections there are,
    `TransientError` for a server that does not answer, `CredentialsRefused`,
    `SourceError`, `ConfigError`, `MissingExtra`.
    """
    chromadb = require_extra("chromadb", "chroma")
    host, name = settings.chroma_host, settings.chroma_collection
    where = f"{show_url(host)}:{settings.chroma_port}" if host else str(settings.chroma_path.resolve())
    with chroma_errors(f"opening Chroma at {where}"), ExitStack() as unwanted:
        copy = None
        if host:
            client = _on_server(chromadb, settings, host)
        else:
            path = _folder_of(settings)
            copy = copy_folder(path) if reads_only else None
            if copy is not None:
                unwanted.callback(copy.cleanup)
            client = _in_folder(chromadb, path, path if copy is None else Path(copy.name, COPY))
        try:
            handle = client.get_collection(name, embedding_function=None)
        except chromadb.errors.NotFoundError as error:
            listed = ", ".join(sorted(collection.name for collection in client.list_collections(limit=20)))
            client.close()
            raise SourceNotFound(
                f"Chroma at {where} has no collection {name!r}; it has: {listed or 'none'}",
                hint="export CHROMA_COLLECTION=NAME",
            ) from error
        unwanted.pop_all()
    return ChromaCollection(name, where, _distance(handle), handle, client, copy)


def _on_server(chromadb: Any, settings: Settings, host: str) -> Any:
    try:
        client = chromadb.HttpClient(
            host, settings.chroma_port, ssl=settings.chroma_ssl, settings=chromadb.Settings(anonymized_telemetry=False)
        )
    except ValueError as error:
        # The client raises this whatever went wrong with its first request.
        if isinstance(error.__context__, network_errors()):
            raise error.__context__ from error
        raise
    # The client waits for ever, and has no setting for it.
    client._server._session.timeout = REQUEST_SECONDS
    return client


def _folder_of(settings: Settings) -> Path:
    path = settings.chroma_path.resolve()
    if not (path / DATABASE_FILE).is_file():
        raise SourceNotFound(
            f"CHROMA_PATH is {path}, which holds no Chroma: there is no {DATABASE_FILE}",
            hint="export CHROMA_PATH=FOLDER, or CHROMA_HOST=HOST of a server",
        )
    return path


def _in_folder(chromadb: Any, path: Path, opened: Path) -> Any:
    """Open the folder ``opened``, which is ``path`` or a copy of it."""
    options = chromadb.Settings(anonymized_telemetry=False, migrations="validate")
    try:
        return chromadb.PersistentClient(str(opened), settings=options)
    except chromadb.errors.InternalError as error:
        raise SourceError(
            f"opening Chroma at {path}: {show_urls(str(error))}",
            hint="a folder that an older chromadb wrote is not migrated in place: set CHROMA_HOST to the server that "
            "the application runs on it, or CHROMA_PATH to a copy that this chromadb has opened once",
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"this process has opened Chroma at {path} with other settings",
            hint="close that client first, or run a server on the folder (chroma run) and set CHROMA_HOST",
        ) from error


def _distance(handle: Any) -> Distance:
    """Return the distance that the collection is configured with; Chroma's names are ours."""
    configured = handle.configuration or {}
    for index in ("hnsw", "spann"):
        if configured.get(index):
            found: Distance = configured[index]["space"]
            return found
    return (handle.metadata or {}).get("hnsw:space", "l2")  # type: ignore[no-any-return]


@contextmanager
def chroma_errors(doing: str, refusal: type[SourceError] = SourceError) -> Iterator[None]:
    """Raise the client's errors as ours; ``refusal`` for a request that Chroma finds malformed.

    Chroma's message is passed on if it names a setting or a collection, never for a request, which it may quote.
    """
    try:
        yield
    except AmprentaError:
        raise
    except network_errors() as error:
        raise TransientError(
            f"{doing}: no answer ({type(error).__name__})", hint="CHROMA_HOST and CHROMA_PORT are those of its server"
        ) from error
    except json.JSONDecodeError as error:
        raise TransientError(f"{doing}: the answer is not JSON") from error
    except Exception as error:
        ours = _to_error(error, doing, refusal)
        if ours is None:
            raise
        raise ours from error


def _to_error(error: Exception, doing: str, refusal: type[SourceError]) -> AmprentaError | None:
    """Return our error for the client's; None for an error that is no answer to a request."""
    chromadb = require_extra("chromadb", "chroma")
    if isinstance(error, chromadb.errors.ChromaError):
        status = error.code()
    elif type(error) is Exception:
        # The client raises this for an answer that is not Chroma's, a proxy's say; its context holds the answer.
        status = getattr(getattr(error.__context__, "response", None), "status_code", 500)
    elif isinstance(error, ValueError | TypeError):
        status = 400
    else:
        return None
    said, words = f"{doing}: {type(error).__name__} {status}", show_urls(str(error))
    match status:
        case 401 | 403:
            return CredentialsRefused(
                f"{said}: the server does not accept who asks",
                hint="export CHROMA_CLIENT_AUTH_PROVIDER=… CHROMA_CLIENT_AUTH_CREDENTIALS=…, which its client reads",
            )
        case 404:
            return SourceNotFound(f"{said}: {words}", hint="export CHROMA_COLLECTION=NAME")
        case 429:
            return RateLimited(said)
        case 408:
            return TransientError(said)
        case _:
            return TransientError(f"{said}: {words}") if status >= 500 else refusal(said)
