"""``python -m amprenta_vectors.sandbox.pinecone``: an emulator in the foreground."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import click

from amprenta_vectors.allocator import reuse_freed_memory
from amprenta_vectors.sandbox.pinecone.search import METRICS
from amprenta_vectors.sandbox.pinecone.server import PineconeEmulator

KEPT_BYTES = 512 * 1024 * 1024


@click.command()
@click.option(
    "--file", "path", type=click.Path(path_type=Path, dir_okay=False), help="SQLite file that keeps the index."
)
@click.option("--port", default=0, show_default="a free one")
@click.option("--grpc-port", default=0, show_default="a free one")
@click.option("--name", default="sandbox", show_default=True)
@click.option("--dimension", default=256, show_default=True)
@click.option("--metric", default="cosine", show_default=True, type=click.Choice(METRICS))
@click.option("--model", help="Embedding model that the index's description names.")
@click.option("--api-key", default="sandbox-key", show_default=True)
def main(
    path: Path | None,
    port: int,
    grpc_port: int,
    name: str,
    dimension: int,
    metric: str,
    model: str | None,
    api_key: str,
) -> None:
    """Serve one Pinecone index on loopback until SIGTERM or SIGINT; when ready, print where, as one line of JSON."""
    reuse_freed_memory(KEPT_BYTES)
    # Blocked before any thread starts, so that every thread leaves them to the wait below.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    with PineconeEmulator(
        path,
        name=name,
        dimension=dimension,
        metric=metric,
        model=model,
        api_key=api_key,
        port=port,
        grpc_port=grpc_port,
    ) as emulator:
        click.echo(json.dumps({"host": emulator.host, "grpc_host": emulator.grpc_host, "pid": os.getpid()}))
        signal.sigwait(signals)


if __name__ == "__main__":
    main()
