"""The reference of the endpoints, as Markdown for docs/http.md and as the page that the service shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from amprenta_vectors.pages import render_plain

Row = tuple[str, str, str]
"""A name, its type and limits, and what it is."""


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    title: str
    method: str
    path: str
    text: str
    parameters: list[Row]
    body: str | None
    answer: str
    problems: list[tuple[str, str]]


@dataclass(frozen=True)
class Schema:
    """One object that is sent or answered."""

    name: str
    text: str
    fields: list[Row]


def operations(document: Mapping[str, Any]) -> list[Operation]:
    """Return the operations of an OpenAPI document, in its order."""
    return [
        Operation(
            title=found["summary"],
            method=method.upper(),
            path=path,
            text=found.get("description", ""),
            parameters=[_parameter(each) for each in found.get("parameters", [])],
            body=_type(_content(found["requestBody"])) if "requestBody" in found else None,
            answer=_type(_content(found["responses"]["200"])),
            problems=[(status, each["description"]) for status, each in _refusals(found["responses"])],
        )
        for path, methods in document["paths"].items()
        for method, found in methods.items()
    ]


def schemas(document: Mapping[str, Any]) -> list[Schema]:
    """Return the objects of an OpenAPI document by their names."""
    return [
        Schema(
            name=name,
            text=" ".join(found.get("description", "").split()),
            fields=[_field(each, field, found) for each, field in found["properties"].items()],
        )
        for name, found in sorted(document["components"]["schemas"].items())
    ]


def to_page(document: Mapping[str, Any]) -> str:
    """Return the reference as an HTML page, which loads nothing from elsewhere."""
    return render_plain(
        "http", title=document["info"]["title"], operations=operations(document), schemas=schemas(document)
    )


def to_markdown(document: Mapping[str, Any]) -> str:
    """Return the reference as docs/http.md has it."""
    return "\n".join((*_operations_text(document), *_schemas_text(document)))


def _operations_text(document: Mapping[str, Any]) -> Iterator[str]:
    for each in operations(document):
        yield f"### {each.title}\n\n`{each.method} {each.path}`\n\n{each.text}\n"
        if each.parameters:
            yield _table(("parameter", "type", "what it is"), each.parameters)
        if each.body:
            yield f"Body: `{each.body}`.\n"
        yield f"Answer: `{each.answer}`.\n"
        if each.problems:
            yield _table(("problem", "when"), each.problems)


def _schemas_text(document: Mapping[str, Any]) -> Iterator[str]:
    yield "## Objects\n"
    for each in schemas(document):
        yield f"### {each.name}\n\n{each.text}\n"
        yield _table(("field", "type", "what it is"), each.fields)


def _table(head: tuple[str, ...], rows: list[Row] | list[tuple[str, str]]) -> str:
    lines = [head, ("---",) * len(head), *((f"`{row[0]}`", *row[1:]) for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def _parameter(found: Mapping[str, Any]) -> Row:
    needed = "" if found.get("required") else ", optional"
    return found["name"], f"{_type(found['schema'])}{needed}", found.get("description", "")


def _field(name: str, found: Mapping[str, Any], schema: Mapping[str, Any]) -> Row:
    needed = "" if name in schema.get("required", ()) else ", optional"
    default = f", default {found['default']}" if found.get("default") is not None else ""
    return name, f"{_type(found)}{default or needed}", found.get("description", "")


def _content(found: Mapping[str, Any]) -> Mapping[str, Any]:
    schema: Mapping[str, Any] = found["content"]["application/json"]["schema"]
    return schema


def _refusals(responses: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted((status, found) for status, found in responses.items() if status != "200")


def _type(found: Mapping[str, Any]) -> str:
    if "$ref" in found:
        name: str = found["$ref"].rpartition("/")[2]
        return name
    if "anyOf" in found:
        return " or ".join(_type(each) for each in found["anyOf"])
    if "enum" in found or "const" in found:
        return ", ".join(f"“{each}”" for each in found.get("enum", [found.get("const")]))
    if found.get("type") == "array":
        return f"list of {_type(found['items'])}{_limits(found, 'minItems', 'maxItems')}"
    kind = str(found.get("type", "any"))
    return kind + _limits(found, "minimum", "maximum") + _limits(found, "minLength", "maxLength")


def _limits(found: Mapping[str, Any], least: str, most: str) -> str:
    if most not in found:
        return ""
    return f" ({int(found.get(least, 0)):,} to {int(found[most]):,})"
