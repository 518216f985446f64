"""``amprenta-vectors``: options become `Settings`, and each command is one call."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import click
from sqlalchemy.exc import DBAPIError

from amprenta_vectors.allocator import reuse_freed_memory
from amprenta_vectors.errors import AmprentaError

KEPT_BYTES = 16 * 1024 * 1024
"""Freed memory that is kept for the next batch; one of 1000 × 1536 is 6 MB, as it comes and as it is kept."""

_COMMANDS = {
    "backfill": "amprenta_vectors.cli.backfill:backfill",
    "benchmark": "amprenta_vectors.cli.benchmark:benchmark",
    "cancel": "amprenta_vectors.cli.control:cancel",
    "canary": "amprenta_vectors.cli.canary:canary",
    "compare": "amprenta_vectors.cli.compare:compare",
    "db": "amprenta_vectors.cli.db:db",
    "doctor": "amprenta_vectors.cli.doctor:doctor",
    "documents": "amprenta_vectors.cli.documents:documents",
    "errors": "amprenta_vectors.cli.errors:errors",
    "gate": "amprenta_vectors.cli.gate:gate",
    "index": "amprenta_vectors.cli.index:index",
    "limits": "amprenta_vectors.cli.control:limits",
    "pause": "amprenta_vectors.cli.control:pause",
    "products": "amprenta_vectors.cli.products:products",
    "reconcile": "amprenta_vectors.cli.reconcile:reconcile",
    "report": "amprenta_vectors.cli.report:report",
    "resume": "amprenta_vectors.cli.control:resume",
    "retry-failed": "amprenta_vectors.cli.errors:retry_failed",
    "outbox": "amprenta_vectors.cli.outbox:outbox",
    "sandbox": "amprenta_vectors.cli.sandbox:sandbox",
    "sources": "amprenta_vectors.cli.sources:sources",
    "status": "amprenta_vectors.cli.status:status",
    "tables": "amprenta_vectors.cli.tables:tables",
    "tune": "amprenta_vectors.cli.tune:tune",
    "verify": "amprenta_vectors.cli.verify:verify",
}


class Commands(click.Group):
    """Imports a command when it is asked for, and ends with an error's own message and exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command's name."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it raises is said in one message, never as a traceback."""
        from amprenta_vectors.pg.errors import to_error

        # The process is the command's own, so that its allocator may be told how to work.
        reuse_freed_memory(KEPT_BYTES)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                result = super().invoke(ctx)
        except AmprentaError as error:
            failure = error
        except DBAPIError as error:
            failure = to_error(error, "the database refused a statement")
        else:
            return result
        click.echo(f"error: {failure}", err=True)
        return ctx.exit(failure.exit_code)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {message}", err=True)


@click.command(cls=Commands)
@click.version_option(package_name="amprenta_vectors")
def main() -> None:
    """Move a running application's embeddings into PostgreSQL + pgvector, and back.

    Where things are comes from the environment: DATABASE_URL, PINECONE_API_KEY, PINECONE_INDEX_NAME and the others that
    the README lists. Exit codes: 0 clean, 1 failed, 2 usage or configuration, 3 finished with rows set aside, 130
    interrupted and resumable.
    """
