"""Reports as HTML pages that stand alone: no script, no address, plots drawn into them, every value escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template
from typing import Any

_PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2733 }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #dde3ea }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
code { font-family: ui-monospace, monospace; overflow-wrap: anywhere }
svg { width: 100%; height: auto }
.verdict { font-size: 1.1rem; font-weight: 600 }
</style>
</head>
<body>
<h1>$title</h1>
<p class="verdict">$verdict</p>
$sections
<p>Made at $made_at from the JSON file of the same name; schema $schema.</p>
</body>
</html>
""")


class Markup(str):
    """HTML that is finished; every other string is escaped."""

    __slots__ = ()


def render(title: str, verdict: str, sections: Iterable[tuple[str, str]], report: Mapping[str, Any]) -> str:
    """A page of ``sections``, each a heading and finished HTML. ``report`` says ``made_at`` and ``schema``."""
    return _PAGE.substitute(
        title=escape(title),
        verdict=escape(verdict),
        sections="\n".join(f"<h2>{escape(heading)}</h2>\n{body}" for heading, body in sections),
        made_at=escape(report["made_at"]),
        schema=report["schema"],
    )


def pairs(values: Mapping[str, Any]) -> str:
    """A table of names and values; nothing where there are none."""
    rows = "".join(f"<tr><th>{escape(_label(name))}</th>{_cell(value)}</tr>" for name, value in values.items())
    return f"<table>{rows}</table>" if rows else ""


def table(rows: Sequence[Mapping[str, Any]], without: str) -> str:
    """A table whose head are the names of the first row; the text ``without`` where there is no row."""
    if not rows:
        return paragraph(without)
    head = "".join(f"<th>{escape(_label(name))}</th>" for name in rows[0])
    body = "".join(f"<tr>{''.join(_cell(value) for value in row.values())}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def more(number: int, what: str) -> str:
    """That there are so many more than are listed; nothing where there are none."""
    return paragraph(f"and {number:,} more {what}") if number else ""


def code(text: str) -> Markup:
    """A key or a command."""
    return Markup(f"<code>{escape(text)}</code>")


def codes(texts: Iterable[str]) -> Markup:
    """Keys or commands, one after another."""
    return Markup(" ".join(code(text) for text in texts))


def short_json(value: Any) -> str:
    """JSON for a cell; nothing for what is empty."""
    return json.dumps(value, ensure_ascii=False) if value else ""


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return f"<td>{'–' if value is None else 'yes' if value else 'no'}</td>"
    if isinstance(value, int | float):
        return f'<td class="number">{value:,.1f}</td>' if isinstance(value, float) else f"<td>{value:,}</td>"
    if isinstance(value, Mapping | list):
        value = short_json(value)
    return f"<td>{value if isinstance(value, Markup) else escape(str(value))}</td>"


def _label(name: str) -> str:
    return name.replace("_", " ")
