"""What the package puts on the PATH is there, and starts."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kit.conftest import KIT

ROOT = KIT.parents[1]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
KITS = sorted(name for name in SCRIPTS if name.startswith("gpu-kit-"))


def start(name: str) -> subprocess.CompletedProcess[str]:
    module, _, function = SCRIPTS[name].partition(":")
    code = f"import sys; from {module} import {function}; sys.argv[0] = {name!r}; sys.exit({function}())"
    return subprocess.run([sys.executable, "-c", code, "--help"], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", [name for name in KITS if name != "gpu-kit-train-ranks"])
def test_every_program_of_the_kit_starts_as_it_is_installed(name: str) -> None:
    done = start(name)
    assert done.returncode == 0, done.stderr
    assert f"usage: {name}" in done.stdout


def test_a_program_that_lacks_its_library_says_what_it_needs() -> None:
    done = start("gpu-kit-train-ranks")
    assert (done.returncode, "this program needs PyTorch" in done.stderr) == (1, True), done.stderr


def test_every_program_with_a_main_is_installed() -> None:
    """But for what belongs to one of them."""
    programs = {path.stem for path in KIT.glob("*.py") if "\ndef main()" in path.read_text()}
    assert {f"gpu-kit-{name.replace('_', '-')}" for name in programs} == {*KITS}


def manifests() -> Iterator[dict[str, Any]]:
    for path in (*KIT.glob("*.yaml"), *KIT.glob("*/*.yaml")):
        yield from (one for one in yaml.safe_load_all(path.read_text()) if isinstance(one, dict))


def test_a_pods_folder_holds_every_file_that_its_programs_import() -> None:
    (generated,) = yaml.safe_load((KIT / "kustomization.yaml").read_text())["configMapGenerator"]
    there = {Path(name).stem for name in generated["files"]}
    ours = {path.stem for path in KIT.glob("*.py")}
    for name in there:
        text = (KIT / f"{name}.py").read_text()
        imported = set(re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)) & ours
        assert imported <= there, name


def test_every_option_that_a_manifest_gives_to_a_program_is_one() -> None:
    seen = 0
    for one in manifests():
        template = one.get("spec", {}).get("jobTemplate", one).get("spec", {}).get("template", {})
        for container in template.get("spec", {}).get("containers", ()):
            words = container.get("command", [])
            programs = [word for word in words if word.startswith("/kit/")]
            for program in programs:
                text = (KIT / program.removeprefix("/kit/")).read_text()
                options = [word.partition("=")[0] for word in words[words.index(program) :] if word.startswith("--")]
                assert all(f'"{option}"' in text for option in options), options
                seen += 1
    assert seen >= 5
