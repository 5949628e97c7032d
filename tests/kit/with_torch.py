"""``make kit-torch``: the tests of training and inference once more, and those of many ranks, with PyTorch."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from tests.cache import CACHE, made_once

TORCH = "torch==2.15.0"
LIBRARIES = ("accelerate==1.15.0", "lightning==2.6.6", "transformers==5.24.0")  # for which the kit has callbacks
ROOT = Path(__file__).parents[2]
TESTS = ("model", "in_place", "train", "way_back", "inference", "checkpoint_manager")


NAME = "-".join(["kit", TORCH, *LIBRARIES]).replace("==", "-")


def installed() -> Path | None:
    """The Python that ``python`` makes, if it has."""
    return found if (found := CACHE / NAME / "venv/bin/python").exists() else None


def python() -> Path:
    """With the versions that the other tests have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = ("hypothesis", "numpy", "pytest", "prometheus-client")
    others = [
        one
        for one in (*project["dependencies"], *project["optional-dependencies"]["test"])
        if one.startswith(tuple(f"{name}{sign}" for name in wanted for sign in "=>"))
    ]

    def install(work: Path) -> None:
        print(f"installing {TORCH}, once", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(work / "venv")], check=True)
        pip = [str(work / "venv/bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-cache-dir", TORCH, *LIBRARIES, *others], check=True)

    return made_once(NAME, install) / "venv/bin/python"


def main(words: list[str]) -> int:
    """Without words the tests; else this program of tests/kit."""
    tests = [f"tests/kit/test_{name}.py" for name in TESTS]
    # The ranks are forked, which takes a process that has not computed with many threads.
    modules = [[f"tests.kit.{words[0]}", *words[1:]]] if words else [["pytest", *tests], ["pytest", "tests/kit/ranks"]]
    return max(subprocess.run([str(python()), "-m", *module], cwd=ROOT).returncode for module in modules)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
