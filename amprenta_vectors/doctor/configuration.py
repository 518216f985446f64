"""Checks of the settings: contradictions, and packages that they need; no connection is made."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from amprenta_vectors.config import Settings
from amprenta_vectors.db import engine_url
from amprenta_vectors.doctor.finding import Finding, SettingsCheck, used_backends
from amprenta_vectors.errors import ConfigError
from amprenta_vectors.stores.factory import check_mode
from amprenta_vectors.tls import hosts_of

EMBEDDER_PACKAGES = {
    **dict.fromkeys(("wordllama", "wordllama-128", "wordllama-64"), ("wordllama", "sandbox")),
    "gemini": ("google.genai", "gemini"),
    "ollama": ("ollama", "ollama"),
    "openai": ("openai", "openai"),
    "sentence_transformers": ("sentence_transformers", "sentence_transformers"),
}
"""The module that an embedder is made with, and the extra that brings it."""


def mode(settings: Settings) -> Iterator[Finding]:
    """Check that backend, mode and secondary go together."""
    try:
        check_mode(settings)
    except ConfigError as error:
        yield Finding("serious", error.message, error.hint)


def credentials(settings: Settings) -> Iterator[Finding]:
    """Check that the settings of the Pinecone store are there, if it is used."""
    if "pinecone" not in used_backends(settings):
        return
    for name in ("pinecone_api_key", "pinecone_index_name"):
        try:
            settings.require(name)
        except ConfigError as error:
            yield Finding("serious", f"{error.message}, and pinecone is a store that is used", error.hint)


def databases(settings: Settings) -> Iterator[Finding]:
    """Report variables that name the database twice, and differently."""
    try:
        url, direct = engine_url(settings), engine_url(settings, migrations=True)
    except ConfigError:
        return
    if settings.database_url is not None and settings.postgres_host not in (None, *hosts_of(url)):
        yield Finding(
            "advice",
            f"POSTGRES_HOST is {settings.postgres_host!r} and is not used: DATABASE_URL leads to "
            f"{', '.join(hosts_of(url)) or 'the local socket'}",
            "unset POSTGRES_HOST, or DATABASE_URL",
        )
    if url.database != direct.database:
        yield Finding(
            "advice",
            f"MIGRATION_DATABASE_URL names database {direct.database!r}, DATABASE_URL {url.database!r}: revisions "
            "would not reach the tables that are searched, unless a pooler gives one database both names",
            "give both URLs the same database",
        )


def packages(settings: Settings) -> Iterator[Finding]:
    """Check that the packages of backend, transport and embedder are installed."""
    needed = []
    if "pinecone" in used_backends(settings):
        needed.append(("pinecone", _extra("pinecone"), "VECTOR_BACKEND or VECTOR_SECONDARY pinecone"))
        if settings.pinecone_transport != "rest":
            needed.append(("grpc", _extra("pinecone"), f"PINECONE_TRANSPORT {settings.pinecone_transport}"))
    if "pgvector" in used_backends(settings):
        needed.append(("pgvector", "pgvector", "VECTOR_BACKEND or VECTOR_SECONDARY pgvector"))
    if "chroma" in used_backends(settings):
        needed.append(("chromadb", _extra("chroma"), "VECTOR_BACKEND or VECTOR_SECONDARY chroma"))
    if settings.embedder is not None:
        module, extra = EMBEDDER_PACKAGES[settings.embedder]
        needed.append((module, _extra(extra), f"AMPRENTA_EMBEDDER {settings.embedder}"))
    for module, package, setting in needed:
        if not _is_installed(module):
            yield Finding(
                "serious", f"the package {module!r} is not installed; {setting} needs it", f"pip install {package}"
            )


def _extra(name: str) -> str:
    return f"'amprenta_vectors[{name}]'"


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        # The package that it is a part of is not there.
        return False


CHECKS: tuple[SettingsCheck, ...] = (mode, credentials, databases, packages)
