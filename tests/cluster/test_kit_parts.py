"""The kit with its components, as kustomize makes it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.build import assets

KIT = Path(__file__).parents[2] / "daemonset" / "kit"


@pytest.mark.parametrize(
    ("component", "left"),
    [
        ("gateway-only", {"Deployment/gateway", "PodDisruptionBudget/gateway", "Service/gateway"}),
        (
            "training-only",
            {
                "Job/training",
                "CronJob/checkpoint-manager",
                "PersistentVolumeClaim/checkpoints",
                "PersistentVolumeClaim/checkpoints-backup",
            },
        ),
    ],
)
def test_a_part_of_the_kit_stands_alone(tmp_path: Path, component: str, left: set[str]) -> None:
    there = {f"{one['kind']}/{one['metadata']['name']}" for one in with_component(tmp_path, component)}
    assert {name for name in there if not name.startswith(("ConfigMap/", "Namespace/"))} == left


def test_the_manager_backs_up_what_each_training_is_restored_from(tmp_path: Path) -> None:
    made = with_component(tmp_path, "ranks")
    (cron,) = (one["spec"]["jobTemplate"] for one in made if one["kind"] == "CronJob")
    backed_up = folders(cron, "--backup=")
    restored = [pair for one in made if one["kind"] == "Job" for pair in folders(one, "--restore-from=")]
    assert (
        backed_up == restored == [("/checkpoints/example", "/backup/example"), ("/checkpoints/ranks", "/backup/ranks")]
    )


def folders(job: dict[str, Any], backup: str) -> list[tuple[str, ...]]:
    """The folder of each container's run, and that of its copies."""
    commands = [container["command"] for container in job["spec"]["template"]["spec"]["containers"]]
    return [
        tuple(word.removeprefix(one) for one in ("--folder=", backup) for word in command if word.startswith(one))
        for command in commands
    ]


def with_component(folder: Path, component: str) -> list[dict[str, Any]]:
    """The kit with this component, by kustomize."""
    relative = os.path.relpath(KIT, folder)
    overlay = {"resources": [relative], "components": [f"{relative}/{component}"]}
    (folder / "kustomization.yaml").write_text(json.dumps(overlay))
    command = [str(assets() / "kubectl"), "kustomize", str(folder)]
    return list(yaml.safe_load_all(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
