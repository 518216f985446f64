"""The rate of a run over its time, as an SVG element to be put into a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from amprenta_vectors.plots import AMBER, BLUE, GREY, draw

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

_SHADES = {"paused": GREY, "throttled": AMBER, "silent": "#d9dfe6"}
WAITS = {"paused": "paused", "throttled": "throttled", "silent": "no batch ended"}
"""The words for the kinds of wait."""


def draw_rate(timeline: Mapping[str, Any], seconds: float) -> Markup | None:
    """Draw the rows written per second over a run of so many ``seconds``, with the waits shaded.

    Returns None for a run without waits that is shorter than two bars: one bar shows no course of time.
    """
    unit, divisor = _unit(seconds)
    width = timeline["bucket_seconds"]
    if seconds < 2 * width and not timeline["waits"]:
        return None

    def fill(axes: Axes) -> None:
        for kind, shade in _SHADES.items():
            spans = [wait for wait in timeline["waits"] if wait["kind"] == kind]
            for number, span in enumerate(spans):
                label = WAITS[kind] if number == 0 else None
                begin, end = span["begin"] / divisor, span["end"] / divisor
                # Above the bars: a wait may be shorter than one of them.
                axes.axvspan(begin, end, color=shade, alpha=0.5, zorder=2, label=label)
        axes.stairs(*_steps(timeline, width, divisor, seconds), fill=True, color=BLUE, label="rows a second")
        axes.set_xlim(0, max(seconds, width) / divisor)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"{unit} since the run began")
        axes.set_ylabel("rows a second")

    return draw("Rows written a second over the time of the run", fill)


def _steps(
    timeline: Mapping[str, Any], width: float, divisor: float, seconds: float
) -> tuple[list[float], list[float]]:
    """Return rates, and the edges between which they hold: one edge more than there are rates."""
    number = max(int(seconds / width) + 1, 1)
    rates = [0.0] * number
    for bucket in timeline["buckets"]:
        place = min(round(bucket["begin"] / width), number - 1)
        rates[place] += bucket["rows"] / width
    return rates, [edge * width / divisor for edge in range(number + 1)]


def _unit(seconds: float) -> tuple[str, float]:
    for unit, divisor in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 3 * divisor:
            return unit, divisor
    return "seconds", 1.0
