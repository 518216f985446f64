"""The plan of a move: what it would do, cost and need, found without changing anything."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.engine import Engine

from amprenta_vectors.backends.protocol import Metered, PaidSource, SourceDescription
from amprenta_vectors.backfill.database.estimate import Estimate, estimate
from amprenta_vectors.backfill.database.text_estimate import TextEstimate, estimate_texts
from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.progress.keys_from import KeysFrom
from amprenta_vectors.schema.unused import Unused, unused_columns
from amprenta_vectors.schema.vector_table import VectorTable
from amprenta_vectors.server import server_versions


@dataclass(frozen=True)
class Plan:
    """The plan of a move.

    ``metered`` tells whether the source's requests cost read units, ``unused`` which columns of the table have no use.
    ``texts`` is there if a service embeds them.
    """

    table: VectorTable
    source: SourceDescription
    keys_from: KeysFrom
    model: str | None
    server: int
    pgvector: str | None
    figures: Estimate
    metered: bool
    texts: TextEstimate | None
    unused: Unused


def plan_job(engine: Engine, job: Job) -> Plan:
    """Count at both ends, and estimate what the job will take."""
    described = job.source.description
    with engine.connect() as connection:
        server, pgvector = server_versions(connection)
        unused = unused_columns(connection, job.slice.table)
        figures = estimate(
            connection,
            job.slice,
            described.count or 0,
            *job.wanted,
            from_source=job.kind.keys_from == "source",
            model=job.model,
            limit=job.limit,
            builds_index=job.builds_index,
            defers_index=job.defer_index,
        )
    metered = isinstance(job.source, Metered) and job.source.unit == "read_units"
    texts = None
    if isinstance(job.source, PaidSource):
        texts = estimate_texts(
            job.source,
            job.source_limits,
            only_empty=job.kind.keys_from == "table",
            limit=job.limit,
            batch_size=job.batch_size,
            workers=job.workers,
        )
    return Plan(
        job.slice.table, described, job.kind.keys_from, job.model, server, pgvector, figures, metered, texts, unused
    )
