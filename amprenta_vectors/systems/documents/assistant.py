"""The documents of an assistant, of one user and collection: in PostgreSQL, or in the files that came before.

Needs the extra ``documents``.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from sqlalchemy.engine import Engine

from amprenta_vectors.backends.simple.cipher import MetadataCipher
from amprenta_vectors.backends.simple.tree import PREFIX
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_engine
from amprenta_vectors.embedders.factory import open_embedder
from amprenta_vectors.embedders.gemini import MODEL_NAME
from amprenta_vectors.embedders.protocol import Embedder
from amprenta_vectors.errors import ConfigError, UnknownBackend
from amprenta_vectors.extras import needing
from amprenta_vectors.schema.keymaps import to_key_maker
from amprenta_vectors.schema.registry import VECTOR_DOCUMENTS
from amprenta_vectors.stores.factory import (
    PING_AFTER_SECONDS,
    get_vector_store,
    open_pgvector_store,
    open_simple_store,
)
from amprenta_vectors.stores.protocol import VectorStore
from amprenta_vectors.systems.documents.store import DocumentStore

with needing("documents"):
    from langchain_core.embeddings import Embeddings

    from amprenta_vectors.integrations.langchain import AmprentaVectorStore, EmbedderEmbeddings

DEFAULT_COLLECTION = "personal_assistant"
DEFAULT_MODEL = f"models/{MODEL_NAME}"
BACKENDS = ("simple", "pgvector")
"""The values that ``VECTOR_BACKEND`` may have here; the first is the default."""

_NOT_THE_CALLER = (__name__.partition(".")[0], "langchain_core")

Model = str | Embeddings
"""The name of a model, which ``AMPRENTA_EMBEDDER`` may replace by another; or LangChain's embeddings."""


class AssistantStore(AmprentaVectorStore):
    """The documents of one user and collection, and no others, where ``open_store`` finds them.

    ``settings.namespace`` is user and collection, joined by ``/``. An object that nothing refers to any longer
    is closed. Raises `ConfigError` for an invalid user, collection or model, and what ``open_store`` raises.
    """

    def __init__(
        self,
        settings: Settings,
        embedding_model: Model = DEFAULT_MODEL,
        open_store: Callable[[Settings], VectorStore] = get_vector_store,
    ) -> None:
        scope = VECTOR_DOCUMENTS.scope_for(settings.namespace)
        key = settings.vector_store_encryption_key
        store = open_store(settings)
        documents = DocumentStore(
            store,
            to_key_maker(VECTOR_DOCUMENTS, scope),
            None if key is None else MetadataCipher(key.get_secret_value()),
        )
        super().__init__(_to_embeddings(embedding_model, settings), documents)
        self._about = {**scope, "embedding_model": _name_of(embedding_model)}
        self._close = weakref.finalize(self, store.close)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **options: Any,
    ) -> Self:
        """Return a store with ``texts``; ``options`` are those of the class, ``embedding`` its ``embedding_model``."""
        made = cls(**options) if embedding is None else cls(embedding_model=embedding, **options)
        made.add_texts(texts, metadatas, ids=ids)
        return made

    def delete(self, ids: list[str] | None = None, **_: Any) -> None:
        """Delete documents by id, also ids of the old store; an absent one is no error. Without ids, delete nothing."""
        super().delete(ids)

    def get_collection_stats(self) -> dict[str, Any]:
        """Return ``user_id``, ``collection_name``, ``embedding_model`` and ``count``, the number of documents."""
        return {**self._about, "count": self.store.count()}

    def close(self) -> None:
        """Close the store, and release what it holds; it may be called again."""
        self._close()


class PgVectorStore(AssistantStore):
    """A user's collection in ``vector_documents``. Objects of one process share a pool of connections.

    ``user_id`` is by default ``VECTOR_STORE_USER_ID``. Raises `ConfigError` if neither is given.
    """

    def __init__(
        self,
        collection_name: str = DEFAULT_COLLECTION,
        embedding_model: Model = DEFAULT_MODEL,
        user_id: str | None = None,
    ) -> None:
        settings = _settings(user_id, collection_name)
        super().__init__(settings, embedding_model, _open_pgvector)


class SimpleVectorStore(AssistantStore):
    """A user's collection in the files of ``store_path``, ``…/USER/vector_store_COLLECTION``, created if absent.

    It is deprecated, and says so: it is there for an application that has not moved yet.

    The user is the folder's. Raises `ConfigError` for a ``user_id`` that is another.
    """

    def __init__(
        self, store_path: str | Path, embedding_model: Model = DEFAULT_MODEL, user_id: str | None = None
    ) -> None:
        warnings.warn(
            "SimpleVectorStore keeps documents in files; PgVectorStore(collection_name, user_id=…) takes its place, or "
            "get_document_store() while VECTOR_BACKEND decides",
            DeprecationWarning,
            stacklevel=_frames_to_the_caller(),
        )
        root, owner, collection = _parts_of(Path(store_path))
        if user_id not in (None, owner):
            raise ConfigError(
                f"store_path is {str(store_path)!r}, a folder of {owner!r}, and user_id is {user_id!r}",
                hint=f"store_path={str(root / str(user_id) / (PREFIX + collection))!r}",
            )
        settings = _settings(owner, collection, simple_store_root=root)
        super().__init__(settings, embedding_model, open_simple_store)


def get_document_store(
    collection_name: str = DEFAULT_COLLECTION,
    embedding_model: Model = DEFAULT_MODEL,
    user_id: str | None = None,
) -> AssistantStore:
    """Return a user's collection in the backend of ``VECTOR_BACKEND``: ``simple``, the default, or ``pgvector``.

    The folder is below ``SIMPLE_STORE_ROOT``. ``VECTOR_MODE`` joins the two as `get_vector_store` does; keep one such
    store per user. Raises `UnknownBackend`.
    """
    given = Settings.load(table=VECTOR_DOCUMENTS.name)
    backend = given.vector_backend if "vector_backend" in given.model_fields_set else BACKENDS[0]
    for variable, name in (("VECTOR_BACKEND", backend), ("VECTOR_SECONDARY", given.vector_secondary)):
        if name not in (*BACKENDS, None):
            raise UnknownBackend(
                f"{variable} is {name!r}, where no documents are kept", hint=f"one of: {', '.join(BACKENDS)}"
            )
    settings = _settings(user_id, collection_name, vector_backend=backend)
    alone = settings.vector_mode == "single" and backend == "pgvector"
    return AssistantStore(settings, embedding_model, _open_pgvector if alone else get_vector_store)


def _frames_to_the_caller() -> int:
    """Return the ``stacklevel`` of a warning in the calling function: who made the object, not LangChain or we."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] in _NOT_THE_CALLER:
        frame, level = frame.f_back, level + 1
    return level


def _settings(user_id: str | None, collection_name: str, **overrides: Any) -> Settings:
    """Return the settings of a user and collection. Raises `ConfigError` if the name of one is invalid."""
    given = Settings.load(table=VECTOR_DOCUMENTS.name, **overrides)
    user = given.require("vector_store_user_id") if user_id is None else user_id
    for what, name in (("user_id", user), ("collection_name", collection_name)):
        if not isinstance(name, str) or not name or "/" in name:
            raise ConfigError(f"{what} is {name!r}; expected a name without /")
    return given.model_copy(update={"namespace": f"{user}/{collection_name}"})


def _parts_of(store_path: Path) -> tuple[Path, str, str]:
    """Return root, user and collection of a store's folder."""
    folder = Path(os.path.abspath(store_path))
    collection = folder.name.removeprefix(PREFIX)
    if collection == folder.name or not collection or not folder.parent.name:
        raise ConfigError(
            f"store_path is {str(store_path)!r}; expected …/USER/{PREFIX}COLLECTION",
            hint=f"./user_data/USER/{PREFIX}{DEFAULT_COLLECTION}",
        )
    return folder.parent.parent, folder.parent.name, collection


def _open_pgvector(settings: Settings) -> VectorStore:
    shared = settings.model_copy(update={"namespace": ""})
    return open_pgvector_store(settings, _shared_engine(shared, os.getpid()))


@functools.lru_cache(maxsize=8)
def _shared_engine(settings: Settings, _process: int) -> Engine:
    """Return the one pool for all users of a process; a connection is of no use to the child of a fork."""
    return create_engine(settings, ping_after_seconds=PING_AFTER_SECONDS)


def _to_embeddings(model: Model, settings: Settings) -> Embeddings:
    if isinstance(model, Embeddings):
        return model
    embedder = settings.embedder
    name = model.removeprefix("models/")
    if embedder in (None, "gemini"):
        if name != MODEL_NAME:
            raise ConfigError(
                f"embedding_model is {model!r}; expected {DEFAULT_MODEL!r}, or another embedder in its place",
                hint="export AMPRENTA_EMBEDDER=wordllama|ollama",
            )
        embedder = "gemini"
    plain = settings.model_copy(update={"namespace": "", "embedder": embedder})
    return EmbedderEmbeddings(_shared_embedder(plain))


@functools.lru_cache(maxsize=8)
def _shared_embedder(settings: Settings) -> Embedder:
    """Return the one embedder for all users of a process."""
    return open_embedder(settings)


def _name_of(model: Model) -> str:
    return model if isinstance(model, str) else type(model).__name__
