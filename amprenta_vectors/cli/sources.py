"""``amprenta-vectors sources``: what the vectors are to come from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from amprenta_vectors.cli.options import json_option, open_database, source_option
from amprenta_vectors.cli.printer import say

if TYPE_CHECKING:
    from amprenta_vectors.backends.inspection import OriginInspection
    from amprenta_vectors.config import Settings
    from amprenta_vectors.schema.kinds import SourceKind
    from amprenta_vectors.schema.vector_table import VectorTable


@click.group()
def sources() -> None:
    """Look at what the vectors are to come from."""


@sources.command()
@source_option
@click.option("--namespace", help="The namespace to take a sample of.  [default: the largest]")
@json_option("One JSON object in place of text.")
def inspect(source: SourceKind | None, namespace: str | None, as_json: bool) -> None:
    """Show what the source holds, and the VECTOR_DIMENSION to set; reads about 100 records and embeds nothing.

    Every simple store is read. For rows the database is asked, and the table must be there; of a column, every value is
    counted.
    """
    from amprenta_vectors.backends.inspection import inspect_index
    from amprenta_vectors.backends.opening import kind_of
    from amprenta_vectors.cli.index_inspection import index_to_json, show_index
    from amprenta_vectors.config import Settings
    from amprenta_vectors.schema.registry import get_table

    settings = Settings.load(source=source)
    table = get_table(settings.table, settings.config)
    if kind_of(settings, table) == "pinecone":
        from amprenta_vectors.backends.pinecone.client import open_index

        index = inspect_index(settings, open_index(settings), namespace)
        if as_json:
            say(json.dumps(index_to_json(index)))
        else:
            show_index(index, settings)
        return
    if kind_of(settings, table) == "column":
        _show_column(settings, table, as_json=as_json)
        return
    found = _inspect(settings, table, namespace)
    exports = _exports(found, table)
    if as_json:
        say(json.dumps(_to_json(found) | {"environment": exports}))
    else:
        _show(found, exports)


def _inspect(settings: Settings, table: VectorTable, namespace: str | None) -> OriginInspection:
    from amprenta_vectors.backends.inspection import inspect_origin
    from amprenta_vectors.backends.opening import kind_of, open_origin
    from amprenta_vectors.moves.ends import open_table

    engine = None
    if kind_of(settings, table) == "rows":
        engine = open_database(settings, 2)
        with engine.connect() as connection:
            table = open_table(settings, connection)
    elif settings.vector_dimension is not None:
        table = table.with_columns(dimension=settings.vector_dimension)
    return inspect_origin(open_origin(settings, table, engine), table, namespace)


def _show_column(settings: Settings, table: VectorTable, *, as_json: bool) -> None:
    from amprenta_vectors.backends.column.inspection import inspect_column
    from amprenta_vectors.cli.column_text import column_to_json, show_column
    from amprenta_vectors.schema.catalogue import located

    with open_database(settings, 1).connect() as connection:
        table = located(connection, table)
        found = inspect_column(connection, table)
    if as_json:
        say(json.dumps(column_to_json(found)))
    else:
        show_column(found, table)


def _exports(found: OriginInspection, table: VectorTable) -> dict[str, str]:
    values: dict[str, str] = {} if found.kind == table.source else {"AMPRENTA_SOURCE": found.kind}
    return values | ({"VECTOR_DIMENSION": str(found.dimension)} if found.dimension else {})


def _show(found: OriginInspection, exports: dict[str, str]) -> None:
    from amprenta_vectors.cli.table_text import print_pairs

    records, namespaces = sum(found.namespaces.values()), len(found.namespaces)
    lines = {
        "source": found.name,
        "kind": found.kind,
        "dimension": f"{found.dimension:,}" if found.dimension else "unknown",
        "distance": found.distance,
        "records": f"{records:,} in {namespaces:,} namespaces",
        "model": found.model or "unknown to the source; set EMBEDDING_MODEL to the one that made the vectors",
    }
    print_pairs(lines)
    say("namespaces:")
    for name, count in sorted(found.namespaces.items()):
        error = found.refused.get(name)
        say(f"  {name or '(the only one)'}: " + (f"{count:,}" if error is None else f"cannot be read: {error.message}"))
    say(f"a sample of {found.records:,} records of {found.namespace or '(the only one)'}:")
    say(f"  text: in {found.with_text:,}")
    for name, item in found.fields.items():
        say(f"  {name}: {', '.join(sorted(item.types))}, in {item.records / found.records:.0%}")
    say("set before the first upgrade:")
    for name, value in exports.items():
        say(f"  export {name}={value}")


def _to_json(found: OriginInspection) -> dict[str, Any]:
    return {
        "source": found.name,
        "kind": found.kind,
        "dimension": found.dimension,
        "distance": found.distance,
        "count": sum(found.namespaces.values()),
        "namespaces": dict(found.namespaces),
        "refused": {name: error.message for name, error in found.refused.items()},
        "model": found.model,
        "sample": {
            "namespace": found.namespace,
            "records": found.records,
            "with_text": found.with_text,
            "metadata": {
                name: {"share": round(item.records / found.records, 4), "types": dict(item.types)}
                for name, item in found.fields.items()
            },
        },
    }
