"""Every error the package raises; the type alone decides what happens next.

AmprentaError                   exit 1
├── ConfigError                 exit 2: a setting or an argument is missing or wrong
│   ├── UnknownBackend
│   └── UnknownModel        a model that is not registered
├── NotUpgraded                 exit 2: the schema is older than this command needs
├── SchemaMismatch              exit 2: a table is not what its description says
│   ├── DimensionMismatch
│   ├── FilterUnsupported       a filter that another store may answer
│   └── ServerUnsuitable        PostgreSQL or pgvector too old, absent or not allowed
├── RunConflict                 exit 2: a run exists, has changed or belongs to somebody else
├── FilterError                 exit 2: a metadata filter that Pinecone would refuse
├── TransientError              back off and try again; no attempt is charged
│   ├── RateLimited
│   └── TimedOut                halve what was asked for, then treat it as any other
├── CredentialsRefused          exit 2: stop the run
├── SourceNotFound              exit 2: stop the run
├── MissingExtra                exit 2: an optional package is not installed
├── SourceError                 exit 1: the source answered what its protocol does not allow
│   └── KeysRefused             halve the keys that were asked for until the refused ones stand alone
├── LimitReached                exit 1: the next request would pass the limit; the run can be resumed
├── TooManyQuarantined          exit 1: more rows were quarantined than may be; the run can be resumed
├── ModelMismatch               exit 2: vectors are not from the model that they are said to be from
├── RowError                    quarantine the row and continue
└── LeaseLost                   the batch belongs to another worker now; drop it

`ExitCode` says what each code means; `worst` tells the code of several moves together.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from amprenta_vectors.shown import printable

HINT = "\n  hint: "
"""Between a message and its hint."""


class ExitCode(IntEnum):
    """How a command or a move ended."""

    CLEAN = 0
    FAILED = 1
    """The command or move failed, or a vector differs."""
    USAGE = 2
    """A setting, an argument or the state of the database does not allow the command or move."""
    QUARANTINED = 3
    """The command or move finished, and rows were quarantined."""
    INTERRUPTED = 130
    """The command or move was told to stop, and can be resumed."""


WORST_FIRST = (ExitCode.INTERRUPTED, ExitCode.FAILED, ExitCode.USAGE, ExitCode.QUARANTINED, ExitCode.CLEAN)


def worst(codes: Iterable[ExitCode]) -> ExitCode:
    """Return the code that stands for all ``codes``; with no codes, nothing was to do, which is clean."""
    return min(codes, key=WORST_FIRST.index, default=ExitCode.CLEAN)


class AmprentaError(Exception):
    """An error that says what was expected and what was found, with a ``hint``: what to type to mend it."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Return the message on a line, and the hint on another; neither has more lines, whatever it quotes."""
        message = printable(self.message)
        return f"{message}{HINT}{printable(self.hint)}" if self.hint else message


class ConfigError(AmprentaError):
    """A setting or an argument is missing, malformed or contradicts another."""

    exit_code = ExitCode.USAGE


class UnknownBackend(ConfigError):
    """``VECTOR_BACKEND`` names no store."""


class UnknownModel(ConfigError):
    """A model that is asked for is not registered for the table."""


class NotUpgraded(AmprentaError):
    """The database lacks a table or column that a revision makes."""

    exit_code = ExitCode.USAGE


class SchemaMismatch(AmprentaError):
    """A table lacks a column, type or unique index that is relied on."""

    exit_code = ExitCode.USAGE


class DimensionMismatch(SchemaMismatch):
    """Two sides that must agree on the number of dimensions do not."""


class FilterUnsupported(SchemaMismatch):
    """A filter asks a field that this table has no column for, or one of a type that no operand equals.

    Another store may have an answer, so it is a fault of the table and not of the question.
    """


class ServerUnsuitable(SchemaMismatch):
    """PostgreSQL is too old, lacks pgvector, or does not let this role do what is needed."""


class RunConflict(AmprentaError):
    """An unfinished run stands in the way, or what it was started with has changed."""

    exit_code = ExitCode.USAGE


class FilterError(AmprentaError):
    """A metadata filter with an operator or operand that the filter language does not have."""

    exit_code = ExitCode.USAGE


class TransientError(AmprentaError):
    """An error that is likely to pass if the call is made again: an outage, a time-out, a restart, a lock."""


class RateLimited(TransientError):
    """The source asked for fewer requests; ``retry_after`` is the wait in seconds that it asked for."""

    def __init__(self, message: str, hint: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after


class TimedOut(TransientError):
    """A request or a statement took longer than it may: with less to do at once it may go through."""


class CredentialsRefused(AmprentaError):
    """A key or password was not accepted."""

    exit_code = ExitCode.USAGE


class SourceNotFound(AmprentaError):
    """The index, namespace, collection or file named does not exist."""

    exit_code = ExitCode.USAGE


class SourceError(AmprentaError):
    """The source answered something that its protocol does not allow."""


class KeysRefused(SourceError):
    """The source refused a request as a whole; keys in it may be at fault, its other requests are not."""


class LimitReached(AmprentaError):
    """The next request to the source may cost more than the limit on read units, or on the cost, leaves."""


class TooManyQuarantined(AmprentaError):
    """A larger share of a run's keys was quarantined than is allowed."""


class ModelMismatch(AmprentaError):
    """Vectors are not those that the model they are taken to be from gives for the same texts."""

    exit_code = ExitCode.USAGE


class MissingExtra(AmprentaError):
    """An optional dependency is not installed."""

    exit_code = ExitCode.USAGE


class RowError(AmprentaError):
    """One row cannot be carried over; ``reason`` is a code from :class:`amprenta_vectors.reasons.Reason`."""

    def __init__(self, key: str, reason: str, detail: str) -> None:
        super().__init__(f"{key!r}: {reason}: {detail}")
        self.key = key
        self.reason = reason
        self.detail = detail


class LeaseLost(AmprentaError):
    """Another worker took the batch after this one's lease ran out."""
