"""``amprenta-vectors sources``: what the vectors are to come from."""

from __future__ import annotations

import json
import shlex
from typing import Any

import click

from amprenta_vectors.config import Settings
from amprenta_vectors.sources.inspection import Inspection, inspect_index
from amprenta_vectors.sources.pinecone_client import open_index

KINDS = {
    "serverless": "serverless, vectors",
    "documents": "serverless, documents",
    "pod": "pod, vectors; it cannot list its ids: keys come from the table",
}


@click.group()
def sources() -> None:
    """Look at what the vectors are to come from."""


@sources.command()
@click.option("--namespace", help="The namespace to take a sample of.  [default: the largest]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object in place of text.")
def inspect(namespace: str | None, as_json: bool) -> None:
    """Show what the Pinecone index holds, and the VECTOR_DIMENSION to set; reads about 100 records."""
    settings = Settings.load()
    found = inspect_index(settings, open_index(settings), namespace)
    if as_json:
        click.echo(json.dumps(_to_json(found)))
    else:
        _show(found, settings)


def exports(found: Inspection) -> dict[str, str]:
    """The variables that a migration of the index is to have."""
    values: dict[str, str] = {}
    if found.kind == "documents" and found.chosen is not None:
        values["PINECONE_VECTOR_FIELD"] = found.chosen
    if found.field is not None:
        values["VECTOR_DIMENSION"] = str(found.field.dimension)
    if found.model is not None:
        values["EMBEDDING_MODEL"] = found.model
    return values


def _show(found: Inspection, settings: Settings) -> None:
    sample = found.sample
    dimension, metric = "one of the fields is to be chosen", ""
    if found.field is not None:
        dimension, metric = f"{found.field.dimension:,}", found.field.metric
    lines = {
        "index": found.name,
        "kind": KINDS[found.kind],
        "dimension": dimension,
        "metric": metric,
        "vectors": f"{found.count:,} in {len(found.namespaces):,} namespaces",
        "model": found.model or "unknown to the index; set EMBEDDING_MODEL to the one that made the vectors",
        "transport": found.transport,
        "sparse": f"{sample.sparse:,} of {sample.records:,} records in a sample have sparse values",
    }
    for name, value in lines.items():
        if value:
            click.echo(f"{name:>11}: {value}")
    if found.kind == "documents":
        click.echo("fields of vectors:")
        for name, field in found.vector_fields.items():
            click.echo(f"  {name}: {field.dimension:,} dimensions, {field.metric}")
    click.echo("namespaces:")
    for name, count in sorted(found.namespaces.items()):
        click.echo(f"  {name or '(default)'}: {count:,}")
    click.echo(f"metadata, in a sample of {sample.records:,} records of {sample.namespace or '(default)'}:")
    for name, item in sample.fields.items():
        share = item.records / sample.records
        note = "; the text" if name == settings.text_field and "string" in item.types else ""
        click.echo(f"  {name}: {', '.join(sorted(item.types))}, in {share:.0%}{note}")
    click.echo("set before the first upgrade:")
    if found.chosen is None:
        names = ", or ".join(found.vector_fields)
        click.echo(f"  export PINECONE_VECTOR_FIELD={names}; then inspect once more")
    for name, value in exports(found).items():
        click.echo(f"  export {name}={shlex.quote(value)}")


def _to_json(found: Inspection) -> dict[str, Any]:
    sample = found.sample
    return {
        "index": found.name,
        "kind": found.kind,
        "dimension": found.field.dimension if found.field else None,
        "metric": found.field.metric if found.field else None,
        "vector_fields": {
            name: {"dimension": field.dimension, "metric": field.metric} for name, field in found.vector_fields.items()
        },
        "count": found.count,
        "namespaces": dict(found.namespaces),
        "model": found.model,
        "transport": found.transport,
        "sample": {
            "namespace": sample.namespace,
            "records": sample.records,
            "sparse": sample.sparse,
            "metadata": {
                name: {"share": round(item.records / sample.records, 4), "types": dict(item.types)}
                for name, item in sample.fields.items()
            },
        },
        "environment": exports(found),
    }
