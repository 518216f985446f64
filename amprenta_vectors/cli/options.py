"""What several commands open alike: the database, the vector table, the source and its namespaces."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.config import Settings, normalize_namespace
from amprenta_vectors.db import COMMAND_SESSION, check_connection, check_server, create_engine, server_versions
from amprenta_vectors.errors import ConfigError, DimensionMismatch
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.key_values import canonical
from amprenta_vectors.schema.keymaps import KeyMap, OwnKeys, open_key_map
from amprenta_vectors.schema.registry import RAG_CHUNKS, get_table
from amprenta_vectors.schema.vector_table import SourceKind, VectorTable
from amprenta_vectors.sources.protocol import Origin

Command = TypeVar("Command", bound=Callable[..., Any])


NAMESPACE_HELP = (
    "The source's namespace; for a table with several scope columns their values joined by /.  "
    "[env var: PINECONE_NAMESPACE, of a Pinecone index; default: the default one]"
)


def namespace_options(command: Command) -> Command:
    """``--namespace`` and ``--all-namespaces``."""
    command = click.option("--all-namespaces", is_flag=True, help="Every namespace of the source, one after another.")(
        command
    )
    return click.option("--namespace", help=NAMESPACE_HELP)(command)


def source_option(command: Command) -> Command:
    """``--source``."""
    return click.option(
        "--source",
        type=click.Choice(get_args(SourceKind)),
        help="What the vectors come from; rows: the texts of the table's own rows, embedded.  "
        "[env var: AMPRENTA_SOURCE; default: what usually fills AMPRENTA_TABLE, for most pinecone]",
    )(command)


def run_options(command: Command) -> Command:
    """``--model``, ``--report`` and ``--log-format``: of whose vectors a run is, and what is said of it."""
    command = click.option(
        "--log-format", type=click.Choice(["text", "json"]), help="[env var: AMPRENTA_LOG_FORMAT; default: text]"
    )(command)
    command = click.option(
        "--report",
        type=click.Path(path_type=Path),
        help="Folder for the report that ends a run.  [env var: AMPRENTA_REPORT; default: reports]",
    )(command)
    return click.option("--model", help="The model that made the vectors.  [env var: EMBEDDING_MODEL]")(command)


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
    settings: Settings, origin: Origin, table: VectorTable, namespace: str | None, all_namespaces: bool
) -> list[str]:
    """The namespaces to work on. Raises `ConfigError` where the options contradict each other or the table."""
    if namespace is not None and all_namespaces:
        raise ConfigError("--namespace and --all-namespaces contradict each other", hint="give one of them")
    if not all_namespaces:
        if namespace is None:
            namespace = settings.pinecone_namespace if origin.kind == "pinecone" else ""
        return [normalize_namespace(namespace)]
    if not table.namespace_columns:
        raise ConfigError(
            f"table {table.qualified_name} has no column for the namespace: it holds one",
            hint="--namespace NAME",
        )
    return sorted(origin.namespaces())


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


def key_map_for(engine: Engine, table: VectorTable, scope: Mapping[str, str], kind: SourceKind) -> KeyMap:
    """The key map of a table from the catalogue; rows that are their own source go by their own keys."""
    if kind == "rows":
        return OwnKeys([table.column_types[name] for name in table.key])
    return open_key_map(table, scope, engine)


def check_dimensions(origin: Origin, table: VectorTable) -> None:
    """Raises `DimensionMismatch` where source and column differ."""
    if origin.dimension is None or origin.dimension == table.dimension:
        return
    mend = f"export VECTOR_DIMENSION={origin.dimension} before the first upgrade"
    if table.declared:
        mend = f"add a column of {origin.dimension} dimensions by a revision of your own, and name it in amprenta.toml"
    elif table.name == RAG_CHUNKS.name:
        mend += "; on an empty column: amprenta-vectors db downgrade rag_0001, then upgrade"
    raise DimensionMismatch(
        f"{origin.name} has {origin.dimension} dimensions, {table.target} has {table.dimension}", hint=mend
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
