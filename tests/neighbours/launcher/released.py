"""The launcher as PyPI has it, beside the kit's PyTorch, in the cache outside the tree."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.cache import made_once
from tests.kit.with_torch import python

RELEASE = "nvidia-resiliency-ext==0.7.0"  # from 0.5 on its wheels are for a newer libc than Debian 12 has
_WHEEL = ("--no-deps", "--only-binary=:all:", "--platform=manylinux_2_39_x86_64", "--python-version=3.12")
# What it names beside PyTorch, but for what it uses with GPUs alone.
_NEEDS = ("defusedxml", "fastapi", "grpcio>=1.76", "grpcio-tools>=1.76", "httpx", "nvidia-ml-py", "packaging", "psutil")
_SERVICES = ("pydantic-settings", "pyyaml", "slowapi", "uvicorn")


def launcher() -> tuple[list[str], dict[str, str]]:
    """A command line, and its environment. Its module is pure Python, so that any Python can run it."""

    def install(folder: Path) -> None:
        print(f"installing {RELEASE}, once", file=sys.stderr, flush=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"--target={folder}"]
        subprocess.run([*pip, *_WHEEL, RELEASE], check=True)  # first: pip fills `bin` once
        subprocess.run([*pip, *_NEEDS, *_SERVICES], check=True)

    where = made_once(RELEASE.replace("==", "-"), install)
    return [str(python()), str(where / "bin" / "ft_launcher")], {
        **os.environ,
        "PYTHONPATH": str(where),
        "OMP_NUM_THREADS": "1",
    }
