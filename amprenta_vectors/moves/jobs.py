"""The job of one move, from the settings and what was asked for beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypedDict, Unpack

from sqlalchemy.engine import Engine

from amprenta_vectors.backfill.database.preflight import check_target
from amprenta_vectors.backfill.engine.job import Job
from amprenta_vectors.backfill.engine.keys import count_empty
from amprenta_vectors.backfill.engine.keys_from import KeysFrom, is_known, side_of
from amprenta_vectors.backfill.engine.starting import Mode
from amprenta_vectors.backfill.progress import runs
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.moves.ends import Ends, key_map_for, scope_of


class JobOptions(TypedDict, total=False):
    """What a person may ask of a job beside the settings: fields of `Job`."""

    limit: int | None
    defer_index: bool
    given_keys: Sequence[str]
    replace: bool
    delete: bool
    retry_reason: str | None
    limits: Mapping[str, float]
    model: str | None
    batch_size: int
    max_bad_share: float


def open_job(
    settings: Settings,
    ends: Ends,
    namespace: str,
    mode: Mode,
    keys_from: KeysFrom | None,
    **options: Unpack[JobOptions],
) -> Job:
    """Return the job for one namespace; a run that is resumed keeps the options that are not given again.

    With ``given_keys`` it is for these source keys alone. It may ``replace`` values that are there.
    """
    engine, table, origin = ends.engine, ends.table, ends.origin
    scope = scope_of(table, namespace)
    with engine.connect() as connection:
        begun = runs.unfinished_run(connection, table.target, scope) if mode in ("resume", "join") else None
        if begun is not None:
            keys_from = keys_from or begun.keys_from
            options["limit"] = options.get("limit") or begun.row_limit
            options["replace"] = options.get("replace") or begun.replaces
        if options.get("given_keys"):
            keys_from = "given"
        keys_from = keys_from or ("source" if options.get("replace") else "table")
        key_map = key_map_for(engine, table, scope, origin.kind)
        inserts = side_of(keys_from) == "source" and key_map.makes_keys
        if keys_from == "reconcile" and not origin.lists:
            raise ConfigError(
                f"{origin.name} cannot list its ids, so that nobody can tell which are new",
                hint="amprenta-vectors verify compares the rows that are there",
            )
        if keys_from == "source" and not origin.lists:
            raise ConfigError(
                f"{origin.name} cannot list its ids: there are no keys from the source",
                hint="--keys-from table fills the rows that are there; their own keys are the ids",
            )
        check_target(connection, table, insert=inserts, delete=bool(options.get("delete")) and key_map.makes_keys)
    job = Job(
        table=table,
        scope=scope,
        source=origin.open(table, namespace, with_metadata=inserts),
        key_map=key_map,
        keys_from=keys_from,
        model=settings.embedding_model or origin.model,
        batch_size=settings.batch_size,
        max_bad_share=settings.max_bad_share,
        workers=settings.workers,
        batch_seconds=settings.batch_seconds,
        lease_seconds=settings.lease_seconds,
        retry_seconds=settings.retry_seconds,
        drain_seconds=settings.drain_seconds,
        poll_seconds=settings.poll_seconds,
        source_limits=settings.source_limits,
    )
    return replace(job, **options)


def open_comparison(settings: Settings, ends: Ends, namespace: str) -> Job:
    """Return the job whose source and slice are compared; nothing is asked of the table that a reader may not."""
    scope = scope_of(ends.table, namespace)
    return Job(
        table=ends.table,
        scope=scope,
        source=ends.origin.open(ends.table, namespace, with_metadata=False),
        key_map=key_map_for(ends.engine, ends.table, scope, ends.origin.kind),
        keys_from="source",
        model=None,
        batch_size=settings.batch_size,
        workers=settings.workers,
        lease_seconds=settings.lease_seconds,
        retry_seconds=settings.retry_seconds,
        source_limits=settings.source_limits,
    )


def expected_keys(engine: Engine, job: Job) -> int | None:
    """Return how many keys a run of ``job`` will have, as far as that is known before they are listed."""
    if job.keys_from in ("source", "reconcile"):
        described = job.source.description
        return None if job.keys_from == "reconcile" and described.computed else described.count
    if is_known(job.keys_from):
        return None
    with engine.connect() as connection:
        return count_empty(connection, job.table, job.scope)
