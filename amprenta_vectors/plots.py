"""Plots as SVG elements to be put into a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE = "#2f6f9f"
AMBER = "#e8a33d"

_STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "amprenta", "font.size": 9, "axes.spines.top": False}
_UNNAMED: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
_ADDRESSES = re.compile(r'\s+xmlns(?::\w+)?="[^"]*"')
"""Namespaces, which SVG within HTML does not need; without them a page names no address at all."""


def draw(label: str, fill: Callable[[Axes], None]) -> str:
    """What ``fill`` draws, with a legend above; ``label`` says what it shows to who does not see it."""
    # Heavy to import, and only a report draws.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(9, 3), layout="constrained")
        axes = figure.subplots()
        fill(axes)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=4, frameon=False)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata=_UNNAMED)
    svg = drawn.getvalue()
    opening = f'<svg role="img" aria-label="{escape(label)}"'
    return _ADDRESSES.sub("", svg[svg.index("<svg") :]).replace("<svg", opening, 1)
