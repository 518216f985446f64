"""The kinds of source, and the kinds of rule by which a source key finds its row."""

from __future__ import annotations

from typing import Literal

SourceKind = Literal["pinecone", "simple", "chroma", "rows", "column"]
RowOwner = Literal["ours", "application"]
KeyKind = Literal["identity", "uuid5", "lookup", "numbered", "split"]
