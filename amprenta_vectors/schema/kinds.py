"""The kinds of source, and the kinds of rule by which a source key finds its row."""

from __future__ import annotations

from typing import Literal

SourceKind = Literal["pinecone", "simple", "chroma", "rows", "column"]
RowOwner = Literal["ours", "application"]
Unit = Literal["read_units", "tokens"]
"""The unit that a source charges by: Pinecone by read units, an embedding service by the tokens of the texts."""
KeyKind = Literal["identity", "uuid5", "lookup", "numbered", "split"]


def unit_of(source_kind: str | None) -> Unit:
    """Return what runs over a kind of source are charged by."""
    return "tokens" if source_kind == "rows" else "read_units"
