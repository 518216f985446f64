"""The charge of a run by its source, and the limit on it, in words: read units, or tokens and their cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amprenta_vectors.backfill.progress.runs import Run
from amprenta_vectors.schema.kinds import Unit, unit_of


@dataclass(frozen=True)
class Charge:
    """A charge of ``spent`` units, at ``price`` a million tokens. A ``limit`` is in units, or in money."""

    unit: Unit
    spent: int
    limit: float | None = None
    price: float | None = None

    @property
    def name(self) -> str:
        """The unit, for messages."""
        return self.unit.replace("_", " ")

    @property
    def cost(self) -> float | None:
        """The cost of the tokens; None without a price."""
        return None if self.price is None else self.spent / 1_000_000 * self.price

    def describe(self) -> str:
        """Return what was charged, and the limit if there is one."""
        most = "" if self.limit is None else f" of {to_limit(self.unit, self.limit)} at most"
        if self.cost is None:
            return f"{self.spent:,} {self.name}{most}"
        return f"{self.spent:,} {self.name}, which cost {to_money(self.cost)}{most}"

    def to_json(self) -> dict[str, Any]:
        """Return the fields that ``status --json`` and the report have: one for each unit, the other is null."""
        units = {"spent": self.spent, "limit": self.limit}
        if self.unit == "read_units":
            return {"read_units": units, "tokens": None}
        tokens = {"spent": self.spent, "price": self.price, "cost": self.cost, "max_cost": self.limit}
        return {"read_units": None, "tokens": tokens}


def charge_of(run: Run) -> Charge:
    """Return what a run was charged."""
    limits: Mapping[str, float] = run.limits
    if unit_of(run.source_kind) == "read_units":
        return Charge("read_units", run.read_units, limits.get("max_read_units") or None)
    return Charge("tokens", run.read_units, limits.get("max_cost") or None, limits.get("token_price") or None)


def to_money(amount: float) -> str:
    """Return an amount without its currency, which is that of the price: in hundredths, or finer below one."""
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:,.4f}"


def to_limit(unit: Unit, limit: float) -> str:
    """Return a limit in the terms in which it is set."""
    return to_money(limit) if unit == "tokens" else f"{limit:,.0f}"
