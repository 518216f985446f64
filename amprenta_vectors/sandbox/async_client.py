"""An application that awaits: it reads and writes the table passages all the time, and counts what failed."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import click

from amprenta_vectors.config import Settings
from amprenta_vectors.db import engine_url
from amprenta_vectors.extras import require_extra

PAUSE_SECONDS = 0.01
_READ = """
    SELECT id, as_json FROM passages WHERE id >= (SELECT (random() * max(id))::bigint FROM passages)
    ORDER BY id LIMIT 1
"""
AT_ONCE = 4
"""Tasks that read and write side by side."""


async def use(url: str, stop: asyncio.Event, counts: dict[str, int]) -> None:
    """Read a passage by chance with its embedding, and count the view, until ``stop`` is set."""
    asyncpg = require_extra("asyncpg", "async")
    pool = await asyncpg.create_pool(url, min_size=1, max_size=AT_ONCE)

    async def work() -> None:
        while not stop.is_set():
            try:
                row = await pool.fetchrow(_READ)
                if row is not None:
                    await pool.execute("UPDATE passages SET views = views + 1 WHERE id = $1", row["id"])
                    counts["views"] += 1
            except (asyncpg.PostgresError, OSError) as error:
                counts["failed"] += 1
                click.echo(f"failed: {error}", err=True)
            await asyncio.sleep(PAUSE_SECONDS)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    await pool.close()


async def run(url: str, output: Path) -> None:
    """Use the table until SIGTERM; then write what was counted to ``output``."""
    stop, counts = asyncio.Event(), {"views": 0, "failed": 0}
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await use(url, stop, counts)
    output.write_text(json.dumps(counts))


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Where the counts go at the end.")
def main(output: Path) -> None:
    """Use the table passages in DATABASE_URL, by asyncpg, until SIGTERM."""
    url = engine_url(Settings.load()).set(drivername="postgresql")
    asyncio.run(run(url.render_as_string(hide_password=False), output))


if __name__ == "__main__":
    main()
