"""``amprenta-vectors``: options become `Settings`, and each command is one call."""

from __future__ import annotations

import importlib
import warnings
from difflib import get_close_matches
from typing import Any

import click

from amprenta_vectors.allocator import reuse_freed_memory
from amprenta_vectors.cli.printer import say_error, show_warning, speak_json
from amprenta_vectors.errors import AmprentaError, ExitCode, TimedOut
from amprenta_vectors.interrupts import INTERRUPTS

KEPT_BYTES = 16 * 1024 * 1024
"""Freed memory that is kept for the next batch; one of 1000 × 1536 is 6 MB, as it comes and as it is kept."""

JOURNEY: dict[str, dict[str, str]] = {
    "Try it": {"sandbox": "PostgreSQL with pgvector and a Pinecone index on this machine, and the demo."},
    "1. Expand the schema": {
        "db": "Upgrade and downgrade by the package's own revisions, or plan and print them.",
        "tables": "Vector tables of your own, as amprenta.toml declares them.",
        "sources": "Look at what the vectors are to come from.",
        "doctor": "Look for what is amiss; each finding has the command that mends it.",
    },
    "2. Write to both stores": {"outbox": "Show or bring what one of two stores has not got yet."},
    "3. Fill the column": {
        "backfill": "Fill it from its source; stop it and resume it at will.",
        "status": "Every run, how far it is, and the indexes that wait for one.",
        "pause": "Pause a run, and wait until nobody works at it.",
        "resume": "Let a paused run go on.",
        "cancel": "End a run for good; the rows that it wrote stay.",
        "limits": "Show the limits set on a run, or set some.",
        "errors": "The rows that are quarantined, and how many for each reason.",
        "retry-failed": "Take quarantined rows again, in a run of their own.",
        "reconcile": "Bring the table to what the source has by now.",
    },
    "4. Index it": {
        "index": "Build, rebuild or drop the ANN index, while it is in use.",
        "tune": "Find the cheapest setting of the search that finds enough.",
    },
    "5. Prove it": {
        "verify": "Compare every vector of the source with the table, bit for bit.",
        "compare": "Why a hit is missing, and what shadow queries found.",
        "benchmark": "Recall and latency of the source and of PostgreSQL.",
        "report": "Write what a run did as a page to file, and as JSON.",
    },
    "6. Switch, and contract": {
        "canary": "Search once as the application does.",
        "gate": "Exit 0 if the column is complete, 2 if it is not.",
    },
    "Change the embedding model": {
        "models": "Add a model, migrate the rows to it, compare, switch, and switch back.",
    },
    "Systems": {
        "documents": "Simple vector stores, vectors.pkl and metadata.json of each user.",
        "products": "A product catalogue: its move from ChromaDB to pgvector.",
        "setup": "Documents embedded by several models: their schema, their models.",
        "serve": "The models system over HTTP, for searches and embeddings.",
    },
    "Upkeep": {
        "forget": "Take a person's rows out of everything that is kept here.",
        "prune": "Delete old runs, events and shadow queries; never the last proof.",
    },
}
"""The commands by the step of the journey, with what each does in a line, so that listing them imports none."""

_ELSEWHERE = {
    "cancel": "control:cancel",
    "limits": "control:limits",
    "pause": "control:pause",
    "resume": "control:resume",
    "retry-failed": "errors:retry_failed",
}
"""Commands that share a module; every other command has a module of its own name."""


class Commands(click.Group):
    """A group that imports a command when it is asked for, and ends with an error's own message and exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return every command's name."""
        return [name for commands in JOURNEY.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module, _, name = _ELSEWHERE.get(cmd_name, f"{cmd_name}:{cmd_name}").partition(":")
        command: click.Command = getattr(importlib.import_module(f"amprenta_vectors.cli.{module}"), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is asked for; if there is none of that name, fail and name the nearest."""
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            near = get_close_matches(args[0], self.list_commands(ctx), 1)
            ctx.fail(f"there is no command {args[0]!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands by the step of the journey."""
        for step, commands in JOURNEY.items():
            with formatter.section(step):
                formatter.write_dl(list(commands.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error of this package or of the database is said in one message, never as a traceback."""
        # The process is the command's own, so that its allocator may be told how to work.
        reuse_freed_memory(KEPT_BYTES)
        INTERRUPTS.forget()
        speak_json(False)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = show_warning
                result = super().invoke(ctx)
        except KeyboardInterrupt:
            INTERRUPTS.give_up_statements()
            return ctx.exit(ExitCode.INTERRUPTED)
        except click.Abort as error:
            # A question that Ctrl-C answered, and not a no.
            if isinstance(error.__context__, KeyboardInterrupt):
                return ctx.exit(ExitCode.INTERRUPTED)
            raise
        except AmprentaError as error:
            failure = error
        except (click.ClickException, click.exceptions.Exit):
            raise
        except Exception as error:
            # Only a command that was run has loaded what could raise it.
            from sqlalchemy.exc import DBAPIError

            from amprenta_vectors.pg.errors import to_error

            if not isinstance(error, DBAPIError):
                raise
            failure = to_error(error, "the database refused a statement")
        else:
            return ctx.exit(ExitCode.INTERRUPTED) if INTERRUPTS.asked else result
        # A statement that was given up because of the signal is no failure to speak of.
        if not (INTERRUPTS.asked and isinstance(failure, TimedOut)):
            say_error(failure)
        return ctx.exit(ExitCode.INTERRUPTED if INTERRUPTS.asked else failure.exit_code)


@click.command(cls=Commands)
@click.version_option(package_name="amprenta_vectors")
def main() -> None:
    """Move a running application's embeddings into PostgreSQL + pgvector, and back.

    Where things are comes from the environment: DATABASE_URL, PINECONE_API_KEY, PINECONE_INDEX_NAME and the others that
    the README lists. Exit codes: 0 clean, 1 failed, 2 usage or configuration, 3 finished with rows quarantined, 130
    interrupted and resumable.
    """
