"""All checks, in the order in which one makes sense after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.backfill.progress import transactions
from amprenta_vectors.config import Settings
from amprenta_vectors.db import COMMAND_SESSION, check_connection, create_engine
from amprenta_vectors.doctor import columns, configuration, content, indexes, models, server, upkeep
from amprenta_vectors.doctor.finding import SEVERITIES, Finding, Patient
from amprenta_vectors.errors import AmprentaError
from amprenta_vectors.pg.errors import to_error
from amprenta_vectors.schema.catalogue import located, relations_of, resolve_table
from amprenta_vectors.schema.models import MODEL_SCOPE, models_of, table_of_column
from amprenta_vectors.schema.registry import get_table
from amprenta_vectors.schema.vector_table import VectorTable

TABLE_CHECKS = (*indexes.CHECKS, *upkeep.CHECKS, *columns.CHECKS, *content.CHECKS, *models.CHECKS)

_LIMITS = sa.text("SELECT set_config('statement_timeout', '60s', true), set_config('lock_timeout', '5s', true)")


def examine(settings: Settings) -> list[Finding]:
    """Return every finding, the worst first; what stands in the way of further checks is a finding itself.

    The checks share one read-only transaction, each statement for a minute at most. A check that this role may not make
    is reported as such, and the others are made.
    """
    findings = [_named(check.__name__, finding) for check in configuration.CHECKS for finding in check(settings)]
    try:
        engine = create_engine(settings, pool_size=1, application_name=COMMAND_SESSION)
        check_connection(engine)
    except AmprentaError as error:
        findings.append(_refusal("connection", error))
    else:
        with engine.connect().execution_options(postgresql_readonly=True) as connection:
            connection.execute(_LIMITS)
            findings += _of_database(connection, settings)
        engine.dispose()
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _of_database(connection: Connection, settings: Settings) -> Iterable[Finding]:
    for check in server.CHECKS:
        yield from _checked(connection, check.__name__, partial(check, connection, settings))
    try:
        transactions.require_tables(connection)
        declared = get_table(settings.table, settings.config)
        tables = [
            resolve_table(connection, each, dimension=settings.vector_dimension)
            for each in _columns_of(connection, declared)
        ]
    except AmprentaError as error:
        yield _refusal("table", error)
        return
    found: dict[Finding, None] = {}
    for table in tables:
        patient = Patient(connection, settings, table, relations_of(connection, table))
        for each in TABLE_CHECKS:
            found |= dict.fromkeys(_checked(connection, each.__name__, partial(each, patient)))
    yield from found


def _columns_of(connection: Connection, declared: VectorTable) -> list[VectorTable]:
    """Return the table, or, where each model has rows of its own, the table once for each column of a model."""
    if MODEL_SCOPE not in declared.scope or declared.own_column is not None:
        return [declared]
    columns = dict.fromkeys(each.column for each in models_of(connection, located(connection, declared)))
    return [table_of_column(declared, column) for column in columns] or [declared]


def _checked(connection: Connection, name: str, check: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        with connection.begin_nested():
            return [_named(name, finding) for finding in check()]
    except AmprentaError as error:
        return [_refusal(name, error)]
    except DBAPIError as error:
        failed = to_error(error, "this check could not be made")
        return [_named(name, Finding("advice", failed.message, "run it again as the table's owner (docs/grants.md)"))]


def _refusal(name: str, error: AmprentaError) -> Finding:
    return _named(name, Finding("serious", error.message, error.hint))


def _named(name: str, finding: Finding) -> Finding:
    return replace(finding, check=name.replace("_", " "))
