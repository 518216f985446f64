"""``amprenta-vectors serve``: the models system over HTTP."""

from __future__ import annotations

import logging
from functools import partial

import click

from amprenta_vectors.cli.options import log_options, stop_on_signal
from amprenta_vectors.cli.printer import log_to_stderr, say

REQUESTS_IN_HAND = "the requests in hand, which are answered"


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at; 0.0.0.0 is every one.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: one that is free.")
@log_options
def serve(host: str, port: int, log_format: str | None) -> None:
    """Serve searches and embeddings of the models system over HTTP, until Ctrl-C or SIGTERM.

    AMPRENTA_JWT_ALGORITHM and the variables beside it say which bearer tokens are accepted; without them only this
    machine is served. Each request is a line of the log, without what it asks for. docs/http.md has the endpoints.
    """
    from amprenta_vectors.config import Settings
    from amprenta_vectors.extras import needing

    settings = Settings.load(log_format=log_format)
    with needing("service"):
        from amprenta_vectors.service import opening, server
    log_to_stderr(logging.WARNING, "%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("amprenta_vectors.service").setLevel(logging.INFO)
    server.run_server(
        settings,
        host,
        port,
        opening.open_service,
        partial(stop_on_signal, waits_for=REQUESTS_IN_HAND),
        lambda address: say(f"serving at {address}; its endpoints: {address}/docs"),
    )
