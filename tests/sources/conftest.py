"""What every test of the socket between the containers begins with: a folder for it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a unix socket's has 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="gha-") as name:
        yield Path(name)
