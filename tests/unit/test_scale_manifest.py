"""The Kubernetes manifest in docs/scale.md: it parses, its command is one that exists, and its times fit together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import yaml

from amprenta_vectors.cli import main
from amprenta_vectors.config import Settings
from amprenta_vectors.errors import ExitCode

TEXT = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()


def manifests() -> dict[str, dict[str, Any]]:
    blocks = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    return {part["kind"]: part for block in blocks for part in yaml.safe_load_all(block)}


def container() -> dict[str, Any]:
    [found] = manifests()["Job"]["spec"]["template"]["spec"]["containers"]
    return dict(found)


def names_of_variables() -> set[str]:
    fields = Settings.model_fields.items()
    return {str(field.validation_alias or name).upper() for name, field in fields}


def test_the_command_is_one_that_the_package_has_and_its_options_are_known() -> None:
    program, *arguments = container()["command"]
    assert program == "amprenta-vectors"
    with click.Context(main) as context:
        name, command, rest = main.resolve_command(context, arguments)
        assert command is not None
        parsed = command.make_context(name, rest, parent=context)
    assert name == "backfill"
    assert parsed.params["resume"], "pods that start together or again must be able to join the run"


def test_every_variable_is_one_of_ours() -> None:
    given = {item["name"] for item in container()["env"]} | set(manifests()["Secret"]["stringData"])
    assert given <= names_of_variables()
    assert {"DATABASE_URL", "PINECONE_API_KEY", "PINECONE_INDEX_NAME"} <= given


def test_secrets_stand_in_the_secret_alone() -> None:
    secret = manifests()["Secret"]
    assert {"DATABASE_URL", "PINECONE_API_KEY"} <= set(secret["stringData"])
    assert container()["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]


def test_a_pod_that_is_told_to_end_has_time_to_drain() -> None:
    grace = manifests()["Job"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace >= 2 * Settings.model_fields["drain_seconds"].default


def test_a_pod_starts_again_where_that_helps_and_only_there() -> None:
    spec = manifests()["Job"]["spec"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    [final] = [rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if rule["action"] == "FailIndex"]
    assert final["containerName"] == container()["name"]
    assert set(final["values"]) == {ExitCode.USAGE, ExitCode.QUARANTINED}
    assert not {ExitCode.FAILED, ExitCode.INTERRUPTED} & set(final["values"])


def test_a_pod_may_use_more_memory_than_the_budget() -> None:
    assert container()["resources"]["limits"]["memory"] == "512Mi"
