"""The job of one move, from the settings and a person's options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypedDict, Unpack

from sqlalchemy.engine import Engine

from amprenta_vectors.backfill.database.preflight import check_target
from amprenta_vectors.backfill.engine.job import Job, Kind
from amprenta_vectors.backfill.engine.kinds import open_kind
from amprenta_vectors.backfill.engine.starting import Mode
from amprenta_vectors.backfill.progress import runs
from amprenta_vectors.backfill.progress.keys_from import KeysFrom, side_of
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.moves.ends import Ends, slice_of
from amprenta_vectors.schema.keymaps import check_invertible


class JobOptions(TypedDict, total=False):
    """The options of a job beside the settings: fields of `Job`, and of its kind."""

    limit: int | None
    defer_index: bool
    keep_deferred: bool
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

    With ``given_keys`` it is for these source keys alone. With ``replace`` it replaces existing values.
    """
    engine, table, origin = ends.engine, ends.table, ends.origin
    slice_ = slice_of(ends, namespace)
    replaces, deletes = bool(options.pop("replace", False)), bool(options.pop("delete", False))
    given, reason = options.pop("given_keys", ()), options.pop("retry_reason", None)
    with engine.connect() as connection:
        begun = runs.unfinished_run(connection, slice_.target, slice_.scope) if mode in ("resume", "join") else None
        if begun is not None:
            keys_from = keys_from or begun.keys_from
            options["limit"] = options.get("limit") or begun.row_limit
            replaces = replaces or begun.replaces
        if given:
            keys_from = "given"
        keys_from = keys_from or ("source" if replaces else "table")
        inserts = (side_of(keys_from) == "source" and slice_.key_map.makes_keys) or table.texts is not None
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
        if keys_from == "table":
            check_invertible(slice_.key_map)
        check_target(connection, table, insert=inserts, delete=deletes and slice_.key_map.makes_keys)
    kind = open_kind(keys_from, replace=replaces, delete=deletes, given=given, reason=reason)
    job = replace(
        _job(settings, ends, namespace, kind, with_metadata=inserts),
        model=settings.embedding_model or origin.model,
        max_bad_share=settings.max_bad_share,
        batch_seconds=settings.batch_seconds,
        drain_seconds=settings.drain_seconds,
        poll_seconds=settings.poll_seconds,
    )
    return replace(job, **options)  # type: ignore[misc]  # what is left are fields of it


def open_comparison(settings: Settings, ends: Ends, namespace: str) -> Job:
    """Return the job whose source and slice are compared; a role that may only read the table is enough."""
    return _job(settings, ends, namespace, open_kind("source"), with_metadata=False)


def expected_keys(engine: Engine, job: Job) -> int | None:
    """Return how many keys a run of ``job`` will have, as far as that is known before they are listed."""
    with engine.connect() as connection:
        return job.kind.expected_keys(connection, job)


def _job(settings: Settings, ends: Ends, namespace: str, kind: Kind, *, with_metadata: bool) -> Job:
    return Job(
        slice=slice_of(ends, namespace),
        source=ends.origin.open(ends.table, namespace, with_metadata=with_metadata),
        kind=kind,
        model=None,
        batch_size=settings.batch_size,
        workers=settings.workers,
        lease_seconds=settings.lease_seconds,
        retry_seconds=settings.retry_seconds,
        source_limits=settings.source_limits,
    )
