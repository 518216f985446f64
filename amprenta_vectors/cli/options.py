"""What several commands open alike: the database, the vector table, the Pinecone index and its namespaces."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.config import Settings, normalize_namespace
from amprenta_vectors.db import COMMAND_SESSION, check_connection, check_server, create_engine, server_versions
from amprenta_vectors.errors import ConfigError, DimensionMismatch
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.key_values import canonical
from amprenta_vectors.schema.registry import get_table
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.sources.pinecone import PineconeSource, open_source
from amprenta_vectors.sources.pinecone_client import PineconeIndex

Command = TypeVar("Command", bound=Callable[..., Any])


def namespace_options(command: Command) -> Command:
    """``--namespace`` and ``--all-namespaces``."""
    command = click.option("--all-namespaces", is_flag=True, help="Every namespace of the index, one after another.")(
        command
    )
    return click.option(
        "--namespace", help="The Pinecone namespace.  [env var: PINECONE_NAMESPACE; default: the default one]"
    )(command)


def open_database(settings: Settings, connections: int) -> Engine:
    """An engine whose server has been reached and is suitable; warnings about it are printed."""
    engine = create_engine(settings, pool_size=connections, application_name=COMMAND_SESSION)
    check_connection(engine)
    with engine.connect() as connection:
        for warning in check_server(*server_versions(connection)):
            click.echo(f"warning: {warning}", err=True)
    return engine


def open_table(settings: Settings, connection: Connection) -> VectorTable:
    """The vector table of the settings as the catalogue has it."""
    table = get_table(settings.table, settings.config)
    return resolve_table(connection, table, dimension=settings.vector_dimension)


def choose_namespaces(
    settings: Settings, index: PineconeIndex, table: VectorTable, namespace: str | None, all_namespaces: bool
) -> list[str]:
    """The namespaces to work on. Raises `ConfigError` where the options contradict each other or the table."""
    if namespace is not None and all_namespaces:
        raise ConfigError("--namespace and --all-namespaces contradict each other", hint="give one of them")
    if not all_namespaces:
        return [normalize_namespace(settings.pinecone_namespace if namespace is None else namespace)]
    if not table.namespace_columns:
        raise ConfigError(
            f"table {table.qualified_name} has no column for the namespace: it holds one",
            hint="--namespace NAME",
        )
    return sorted(index.namespaces())


def scope_of(table: VectorTable, namespace: str) -> dict[str, str]:
    """The scope values of a namespace, as the columns of a table from the catalogue spell them.

    Raises `ConfigError` for a value that its column cannot hold.
    """
    scope: dict[str, str] = {}
    for name, value in table.scope_for(namespace).items():
        type_name = table.column_types[name]
        spelled = canonical(value, type_name)
        if spelled is None:
            raise ConfigError(
                f"column {table.qualified_name}.{name} is {type_name}; the namespace or scope value is {value!r}",
                hint="--namespace NAME, or scope_values in amprenta.toml",
            )
        scope[name] = spelled
    return scope


def open_source_for(
    settings: Settings, index: PineconeIndex, table: VectorTable, namespace: str, *, with_metadata: bool
) -> PineconeSource:
    """One namespace, read as ``table`` has columns for it: text out of the metadata or left in it, sparse values."""
    text_field = "" if table.text is None else table.metadata_text_field
    return open_source(
        settings,
        index,
        namespace,
        with_metadata=with_metadata,
        text_field=text_field,
        with_sparse=table.sparse is not None,
    )


def check_dimensions(index: PineconeIndex, table: VectorTable) -> None:
    """Raises `DimensionMismatch` where index and column differ."""
    if index.dimension is not None and index.dimension != table.dimension:
        raise DimensionMismatch(
            f"index {index.name!r} has {index.dimension} dimensions, {table.target} has {table.dimension}",
            hint=f"add a column of {index.dimension} dimensions by a revision of your own, and name it in amprenta.toml"
            if table.declared
            else f"export VECTOR_DIMENSION={index.dimension} before the first upgrade; on an empty column: "
            "amprenta-vectors db downgrade rag_0001, then upgrade",
        )


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set, so that work in hand is ended first; a second Ctrl-C ends the process.

    Only a main thread hears of signals; in another one nothing sets it.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
