"""Opens the store that the settings name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from sqlalchemy.engine import Engine

from amprenta_vectors.backends.opening import kind_of
from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_async_engine, create_engine, named_driver
from amprenta_vectors.embedders.registered import open_registered
from amprenta_vectors.errors import ConfigError, UnknownBackend
from amprenta_vectors.schema.registry import get_table
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.stores.composites.dual import DualStore
from amprenta_vectors.stores.composites.fallback import FallbackStore
from amprenta_vectors.stores.composites.hybrid import HybridStore
from amprenta_vectors.stores.composites.late import open_late
from amprenta_vectors.stores.composites.model_shadow import ModelShadowStore
from amprenta_vectors.stores.composites.shadow import THREADS, ShadowLog, ShadowStore
from amprenta_vectors.stores.pgvector.async_store import AsyncPgVectorStore
from amprenta_vectors.stores.pgvector.options import StoreOptions
from amprenta_vectors.stores.pgvector.replica import ReplicatedStore, open_watch
from amprenta_vectors.stores.pgvector.store import PgVectorStore
from amprenta_vectors.stores.protocol import VectorStore

PING_AFTER_SECONDS = 0.5
"""Seconds of rest after which a connection is tested: between the queries of a busy application none need be."""


def get_vector_store(settings: Settings | None = None) -> VectorStore:
    """Open the store for ``VECTOR_BACKEND``, confined to ``PINECONE_NAMESPACE``, by default from the environment.

    Make one when the application starts and share it between threads: it holds a pool of connections, given back by
    ``close()``. The pgvector store connects on first use and needs no Pinecone setting; the Pinecone store requests the
    index here. ``VECTOR_MODE`` joins it with the store for ``VECTOR_SECONDARY``; the one of the two that is away does
    not keep the other from opening. Raises `UnknownBackend`, or `ConfigError` for a setting that is missing or
    contradicts another.
    """
    settings = settings or Settings.load()
    check_mode(settings)
    open_primary = _opener("VECTOR_BACKEND", settings.vector_backend)
    if settings.vector_mode == "single":
        return open_primary(settings)
    if settings.shadow_model is not None:
        return _open_model_shadow(settings, settings.shadow_model)
    open_secondary = _opener("VECTOR_SECONDARY", str(settings.vector_secondary))
    if "pgvector" in (settings.vector_backend, settings.vector_secondary):
        _check_same_keys(settings)
    primary = open_late(settings.vector_backend, lambda: open_primary(settings))
    secondary = open_late(str(settings.vector_secondary), lambda: open_secondary(settings))
    return MODES[settings.vector_mode](primary, secondary, settings)


def check_mode(settings: Settings) -> None:
    """Raise `ConfigError` if backend, mode and secondary contradict each other; nothing is opened."""
    if settings.shadow_model is not None:
        asked = (settings.vector_backend, settings.vector_mode, settings.vector_secondary)
        if asked != ("pgvector", "shadow", None):
            raise ConfigError(
                f"AMPRENTA_SHADOW_MODEL is {settings.shadow_model!r}: two models of one table are compared; "
                f"VECTOR_BACKEND is {asked[0]!r}, VECTOR_MODE {asked[1]!r}, VECTOR_SECONDARY {asked[2]!r}",
                hint="VECTOR_BACKEND=pgvector VECTOR_MODE=shadow without VECTOR_SECONDARY; or unset "
                "AMPRENTA_SHADOW_MODEL",
            )
        return
    if settings.vector_mode == "single":
        if settings.vector_secondary is not None:
            raise ConfigError(
                f"VECTOR_SECONDARY is {settings.vector_secondary!r}, and VECTOR_MODE single has no secondary",
                hint=f"unset VECTOR_SECONDARY, or VECTOR_MODE={'|'.join(MODES)}",
            )
    elif settings.vector_secondary in (None, settings.vector_backend):
        raise ConfigError(
            f"VECTOR_MODE {settings.vector_mode} joins two stores; VECTOR_BACKEND is {settings.vector_backend!r}, "
            f"VECTOR_SECONDARY {settings.vector_secondary!r}",
            hint="export VECTOR_SECONDARY=" + "|".join(name for name in BACKENDS if name != settings.vector_backend),
        )
    _opener("VECTOR_BACKEND", settings.vector_backend)
    if settings.vector_secondary is not None:
        _opener("VECTOR_SECONDARY", settings.vector_secondary)


def _check_same_keys(settings: Settings) -> None:
    """Raise `ConfigError` if the table's keys are not the other store's: no hit or write would match."""
    table = get_table(settings.table, settings.config)
    if table.key_rule.kind == "uuid5" and "pinecone" in (settings.vector_backend, settings.vector_secondary):
        raise ConfigError(
            f"the keys of table {table.name} are made from the other store's by uuid5, so the two cannot be joined",
            hint="VECTOR_MODE=single",
        )


def _opener(variable: str, backend: str) -> Callable[[Settings], VectorStore]:
    if backend not in BACKENDS:
        raise UnknownBackend(f"{variable} is {backend!r}, which is no store", hint=f"one of: {', '.join(BACKENDS)}")
    return BACKENDS[backend]


def open_pgvector_store(settings: Settings, engine: Engine | None = None) -> PgVectorStore:
    """Open the store on ``AMPRENTA_TABLE``, with engines of its own if none is given.

    Without an ``engine``, what is read is read on ``READ_DATABASE_URL`` if that is set. It is on psycopg 3 if the URL
    names that driver.
    """
    if engine is not None:
        table, scope, options = _placed(settings)
        return PgVectorStore(engine, table, scope, options)
    driver: Literal["psycopg2", "psycopg"] = "psycopg" if named_driver(settings) == "psycopg" else "psycopg2"
    return _open_on(settings, partial(create_engine, settings, driver=driver))


def get_async_vector_store(settings: Settings | None = None) -> AsyncPgVectorStore:
    """Open the store for an application that awaits, by default from the environment; it connects on first use.

    Make one when the application starts, in its event loop, and share it between tasks: it holds a pool of connections,
    given back by ``await close()``. It is on psycopg 3 if the URL names that driver, else on asyncpg. Raises
    `ConfigError` for a ``VECTOR_BACKEND`` other than pgvector and a ``VECTOR_MODE`` other than single, `MissingExtra`.
    """
    settings = settings or Settings.load()
    check_mode(settings)
    asked = {"VECTOR_BACKEND": settings.vector_backend, "VECTOR_MODE": settings.vector_mode}
    for (variable, found), expected in zip(asked.items(), ("pgvector", "single"), strict=True):
        if found != expected:
            raise ConfigError(
                f"{variable} is {found!r}; an asynchronous store serves {expected} alone",
                hint=f"{variable}={expected}, or get_vector_store() and await asyncio.to_thread(store.query, …)",
            )
    store = _open_on(settings, lambda **options: create_async_engine(settings, **options).sync_engine)
    return AsyncPgVectorStore.over(store)


def _open_on(settings: Settings, create: Callable[..., Engine]) -> PgVectorStore:
    """Open the store on engines that ``create`` makes; it takes ``reads``, ``ping_after_seconds`` and pool options."""
    table, scope, options = _placed(settings)
    primary = create(ping_after_seconds=PING_AFTER_SECONDS)
    if settings.read_database_url is None:
        return PgVectorStore(primary, table, scope, options, owns_engine=True)
    reading = create(reads=True, ping_after_seconds=PING_AFTER_SECONDS)
    return ReplicatedStore(
        primary,
        table,
        scope,
        options,
        standby=PgVectorStore(reading, table, scope, options, owns_engine=True),
        watch=open_watch(settings, create),
        owns_engine=True,
    )


def _placed(settings: Settings) -> tuple[VectorTable, dict[str, str], StoreOptions]:
    """Return table, scope and options of the store that the settings name."""
    table = get_table(settings.table, settings.config)
    options = replace(
        store_options(settings),
        dimension=settings.vector_dimension,
        model=settings.embedding_model,
        text_field=text_field_of(settings),
        namespace=settings.namespace,
    )
    return table, table.scope_for(settings.namespace), options


def store_options(settings: Settings) -> StoreOptions:
    """Return the options of any store by the settings, whatever its table."""
    return StoreOptions(
        ef_search=settings.ef_search,
        probes=settings.probes,
        oversampling=settings.oversampling,
        threshold=settings.pgvector_similarity_threshold,
        query_timeout_seconds=settings.query_timeout_seconds,
        open_model=partial(open_registered, settings=settings),
    )


def open_pinecone_store(settings: Settings) -> VectorStore:
    """Open the store on ``PINECONE_INDEX_NAME``."""
    # An application on another backend need not have the package.
    from amprenta_vectors.backends.pinecone.client import open_index
    from amprenta_vectors.backends.pinecone.store import PineconeStore

    return PineconeStore(
        open_index(settings),
        settings.namespace,
        text_field_of(settings),
        threshold=settings.pinecone_similarity_threshold,
    )


def open_simple_store(settings: Settings) -> VectorStore:
    """Open the store below ``SIMPLE_STORE_ROOT``."""
    # It needs the file locks that only POSIX has.
    from amprenta_vectors.backends.simple import store as simple

    return simple.open_simple_store(settings)


def open_chroma_store(settings: Settings) -> VectorStore:
    """Open the store on ``CHROMA_COLLECTION``, whose keys are those of ``AMPRENTA_TABLE``."""
    # An application on another backend need not have the package.
    from amprenta_vectors.backends.chroma.client import open_collection
    from amprenta_vectors.backends.chroma.ids import open_ids
    from amprenta_vectors.backends.chroma.store import ChromaStore

    collection = open_collection(settings)
    return ChromaStore(
        collection,
        open_ids(collection, get_table(settings.table, settings.config).key_rule.id_field),
        text_field_of(settings),
        threshold=settings.chroma_similarity_threshold,
    )


def open_source_store(settings: Settings) -> VectorStore:
    """Open the store that ``AMPRENTA_TABLE`` is filled from. Raises `ConfigError` if its own rows are the source."""
    kind = kind_of(settings, get_table(settings.table, settings.config))
    if kind not in BACKENDS:
        raise ConfigError(
            f"AMPRENTA_SOURCE is {kind}: no other store has the vectors of table {settings.table}",
            hint="AMPRENTA_SOURCE=pinecone|chroma|simple names a store to compare with",
        )
    return BACKENDS[kind](settings)


def text_field_of(settings: Settings) -> str:
    """Return the metadata field that holds a record's text: the same on every backend."""
    return get_table(settings.table, settings.config).metadata_text_field or settings.text_field


def _fallback(primary: VectorStore, secondary: VectorStore, settings: Settings) -> VectorStore:
    return FallbackStore(primary, secondary, timeout_seconds=settings.vector_timeout_seconds)


def _hybrid(primary: VectorStore, secondary: VectorStore, settings: Settings) -> VectorStore:
    return HybridStore(
        primary, secondary, join=settings.vector_hybrid_join, timeout_seconds=settings.vector_timeout_seconds
    )


BACKENDS: dict[str, Callable[[Settings], VectorStore]] = {
    "pinecone": open_pinecone_store,
    "pgvector": open_pgvector_store,
    "chroma": open_chroma_store,
    "simple": open_simple_store,
}
"""The values of ``VECTOR_BACKEND``."""


def _dual(primary: VectorStore, secondary: VectorStore, settings: Settings) -> VectorStore:
    for pgvector, other in ((primary, secondary), (secondary, primary)):
        if isinstance(pgvector, PgVectorStore):
            return DualStore(pgvector, other, pgvector.open_outbox(), primary=primary)
    raise ConfigError(
        f"VECTOR_MODE dual keeps its intents in PostgreSQL; VECTOR_BACKEND is {settings.vector_backend!r}, "
        f"VECTOR_SECONDARY {settings.vector_secondary!r}",
        hint="one of them must be pgvector",
    )


def _open_model_shadow(settings: Settings, shadow: str) -> VectorStore:
    """Open the store with another model of its table asked beside the one that is searched."""
    store = open_pgvector_store(settings)
    engine = create_engine(settings, pool_size=THREADS, max_overflow=0)
    return ModelShadowStore(store, shadow, ShadowLog(engine, store.name, shadow))


def _shadow(primary: VectorStore, secondary: VectorStore, settings: Settings) -> VectorStore:
    engine = create_engine(settings, pool_size=THREADS, max_overflow=0)
    return ShadowStore(primary, secondary, ShadowLog(engine, primary.name, secondary.name))


MODES: dict[str, Callable[[VectorStore, VectorStore, Settings], VectorStore]] = {
    "dual": _dual,
    "fallback": _fallback,
    "hybrid": _hybrid,
    "shadow": _shadow,
}
"""The values of ``VECTOR_MODE``, beside ``single``."""
