"""Moves that retry quarantined rows."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from amprenta_vectors.backfill.progress import quarantine, runs
from amprenta_vectors.backfill.progress.keys_from import Side, is_retry, retry_of, side_of
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import RunConflict
from amprenta_vectors.moves.ends import Ends, scope_of
from amprenta_vectors.moves.move import Move

RETRY_BATCH = 64
"""The most keys in a batch of a retry: so few that each refused row is isolated, however many there are."""


def open_retries(
    settings: Settings, ends: Ends, namespace: str, reason: str | None, stop: threading.Event
) -> list[Move]:
    """Return the retries of one namespace: the unfinished one, else one for each kind of run that quarantined rows.

    Raises `RunConflict` while another run into the slice is unfinished.
    """
    target, scope = ends.table.target, scope_of(ends.table, namespace)
    with ends.engine.connect() as connection:
        begun = runs.unfinished_run(connection, target, scope)
        waiting = quarantine.kinds_to_retry(connection, target, scope, ends.origin.kind, reason)
    if begun is not None and not is_retry(begun.keys_from or "table"):
        raise RunConflict(
            f"run {begun.id} into {target} is unfinished",
            hint="amprenta-vectors backfill --resume resumes it; then take again what was quarantined",
        )
    if begun is not None and begun.keys_from is not None:
        kinds = [(begun.keys_from, begun.replaces)]
    else:
        sides: set[tuple[Side, bool]] = {(side_of(keys_from), replaces) for keys_from, replaces in waiting}
        kinds = [(retry_of(side), replaces) for side, replaces in sorted(sides)]
    return [
        Move(
            settings,
            namespace=namespace,
            mode="new" if begun is None else "resume",
            keys_from=keys_from,
            ends=ends,
            stop=stop,
            replace=replaces,
            batch_size=min(settings.batch_size, RETRY_BATCH),
            retry_reason=reason,
        )
        for keys_from, replaces in kinds
    ]


def has_quarantined(ends: Ends, namespaces: Sequence[str], reason: str | None) -> bool:
    """Return whether rows of the namespaces are quarantined for ``reason``, or for any if it is None."""
    scopes = [scope_of(ends.table, namespace) for namespace in namespaces]
    with ends.engine.connect() as connection:
        found = [
            each
            for scope in scopes
            for each in quarantine.quarantined_keys(connection, ends.table.target, scope).values()
        ]
    return bool(found) if reason is None else reason in found
