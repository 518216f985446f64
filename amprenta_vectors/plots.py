"""Plots as SVG elements to be put into a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

BLUE = "#2f6f9f"
AMBER = "#e8a33d"
GREY = "#8896a6"

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "amprenta",
    "font.size": 9,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_UNNAMED: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
_ADDRESSES = re.compile(r'\s+xmlns(?::\w+)?="[^"]*"')
"""Namespaces, which SVG within HTML does not need; without them a page names no address at all."""


def why_no_plots() -> str | None:
    """Return what to install before a page can have plots; None if it can have them."""
    if find_spec("matplotlib"):
        return None
    return "This page has no plots: pip install 'amprenta_vectors[report]', and make it again."


def draw(label: str, fill: Callable[[Axes], None], *, height: float = 2.4) -> Markup:
    """Draw what ``fill`` puts on the axes, with a legend above; ``label`` describes it to readers who do not see it.

    Returns an empty element if matplotlib is not installed.
    """
    # Heavy to import, and only a report draws.
    from markupsafe import Markup

    if why_no_plots():
        return Markup()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(9, height), layout="constrained")
        axes = figure.subplots()
        fill(axes)
        figure.legend(loc="outside upper center", ncols=4, frameon=False)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata=_UNNAMED)
    svg = drawn.getvalue()
    opening = f'<svg role="img" aria-label="{escape(label)}"'
    return Markup(_ADDRESSES.sub("", svg[svg.index("<svg") :]).replace("<svg", opening, 1))  # noqa: S704 - drawn here
