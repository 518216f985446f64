"""Checks of what the table's columns are used for."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa

from amprenta_vectors.doctor.finding import Finding, Patient, TableCheck
from amprenta_vectors.errors import FilterUnsupported
from amprenta_vectors.schema.unused import unused_columns
from amprenta_vectors.stores.filters.columns import FilterColumn


def columns_not_used(patient: Patient) -> Iterator[Finding]:
    """Report columns that might be the table's text or metadata, of which it has none."""
    unused = unused_columns(patient.connection, patient.table)
    for role, names in unused.candidates.items():
        lost = "no hit has its text" if role == "text" else "no hit has metadata, and no filter can ask for any"
        there = ", ".join(f"{name} {unused.columns[name]}" for name in names)
        yield Finding(
            "advice",
            f"{patient.table.qualified_name} has no column for {role}, so {lost}; not used: {there}",
            unused.to_add(patient.table, role),
        )


def filter_columns(patient: Patient) -> Iterator[Finding]:
    """Report columns to filter by whose type no filter compares."""
    table = patient.table
    for field, name in table.filter_columns.items():
        try:
            FilterColumn(sa.column(name), table.column_types[name]).typed(field)
        except FilterUnsupported as error:
            yield Finding("serious" if patient.answers else "advice", f"{table.qualified_name}: {error.message}")


CHECKS: tuple[TableCheck, ...] = (columns_not_used, filter_columns)
