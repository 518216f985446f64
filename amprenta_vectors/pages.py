"""Reports as HTML pages that stand alone: no script, no address, plots drawn into them, every value escaped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from amprenta_vectors.plots import why_no_plots

if TYPE_CHECKING:
    from mako.lookup import TemplateLookup


@dataclass(frozen=True)
class Verdict:
    """The first line of a page, and the colour it has."""

    tone: Literal["good", "attention", "bad", "open"]
    text: str


@dataclass(frozen=True)
class Number:
    """One of the five figures that a page begins with, and what is worth knowing beside it."""

    what: str
    value: str
    beside: str = ""


@cache
def _templates() -> TemplateLookup:
    # Only who makes a page pays for the import.
    from mako.lookup import TemplateLookup

    folder = str(Path(__file__).with_name("templates"))
    return TemplateLookup([folder], default_filters=["h"], strict_undefined=True)


def render(template: str, report: Mapping[str, Any], **values: Any) -> str:
    """Render ``templates/TEMPLATE.html.mako`` with a ``report`` and what was drawn from it.

    ``report`` says when it was made, from which database, and its schema.
    """
    page = _templates().get_template(f"{template}.html.mako")
    text: str = page.render(report=report, moment=to_moment, short=shorten, without_plots=why_no_plots(), **values)
    return text


def render_plain(template: str, **values: Any) -> str:
    """Render a page that is no report: ``templates/TEMPLATE.html.mako`` with the values."""
    text: str = _templates().get_template(f"{template}.html.mako").render(**values)
    return text


def to_moment(moment: str | None) -> str:
    """Return a moment of the JSON to the second, in UTC as the page says once; a dash for None."""
    return "–" if moment is None else f"{datetime.fromisoformat(moment).astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def shorten(text: str, most: int) -> str:
    """Return ``text``, its middle left out if it has more than ``most`` characters."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"
