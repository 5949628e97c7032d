"""The programs that ``pip install 'gpu-health-agent[kit]'`` puts on the PATH: each is a file here, as in its pod."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def gateway() -> int:
    return _run("gateway")


def inference() -> int:
    return _run("inference")


def train() -> int:
    return _run("train")


def train_ranks() -> int:
    return _run("train_ranks")


def checkpoint_manager() -> int:
    return _run("checkpoint_manager")


def _run(name: str) -> int:
    """The files import each other as they lie in a folder, which is how pods have them."""
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        return int(importlib.import_module(name).main())
    except ModuleNotFoundError as error:
        needs = "PyTorch" if error.name == "torch" else "pip install 'gpu-health-agent[kit]'"
        sys.exit(f"{error}: this program needs {needs}")
