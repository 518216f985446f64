"""Both ends of a move: the database with the vector table, and the origin of its vectors."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.engine import Connection, Engine

from amprenta_vectors.backends.opening import notice_before_opening, notices_of, open_origin
from amprenta_vectors.backends.protocol import Origin
from amprenta_vectors.backfill.engine.observer import Observer, ignore
from amprenta_vectors.backfill.progress import transactions
from amprenta_vectors.config import Settings, normalize_namespace
from amprenta_vectors.db import COMMAND_SESSION, check_connection, create_engine
from amprenta_vectors.errors import ConfigError, DimensionMismatch
from amprenta_vectors.moves.events import Noticed, Warned
from amprenta_vectors.schema.catalogue import resolve_table
from amprenta_vectors.schema.held import check_namespace
from amprenta_vectors.schema.key_values import canonical
from amprenta_vectors.schema.keymaps import OwnKeys
from amprenta_vectors.schema.kinds import unit_of
from amprenta_vectors.schema.registry import RAG_CHUNKS, get_table
from amprenta_vectors.schema.slice import Slice, open_slice
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.server import check_server, server_versions

PING_AFTER_SECONDS = 1.0
"""How long a connection has waited that is tried before it is used again: a round trip less for each step."""
OWN_KEYS = ("rows", "column")
"""The kinds of sources whose records go by the rows' own keys."""
SPARE_CONNECTIONS = 6
"""The connections beside those of the workers: planner, leases, figures, orders, read units, and one to spare."""


@dataclass(frozen=True)
class Ends:
    """A database, a vector table from its catalogue, and the origin of its vectors, which suit each other."""

    engine: Engine
    table: VectorTable
    origin: Origin


def open_ends(settings: Settings, observer: Observer = ignore) -> Ends:
    """Open both ends. Raises `ConfigError`, `NotUpgraded`, `DimensionMismatch` and what the source raises."""
    engine, table = open_target(settings, settings.workers + SPARE_CONNECTIONS, observer)
    notice = notice_before_opening(settings, table)
    if notice is not None:
        observer(Noticed(notice))
    origin = open_origin(settings, table, engine)
    for text in notices_of(origin):
        observer(Noticed(text))
    _check_dimensions(origin, table)
    idle = _idle_limit(settings, origin)
    if idle is not None:
        observer(Warned(idle))
    if origin.distance not in (None, table.distance):
        text = (
            f"{origin.name} searches by {origin.distance}, the table's index is for {table.distance}: "
            "queries will rank differently unless the vectors are normalised"
        )
        observer(Warned(text))
    return Ends(engine, table, origin)


def _idle_limit(settings: Settings, origin: Origin) -> str | None:
    """Return what limit is set that nothing is charged by; None if there is none."""
    limits = settings.source_limits
    if unit_of(origin.kind) == "tokens":
        if limits.max_read_units is None:
            return None
        return "AMPRENTA_MAX_READ_UNITS limits nothing: texts are charged by tokens; --max-cost N limits what they cost"
    if limits.max_cost is None:
        return None
    return (
        f"AMPRENTA_MAX_COST limits nothing: {origin.name} charges for no texts; --max-read-units N is Pinecone's limit"
    )


def open_target(settings: Settings, connections: int, observer: Observer = ignore) -> tuple[Engine, VectorTable]:
    """Return the database and the vector table in it. Raises `NotUpgraded` if the progress tables do not exist."""
    engine = open_database(settings, connections, observer)
    with engine.connect() as connection:
        transactions.require_tables(connection)
        return engine, open_table(settings, connection)


def open_database(settings: Settings, connections: int, observer: Observer = ignore) -> Engine:
    """Return an engine whose server has been reached and is suitable."""
    engine = create_engine(
        settings, pool_size=connections, application_name=COMMAND_SESSION, ping_after_seconds=PING_AFTER_SECONDS
    )
    check_connection(engine)
    with engine.connect() as connection:
        for warning in check_server(*server_versions(connection)):
            observer(Warned(warning))
    return engine


def open_table(settings: Settings, connection: Connection) -> VectorTable:
    """Return the vector table of the settings as the catalogue has it."""
    table = get_table(settings.table, settings.config)
    return resolve_table(connection, table, dimension=settings.vector_dimension)


def choose_namespaces(
    settings: Settings, ends: Ends, namespace: str | None = None, all_namespaces: bool = False
) -> list[str]:
    """Return the namespaces to move. Raises `ConfigError` if the arguments contradict each other or the table."""
    if namespace is not None and all_namespaces:
        raise ConfigError("--namespace and --all-namespaces contradict each other", hint="give one of them")
    if not all_namespaces:
        if namespace is None:
            namespace = settings.namespace if ends.origin.kind == "pinecone" else ""
        return [normalize_namespace(namespace)]
    if not ends.table.namespace_columns:
        raise ConfigError(
            f"table {ends.table.qualified_name} has no column for the namespace: it holds one",
            hint="--namespace NAME",
        )
    return sorted(ends.origin.namespaces())


def scope_of(table: VectorTable, namespace: str) -> dict[str, str]:
    """Return the scope values of a namespace, as the columns of a table from the catalogue spell them.

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


def slice_of(ends: Ends, namespace: str = "") -> Slice:
    """Return the slice of a namespace; rows that are their own source go by their own keys."""
    table, scope = ends.table, scope_of(ends.table, namespace)
    # A source without namespaces fills the one that the table holds.
    if namespace or ends.origin.kind == "pinecone":
        with ends.engine.connect() as connection:
            check_namespace(connection, table, namespace, starting=True)
    if ends.origin.kind in OWN_KEYS:
        return Slice(table, scope, OwnKeys([table.column_types[name] for name in table.key]))
    return open_slice(ends.engine, table, scope)


def _check_dimensions(origin: Origin, table: VectorTable) -> None:
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
