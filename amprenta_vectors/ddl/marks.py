"""How the operations mark what they made, and what a downgrade keeps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from amprenta_vectors.pg.names import compose, literal, suffixed

MADE = "made by amprenta_vectors"
"""The comment on what an operation created. Only what bears it is ever dropped."""
RETIRED = "retired by amprenta_vectors at "
"""The beginning of the comment on what a downgrade kept under a retired name; a `Retirement` follows."""


def retired_name(name: str) -> str:
    """Return the name that a column or table is kept under after a downgrade."""
    return suffixed(name, "_retired")


def building_name(name: str) -> str:
    """Return the name that an index has until it is complete and marked as ours."""
    return suffixed(name, "_building")


def is_unfinished(name: str) -> bool:
    """Return whether an index of that name is one that was never named for good."""
    return name.endswith("_building")


def is_retired(comment: str) -> bool:
    """Return whether a downgrade of ours left what bears ``comment``; another of such a name is not ours to take."""
    return comment.startswith(RETIRED)


def is_ours(comment: str) -> bool:
    """Return whether an operation of ours made, or a downgrade of ours kept, what bears ``comment``."""
    return comment == MADE or is_retired(comment)


@dataclass(frozen=True)
class Retirement:
    """When a downgrade took something out of use, in a form by which changes since can be told.

    ``moment`` is no later than the downgrade; every transaction before ``transaction`` (a 64-bit id) of the cluster
    with that system ``identifier`` had ended. Either may be unknown.
    """

    moment: datetime | None
    transaction: int | None
    identifier: int | None

    @classmethod
    def parse(cls, comment: str) -> Retirement:
        """Read what `comment_retired` wrote; what is not there, or not readable, is unknown."""
        moment, _, rest = comment.removeprefix(RETIRED).partition(";")
        transaction, _, identifier = rest.partition(";")
        try:
            at = datetime.fromisoformat(moment)
        except ValueError:
            at = None
        numbers = [int(text) if text.isdigit() else None for text in (transaction, identifier)]
        return cls(at if at is not None and at.tzinfo is not None else None, numbers[0], numbers[1])


def comment_retired(described: str) -> str:
    """Return the statement that comments ``described`` (``COLUMN "t"."c"``) as retired now.

    A comment is a literal, so that what is only known when it runs needs a DO block. The moment is the beginning of the
    oldest transaction: what that one writes from now on bears that time. It is unknown to a role that may not see it.
    """
    comment = literal(f"COMMENT ON {described.replace('%', '%%')} IS %L")
    return compose(_RETIRE, comment=comment, retired=literal(RETIRED))


_RETIRE = """\
DO $amprenta$
DECLARE
    identifier text := '';
BEGIN
    BEGIN
        SELECT system_identifier INTO identifier FROM pg_control_system();
    EXCEPTION WHEN insufficient_privilege THEN
        NULL;
    END;
    EXECUTE format({comment}, (
        SELECT {retired} || CASE
            WHEN bool_or(NOT pg_has_role(usesysid, 'USAGE')) AND NOT pg_has_role('pg_read_all_stats', 'USAGE')
            THEN 'unknown'
            ELSE to_char(least(clock_timestamp(), min(xact_start)) AT TIME ZONE 'UTC',
                'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"')
            END || ';' || pg_snapshot_xmin(pg_current_snapshot()) || ';' || identifier
        FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
    ));
END $amprenta$"""
