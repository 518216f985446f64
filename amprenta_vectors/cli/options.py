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
from amprenta_vectors.db import check_connection, check_server, create_engine, server_versions
from amprenta_vectors.errors import ConfigError, DimensionMismatch
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.registry import get_table
from amprenta_vectors.schema.vector_table import VectorTable
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
    engine = create_engine(settings, pool_size=connections)
    check_connection(engine)
    with engine.connect() as connection:
        for warning in check_server(*server_versions(connection)):
            click.echo(f"warning: {warning}", err=True)
    return engine


def open_table(settings: Settings, connection: Connection) -> VectorTable:
    """The vector table of the settings as the catalogue has it."""
    return resolve_table(connection, get_table(settings.table), dimension=settings.vector_dimension)


def choose_namespaces(
    settings: Settings, index: PineconeIndex, table: VectorTable, namespace: str | None, all_namespaces: bool
) -> list[str]:
    """The namespaces to work on. Raises `ConfigError` where the options contradict each other or the table."""
    if namespace is not None and all_namespaces:
        raise ConfigError("--namespace and --all-namespaces contradict each other", hint="give one of them")
    if not all_namespaces:
        return [normalize_namespace(settings.pinecone_namespace if namespace is None else namespace)]
    if "namespace" not in table.scope:
        raise ConfigError(
            f"table {table.qualified_name} has no namespace column: it holds one namespace",
            hint="--namespace NAME",
        )
    return sorted(index.namespaces())


def scope_of(table: VectorTable, namespace: str) -> dict[str, str]:
    """The scope values of a namespace: none for a table without the column."""
    return {"namespace": namespace} if "namespace" in table.scope else {}


def check_dimensions(index: PineconeIndex, table: VectorTable) -> None:
    """Raises `DimensionMismatch` where index and column differ."""
    if index.dimension is not None and index.dimension != table.dimension:
        raise DimensionMismatch(
            f"index {index.name!r} has {index.dimension} dimensions, {table.target} has {table.dimension}",
            hint=f"export VECTOR_DIMENSION={index.dimension} before the first upgrade; on an empty column: "
            "amprenta-vectors db downgrade rag_0001, then upgrade",
        )


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set, so that work in hand is ended first; a second Ctrl-C ends the process."""
    stop = threading.Event()

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
