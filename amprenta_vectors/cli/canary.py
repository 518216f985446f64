"""``amprenta-vectors canary``: one small search end to end, for a scheduler."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import TimeoutError as TookTooLong
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from amprenta_vectors.cli.options import json_option
from amprenta_vectors.cli.printer import say
from amprenta_vectors.errors import AmprentaError, ConfigError, ExitCode, TimedOut
from amprenta_vectors.stores.top_k import MAX_TOP_K

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from amprenta_vectors.config import Settings
    from amprenta_vectors.stores.canary import Song


@click.command()
@click.option("--top-k", type=click.IntRange(1, MAX_TOP_K), default=10, show_default=True, help="Hits to ask for.")
@click.option("--min-hits", type=click.IntRange(min=0), default=1, show_default=True, help="Fewer hits are a failure.")
@click.option("--max-ms", type=click.FloatRange(min=0, min_open=True), help="A slower search is a failure.")
@click.option(
    "--timeout-seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="No answer in that time, connections included, is a failure.",
)
@click.option("--text", help="Search for this text, by AMPRENTA_EMBEDDER.  [default: for a stored vector]")
@json_option("One JSON object, also where the search fails.")
@click.pass_context
def canary(
    ctx: click.Context,
    top_k: int,
    min_hits: int,
    max_ms: float | None,
    timeout_seconds: float,
    text: str | None,
    as_json: bool,
) -> None:
    """Search once as the application does, by VECTOR_BACKEND and VECTOR_MODE.

    Exit 0 if there are hits in time, 1 if not or if the search fails, 2 for a setting. Neither text nor vector is
    printed.
    """
    from amprenta_vectors.config import Settings
    from amprenta_vectors.stores.canary import sing

    try:
        settings = Settings.load()
        song = _within(timeout_seconds, lambda: sing(settings, _question(settings, text), top_k=top_k))
    except AmprentaError as error:
        if not as_json:
            raise
        say(json.dumps({"ok": False, "failures": [error.message]}))
        ctx.exit(error.exit_code)
    failures = _failures(song, min_hits, max_ms)
    if as_json:
        say(json.dumps({"ok": not failures, "failures": failures, **asdict(song)}))
    else:
        say(
            f"{song.backend} answered in {song.latency_ms:.1f} ms with {song.hits} hit(s), connected in "
            f"{song.connect_ms:.0f} ms"
        )
        for failure in failures:
            say(f"failed: {failure}", err=True)
    ctx.exit(ExitCode.FAILED if failures else ExitCode.CLEAN)


def _within(seconds: float, search: Callable[[], Song]) -> Song:
    """Return what ``search`` returns within ``seconds``.

    Raises `TimedOut` if it takes longer: the search is left behind, and ends with the process.
    """
    from amprenta_vectors.stores.daemons import DaemonPool

    try:
        return DaemonPool(1, "canary").submit(search).result(seconds)
    except TookTooLong:
        raise TimedOut(f"no answer in {seconds:g} s", hint="amprenta-vectors doctor; or --timeout-seconds") from None


def _question(settings: Settings, text: str | None) -> NDArray[np.float32]:
    from amprenta_vectors.embedders.factory import open_embedder
    from amprenta_vectors.stores.canary import stored_question

    if text is None:
        return stored_question(settings)
    if settings.embedder is None:
        raise ConfigError("--text needs an embedder, and AMPRENTA_EMBEDDER is not set", hint="leave --text out")
    vector: NDArray[np.float32] = open_embedder(settings).embed([text])[0]
    return vector


def _failures(song: Song, min_hits: int, max_ms: float | None) -> list[str]:
    failures = []
    if song.hits < min_hits:
        failures.append(f"{song.hits} hit(s); expected {min_hits} or more (--min-hits)")
    if max_ms is not None and song.latency_ms > max_ms:
        failures.append(f"the search took {song.latency_ms:.1f} ms; expected {max_ms:g} ms at most (--max-ms)")
    return failures
