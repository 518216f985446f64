"""``sources inspect`` says of every kind of source what a person needs to know before a migration."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backfill_tools import API_KEY, INDEX_NAME, to_ids, to_vectors
from click.testing import CliRunner, Result

from amprenta_vectors.cli import main
from amprenta_vectors.sandbox.pinecone import PineconeEmulator

StartEmulator = Callable[..., PineconeEmulator]


def inspect(emulator: PineconeEmulator, *arguments: str, **variables: str) -> Result:
    environment = {
        "PINECONE_API_KEY": API_KEY,
        "PINECONE_INDEX_NAME": INDEX_NAME,
        "PINECONE_CONTROLLER_HOST": emulator.host,
        "PINECONE_GRPC_HOST": emulator.grpc_host,
        **variables,
    }
    return CliRunner().invoke(main, ["sources", "inspect", *arguments], env=environment)


def to_json(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def test_an_index_of_vectors_is_shown_with_what_to_set(emulator: StartEmulator) -> None:
    pinecone = emulator(metric="dotproduct")
    metadata = [{"text": "x", "year": 2000 + number, "open": True} for number in range(150)]
    sparse = [{"indices": [1], "values": [0.5]} if number % 2 else None for number in range(150)]
    pinecone.load("ns", to_ids(150), to_vectors(150), metadata, sparse)
    pinecone.load("", ["a"], to_vectors(1), [{"tags": ["x"]}])
    result = inspect(pinecone)
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "    index: test-index",
        "     kind: serverless, vectors",
        "dimension: 8",
        "   metric: dotproduct",
        "  vectors: 151 in 2 namespaces",
        "    model: unknown to the index; set EMBEDDING_MODEL to the one that made the vectors",
        "transport: grpc",
        "   sparse: 50 of 100 records in a sample have sparse values",
        "namespaces:",
        "  (default): 1",
        "  ns: 150",
        "metadata, in a sample of 100 records of ns:",
        "  open: boolean, in 100%",
        "  text: string, in 100%; the text",
        "  year: number, in 100%",
        "set before the first upgrade:",
        "  export VECTOR_DIMENSION=8",
    ]
    assert pinecone.calls.read_units == 11


def test_json_has_the_same_and_the_types_of_each_field(emulator: StartEmulator) -> None:
    pinecone = emulator()
    metadata = [{"tags": ["x"], "mixed": 1}, {"mixed": "one"}, {}, {"mixed": 2.5}]
    pinecone.load("", to_ids(4), to_vectors(4), metadata)
    found = to_json(inspect(pinecone, "--json", PINECONE_TRANSPORT="rest"))
    assert found == {
        "index": "test-index",
        "kind": "serverless",
        "dimension": 8,
        "metric": "cosine",
        "vector_fields": {"_values": {"dimension": 8, "metric": "cosine"}},
        "count": 4,
        "namespaces": {"": 4},
        "model": None,
        "transport": "rest",
        "sample": {
            "namespace": "",
            "records": 4,
            "sparse": 0,
            "metadata": {
                "mixed": {"share": 0.75, "types": {"number": 2, "string": 1}},
                "tags": {"share": 0.25, "types": {"list of strings": 1}},
            },
        },
        "environment": {"VECTOR_DIMENSION": "8"},
    }


def test_a_namespace_can_be_chosen_and_one_that_is_not_there_is_named(emulator: StartEmulator) -> None:
    pinecone = emulator()
    pinecone.load("large", to_ids(4), to_vectors(4))
    pinecone.load("small", ["a"], to_vectors(1), [{"only": "here"}])
    assert to_json(inspect(pinecone, "--json", "--namespace", "small"))["sample"]["metadata"].keys() == {"only"}
    result = inspect(pinecone, "--namespace", "absent")
    assert result.exit_code == 2
    assert "no namespace 'absent'; it has: large (4), small (1)" in result.output


def test_a_document_index_is_shown_with_its_field(emulator: StartEmulator) -> None:
    pinecone = emulator(kind="documents")
    rows = [{"_id": id_, "embedding": vector, "title": "x"} for id_, vector in zip("ab", to_vectors(2), strict=True)]
    pinecone.load_documents("", rows)
    found = to_json(inspect(pinecone, "--json"))
    assert (found["kind"], found["transport"], found["dimension"]) == ("documents", "rest", 8)
    assert found["sample"]["metadata"] == {"title": {"share": 1.0, "types": {"string": 2}}}
    assert found["environment"] == {"PINECONE_VECTOR_FIELD": "embedding", "VECTOR_DIMENSION": "8"}


def test_of_several_fields_all_are_shown_until_one_is_chosen(emulator: StartEmulator) -> None:
    pinecone = emulator(kind="documents", vector_fields=("title_vector", "body_vector"))
    pinecone.load_documents("", [{"_id": "a", "title_vector": np.ones(8), "body_vector": np.ones(8), "n": 1}])
    result = inspect(pinecone)
    assert result.exit_code == 0, result.output
    assert "title_vector: 8 dimensions, cosine" in result.output
    assert "export PINECONE_VECTOR_FIELD=title_vector, or body_vector; then inspect once more" in result.output
    assert "VECTOR_DIMENSION" not in result.output
    chosen = to_json(inspect(pinecone, "--json", PINECONE_VECTOR_FIELD="body_vector"))
    assert chosen["environment"] == {"PINECONE_VECTOR_FIELD": "body_vector", "VECTOR_DIMENSION": "8"}


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_a_pod_index_is_sampled_without_a_list(emulator: StartEmulator, transport: str) -> None:
    pinecone = emulator(kind="pod")
    pinecone.load("", to_ids(150), to_vectors(150), [{"text": "x"}] * 150)
    found = to_json(inspect(pinecone, "--json", PINECONE_TRANSPORT=transport))
    assert (found["kind"], found["sample"]["records"]) == ("pod", 100)
    assert pinecone.calls["list"] == 0
    assert "keys come from the table" in inspect(pinecone).output


def test_an_empty_index_and_a_missing_setting_are_said(emulator: StartEmulator) -> None:
    pinecone = emulator()
    for result, message in (
        (inspect(pinecone), "index 'test-index' is empty"),
        (inspect(pinecone, PINECONE_API_KEY=""), "PINECONE_API_KEY is not set"),
        (inspect(pinecone, PINECONE_API_KEY="wrong"), "check PINECONE_API_KEY"),
    ):
        assert result.exit_code == 2
        assert message in result.output


def test_simple_stores_are_counted_and_one_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for user in ("alice", "bob"):
        folder = tmp_path / user / "vector_store_notes"
        folder.mkdir(parents=True)
        (folder / "metadata.json").write_text(json.dumps({f"d{n}": {"text": "a text", "page": n} for n in range(4)}))
        (folder / "vectors.pkl").write_bytes(pickle.dumps({f"d{n}": [1.0, 2.0, float(n)] for n in range(4)}))
    (tmp_path / "bob" / "vector_store_notes" / "vectors.pkl").write_bytes(b"not a pickle")
    environment = {"SIMPLE_STORE_ROOT": str(tmp_path), "AMPRENTA_TABLE": "vector_documents", "VECTOR_DIMENSION": "3"}
    result = CliRunner().invoke(main, ["sources", "inspect", "--json"], env=environment)
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert (found["kind"], found["dimension"], found["namespaces"]["alice/notes"]) == ("simple", 3, 4)
    assert list(found["refused"]) == ["bob/notes"]
    assert (found["sample"]["namespace"], found["sample"]["with_text"]) == ("alice/notes", 4)
    assert found["environment"] == {"VECTOR_DIMENSION": "3"}
    printed = CliRunner().invoke(main, ["sources", "inspect"], env=environment).output
    assert "alice/notes: 4" in printed
    assert "bob/notes: cannot be read" in printed
