"""How `make torture` and `make journey` go: in the short or the long form, and all chance from one seed."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass

FORM_VARIABLE = "AMPRENTA_TEST_FORM"
SEED_VARIABLE = "AMPRENTA_TORTURE_SEED"
FIXED_SEED = 271_828


@dataclass(frozen=True)
class Form:
    """How often a test strikes, and how much a demo moves.

    ``kills`` is of processes of one backfill; ``upgrade_kills`` of each upgrade and downgrade of each revision;
    ``writer_kills`` of processes that write to two stores; ``pooler_kills`` of processes behind PgBouncer. ``crashes``
    is of PostgreSQL during one backfill. A demo moves ``demo_rows``, or all there are; a service embeds ``paid_texts``.
    No test takes longer than ``test_seconds``.
    """

    name: str
    kills: int
    upgrade_kills: int
    writer_kills: int
    pooler_kills: int
    crashes: int
    stall_seconds: float
    empty_databases: bool
    demo_rows: dict[str, int]
    paid_texts: int
    test_seconds: int


FORMS = {
    form.name: form
    for form in (
        Form(
            "short",
            40,
            2,
            25,
            5,
            4,
            3.0,
            False,
            {"rag_chunks": 2800, "documents": 160, "products": 150, "column": 2000, "models": 2000},
            6_000,
            1_800,
        ),
        Form("long", 100, 50, 50, 20, 10, 30.0, True, {}, 50_000, 6 * 3_600),
    )
}


def choose_form(asked: str | None) -> Form:
    """The form by name, short by default."""
    if (name := asked or "short") not in FORMS:
        raise ValueError(f"{FORM_VARIABLE} is {name!r}; one of: {', '.join(FORMS)}")
    return FORMS[name]


def choose_seed(asked: str | None) -> int:
    """The number that was asked for, the fixed one by default, another at each call for ``random``."""
    if asked == "random":
        return random.SystemRandom().randrange(10**6)
    return int(asked) if asked else FIXED_SEED


FORM = choose_form(os.environ.get(FORM_VARIABLE))
SEED = choose_seed(os.environ.get(SEED_VARIABLE))
# The processes that share a run of the suite share its seed.
os.environ[SEED_VARIABLE] = str(SEED)
