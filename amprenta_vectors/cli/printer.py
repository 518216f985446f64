"""The one printer: whatever stands in a text, it is one line on the terminal, and does not speak to it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from typing import Any

import click

from amprenta_vectors.errors import HINT, AmprentaError
from amprenta_vectors.shown import printable


def say(text: object = "", *, err: bool = False) -> None:
    """Print ``text`` as one line, on standard error where ``err``; what would end the line is escaped as all else.

    Where everything is said as JSON, the line is an object that has it.
    """
    if _form["json"]:
        if text:
            say_json({"event": "said", "text": str(text)}, err=err)
        return
    click.echo(printable(str(text)), err=err)


def say_json(values: Mapping[str, Any], *, err: bool = False) -> None:
    """Print an event as one JSON object, with the time."""
    click.echo(json.dumps({"event": values["event"], "time": round(time.time(), 3), **values}), err=err)


def speak_json(as_json: bool) -> None:
    """Have this command say everything as JSON, or nothing."""
    _form["json"] = as_json


_form = {"json": False}


def say_lines(text: str, *, err: bool = False) -> None:
    """Print an error that was kept as a text, its message and its hint."""
    for line in error_lines(text):
        say(line, err=err)


def error_lines(text: str) -> list[str]:
    """Return an error that was kept as a text as its lines: the message, and the hint where it has one."""
    message, mark, hint = text.partition(HINT)
    return [message, (mark + hint).lstrip("\n")] if mark else [message]


def say_error(error: AmprentaError) -> None:
    """Print what is wrong and what to type, a line each."""
    if _form["json"]:
        found = {"event": "error", "message": error.message, "hint": error.hint, "exit_code": int(error.exit_code)}
        say_json(found, err=True)
        return
    say_lines(f"error: {error}", err=True)


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning, in the place of ``warnings.showwarning``."""
    say(f"warning: {message}", err=True)


def log_to_stderr(level: int, form: str) -> None:
    """Print what is logged from ``level`` on, a record a line; where everything is said as JSON, an object a line."""
    handler = logging.StreamHandler()
    handler.setFormatter(_AsJson() if _form["json"] else _OnOneLine(form))
    logging.basicConfig(level=level, handlers=[handler])


class _AsJson(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return the object, with the traceback of a fault of ours in its text."""
        values = {"event": "log", "time": round(record.created, 3), "level": record.levelname}
        return json.dumps(values | {"text": super().format(record)})


class _OnOneLine(logging.Formatter):
    """A traceback, which only a fault of ours has, keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """Return the line."""
        return printable(super().formatMessage(record))
