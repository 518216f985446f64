"""The limits on what a command asks of its source: the options, and the orders that they become for a run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from amprenta_vectors.config import Settings

Command = TypeVar("Command", bound=Callable[..., Any])

_HELP = {
    "list_per_second": "List requests a second, of all processes together; off: no limit.  "
    "[env var: AMPRENTA_LIST_PER_SECOND; default: 200, Pinecone's limit]",
    "fetch_per_second": "Fetch requests a second, likewise.  "
    "[env var: AMPRENTA_FETCH_PER_SECOND; default: 100, Pinecone's limit]",
    "read_units_per_second": "Read units a second, likewise.  [env var: AMPRENTA_READ_UNITS_PER_SECOND; default: off]",
    "max_read_units": "Stop before the run has cost more than so many read units, repeated requests included.  "
    "[env var: AMPRENTA_MAX_READ_UNITS; default: off]",
    "tokens_per_second": "Tokens a second of an embedding service, of all processes together.  "
    "[env var: AMPRENTA_TOKENS_PER_SECOND; default: off]",
    "token_price": "What a million tokens cost, in the currency of --max-cost.  [env var: AMPRENTA_TOKEN_PRICE]",
    "max_cost": "Stop before embedding has cost more than so much, repeated requests included.  "
    "[env var: AMPRENTA_MAX_COST; default: off]",
}


def limit_options(command: Command) -> Any:
    """Add the options of the limits, handed to the command as ``rates``: by the setting's name, None if not given."""

    @functools.wraps(command)
    def collect(*arguments: Any, **options: Any) -> Any:
        return command(*arguments, rates={name: options.pop(name) for name in _HELP}, **options)

    decorated: Any = collect
    for name, text in reversed(_HELP.items()):
        decorated = click.option(f"--{name.replace('_', '-')}", metavar="N", help=text)(decorated)
    return decorated


def orders_of(settings: Settings, rates: Mapping[str, str | None]) -> dict[str, float]:
    """Return the limits given as options, which hold for the run from now on, in all its processes; 0 is no limit."""
    return {name: getattr(settings.source_limits, name) or 0 for name, text in rates.items() if text is not None}
