"""An application that asks all the time: by the old column at first, by the models system once that is there."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from pathlib import Path

import click
import sqlalchemy as sa

from amprenta_vectors.config import Settings
from amprenta_vectors.db import create_async_engine
from amprenta_vectors.embedders.wordllama import WordLlamaEmbedder
from amprenta_vectors.sandbox.demo import QUESTIONS
from amprenta_vectors.systems.models import Database, Retriever

PAUSE_SECONDS = 0.02
TOP_K = 5
_OLD = sa.text("""
    SELECT c.content FROM chunk_embeddings e JOIN chunks c ON c.id = e.chunk_id
    ORDER BY e.embedding <=> CAST(:vector AS vector) LIMIT 5
""")
_REGISTERED = sa.text("SELECT to_regclass('model_column') IS NOT NULL")


async def ask_the_old_way(settings: Settings, stop: asyncio.Event, counts: Counter[str]) -> None:
    """Search the column by SQL until models are registered."""
    engine, vector = create_async_engine(settings), str(WordLlamaEmbedder().embed([QUESTIONS[0]])[0].tolist())
    while not stop.is_set():
        async with engine.connect() as connection:
            rows = (await connection.execute(_OLD, {"vector": vector})).all()
            counts["old" if len(rows) == TOP_K else "empty"] += 1
            if (await connection.execute(_REGISTERED)).scalar_one():
                registered = sa.text(
                    "SELECT count(*) FROM model_column JOIN embedding_models ON id = model_id "
                    "WHERE searched AND provider IS NOT NULL"
                )
                if (await connection.execute(registered)).scalar_one():
                    break
        await asyncio.sleep(PAUSE_SECONDS)
    await engine.dispose()


async def ask(stop: asyncio.Event, counts: Counter[str]) -> None:
    """Search by text, by whatever model is searched, until ``stop`` is set; count the answers of each model."""
    settings = Settings.load()
    await ask_the_old_way(settings, stop, counts)
    db = Database(settings)
    retriever = Retriever(db)
    while not stop.is_set():
        for question in QUESTIONS:
            try:
                found = await retriever.search(query=question, top_k=TOP_K)
                models = {model for each in found for model in each.models}
                counts["empty" if len(found) < TOP_K else "mixed" if len(models) > 1 else models.pop()] += 1
            except Exception as error:
                counts["failed"] += 1
                click.echo(f"failed: {error}", err=True)
        await asyncio.sleep(PAUSE_SECONDS)
    await db.close()


async def run(output: Path) -> None:
    """Ask until SIGTERM; then write what was counted to ``output``."""
    stop, counts = asyncio.Event(), Counter[str]()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await ask(stop, counts)
    output.write_text(json.dumps(counts))


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="Where the counts go at the end.")
def main(output: Path) -> None:
    """Ask the models system in DATABASE_URL until SIGTERM."""
    asyncio.run(run(output))


if __name__ == "__main__":
    main()
