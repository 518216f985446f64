"""Prints what the old column of a table holds, for a person and as JSON."""

from __future__ import annotations

from typing import Any

from amprenta_vectors.backends.column.inspection import ColumnInspection
from amprenta_vectors.cli.printer import say
from amprenta_vectors.cli.table_text import print_pairs
from amprenta_vectors.schema.vector_table import VectorTable


def show_column(found: ColumnInspection, table: VectorTable) -> None:
    """Print what was found, and what to declare or to type."""
    survey = found.survey
    print_pairs(
        {
            "column": found.name,
            "type": found.type,
            "form": ", ".join(f"{name} ({count:,})" for name, count in sorted(survey.spellings.items())) or None,
            "bytes": " or ".join(found.fitting) or ("none that is known" if found.type == "bytea" else None),
            "values": f"{survey.values:,}",
            "without": f"{survey.without:,} rows have no value" if survey.without else None,
        }
    )
    say("dimensions:")
    for dimension, count in sorted(survey.dimensions.items()):
        say(f"  {dimension:,}: {count:,}")
    if survey.unreadable:
        say(f"cannot be read: {survey.unreadable:,}, such as")
        for key, start in survey.examples.items():
            say(f"  {key}: {start}")
    if survey.doubled:
        say(f"joined twice: {survey.doubled:,} keys have several rows; they are quarantined")
    if survey.alone:
        say(f"without a row: {survey.alone:,} values belong to no row of {table.qualified_name}; they stay there")
    for line in advice(found, table):
        say(line)


def advice(found: ColumnInspection, table: VectorTable) -> list[str]:
    """Return what to do next."""
    dimensions = found.survey.dimensions
    lines = []
    if found.fitting:
        lines.append(f'elements = "{found.fitting[0]}" in old under [tables.{table.name}] says what they are')
    if not dimensions:
        return [*lines, "no value can be read as a list of numbers: another column, or another form?"]
    usual = max(dimensions, key=lambda length: (dimensions[length], length))
    if usual != table.dimension:
        lines.append(f"dimension = {usual} under [tables.{table.name}] is what most values have")
    if len(dimensions) > 1:
        lines.append(f"amprenta-vectors backfill --dimension {usual} takes those of {usual} and leaves the others out")
    return lines


def column_to_json(found: ColumnInspection) -> dict[str, Any]:
    """Return what was found."""
    survey = found.survey
    return {
        "source": found.name,
        "kind": "column",
        "type": found.type,
        "form": found.form,
        "elements": list(found.fitting),
        "count": survey.values,
        "dimensions": {str(dimension): count for dimension, count in sorted(survey.dimensions.items())},
        "spellings": dict(survey.spellings),
        "without": survey.without,
        "unreadable": {"count": survey.unreadable, "examples": dict(survey.examples)},
        "joined_twice": survey.doubled,
        "without_a_row": survey.alone,
    }
