"""What a person should know before a run begins, and what the run will watch while it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import fields

import click
from sqlalchemy.engine import Engine

from amprenta_vectors.backfill.preflight import describe_target
from amprenta_vectors.backfill.throttle import Thresholds, Throttle
from amprenta_vectors.config import Settings
from amprenta_vectors.schema.vector_table import VectorTable


def open_throttle(engine: Engine, settings: Settings, table: VectorTable, *, insert: bool) -> Throttle:
    """The throttle of the settings, once everything worth knowing of ``table`` has been said.

    Raises `ConfigError` for a predicate that is none.
    """
    thresholds = Thresholds(**{field.name: getattr(settings, field.name) for field in fields(Thresholds)})
    throttle = Throttle(engine, table, thresholds)
    throttle.check()
    with engine.connect() as connection:
        known = describe_target(connection, table, insert=insert)
    say_notices(settings, (*known, *throttle.unseen()))
    return throttle


def say_notices(settings: Settings, notices: Iterable[str]) -> None:
    """What to know, and nothing is wrong with, in lines of their own."""
    for notice in notices:
        if settings.log_format == "json":
            click.echo(json.dumps({"event": "notice", "time": round(time.time(), 3), "text": notice}), err=True)
        else:
            click.echo(f"notice: {notice}", err=True)
