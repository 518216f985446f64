"""``amprenta-vectors outbox``: what ``VECTOR_MODE=dual`` has still to bring to the store beside PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import click

from amprenta_vectors.cli.options import json_option, open_database
from amprenta_vectors.cli.printer import say
from amprenta_vectors.errors import AmprentaError, ConfigError, ExitCode, TransientError

if TYPE_CHECKING:
    from amprenta_vectors.config import Settings
    from amprenta_vectors.stores.outbox import Outbox


@click.group()
def outbox() -> None:
    """Show or bring what one of two stores has not got yet."""


@outbox.command()
@json_option()
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Show how many writes the other store has not got yet; exit 0 if nothing is pending, else 1."""
    from amprenta_vectors.config import Settings

    settings = Settings.load()
    with _open_outbox(settings) as box:
        found = box.status()
    if as_json:
        say(
            json.dumps(
                {
                    "pending": found.pending,
                    "failing": found.failing,
                    "oldest_seconds": found.oldest_seconds,
                    "errors": dict(found.errors),
                }
            )
        )
    elif not found.pending:
        say("nothing is pending: both stores have every write")
    else:
        say(
            f"{found.pending:,} key(s) pending, {found.failing:,} after a failure, "
            f"the oldest for {found.oldest_seconds:,.0f} s; bring them with: amprenta-vectors outbox drain"
        )
        for error, keys in found.errors:
            say(f"  {keys:,} key(s): {error}")
    ctx.exit(ExitCode.FAILED if found.pending else ExitCode.CLEAN)


@outbox.command()
@click.pass_context
def drain(ctx: click.Context) -> None:
    """Bring the other store what is pending, in all namespaces; may be repeated and run beside the application.

    Exit 0 if all is brought, else 1. The other store is whichever of VECTOR_BACKEND and VECTOR_SECONDARY is not
    pgvector.
    """
    from amprenta_vectors.config import Settings
    from amprenta_vectors.schema.registry import get_table
    from amprenta_vectors.stores.factory import BACKENDS

    settings = Settings.load()
    others = [
        name for name in (settings.vector_backend, settings.vector_secondary) if name in BACKENDS.keys() - {"pgvector"}
    ]
    if not others:
        raise ConfigError(
            f"VECTOR_BACKEND is {settings.vector_backend!r} and VECTOR_SECONDARY {settings.vector_secondary!r}: "
            "which store is to be brought what is pending?",
            hint="export VECTOR_SECONDARY=pinecone",
        )
    columns = get_table(settings.table, settings.config).namespace_columns
    brought, refusal = 0, None
    with _open_outbox(settings) as box:
        for scope in box.pending_scopes():
            namespace = "/".join(scope.get(name, "") for name in columns)
            of_scope = settings.model_copy(update={"namespace": namespace})
            done, error = _drain_scope(of_scope, others[0])
            brought, refusal = brought + done, error or refusal
        left = box.status().pending
    say(f"{brought:,} key(s) brought to {others[0]}, {left:,} pending")
    if refusal is not None:
        again = "" if isinstance(refusal, TransientError) else "; write these keys again with what it takes"
        say(f"  {others[0]} said: {refusal.message}{again}", err=True)
    ctx.exit(ExitCode.FAILED if left else ExitCode.CLEAN)


@contextmanager
def _open_outbox(settings: Settings) -> Iterator[Outbox]:
    """Open the outbox of all scopes of the table."""
    from amprenta_vectors.schema.catalogue import located
    from amprenta_vectors.schema.registry import get_table
    from amprenta_vectors.stores.outbox import Outbox

    engine = open_database(settings, 1)
    try:
        with engine.connect() as connection:
            table = located(connection, get_table(settings.table, settings.config))
        yield Outbox(engine, table.target, {})
    finally:
        engine.dispose()


def _drain_scope(settings: Settings, backend: str) -> tuple[int, AmprentaError | None]:
    from amprenta_vectors.stores.composites.dual import drain as bring
    from amprenta_vectors.stores.factory import BACKENDS, open_pgvector_store

    with closing(open_pgvector_store(settings)) as pgvector, closing(BACKENDS[backend](settings)) as other:
        return bring(pgvector.open_outbox(), pgvector, other, at_once=True)
