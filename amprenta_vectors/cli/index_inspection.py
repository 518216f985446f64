"""A Pinecone index as `sources inspect` shows it."""

from __future__ import annotations

import shlex
from typing import Any

from amprenta_vectors.backends.inspection import Inspection
from amprenta_vectors.cli.printer import say
from amprenta_vectors.cli.table_text import print_pairs
from amprenta_vectors.config import Settings

KINDS = {
    "serverless": "serverless, vectors",
    "documents": "serverless, documents",
    "pod": "pod, vectors; it cannot list its ids: keys come from the table",
}


def exports(found: Inspection) -> dict[str, str]:
    """Return the variables to set for a migration of the index."""
    values: dict[str, str] = {}
    if found.kind == "documents" and found.chosen is not None:
        values["PINECONE_VECTOR_FIELD"] = found.chosen
    if found.field is not None:
        values["VECTOR_DIMENSION"] = str(found.field.dimension)
    if found.model is not None:
        values["EMBEDDING_MODEL"] = found.model
    return values


def show_index(found: Inspection, settings: Settings) -> None:
    """Print what was found of an index as text, with the variables to set."""
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
    print_pairs(lines)
    if found.kind == "documents":
        say("fields of vectors:")
        for name, field in found.vector_fields.items():
            say(f"  {name}: {field.dimension:,} dimensions, {field.metric}")
    say("namespaces:")
    for name, count in sorted(found.namespaces.items()):
        say(f"  {name or '(default)'}: {count:,}")
    say(f"metadata, in a sample of {sample.records:,} records of {sample.namespace or '(default)'}:")
    for name, item in sample.fields.items():
        share = item.records / sample.records
        note = "; the text" if name == settings.text_field and "string" in item.types else ""
        say(f"  {name}: {', '.join(sorted(item.types))}, in {share:.0%}{note}")
    say("set before the first upgrade:")
    if found.chosen is None:
        names = ", or ".join(found.vector_fields)
        say(f"  export PINECONE_VECTOR_FIELD={names}; then inspect once more")
    for name, value in exports(found).items():
        say(f"  export {name}={shlex.quote(value)}")


def index_to_json(found: Inspection) -> dict[str, Any]:
    """Return what was found of an index as one JSON object."""
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
