"""An engine for each generation of the bindings that is at hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dcgm.standin import GENERATIONS, Engine, bindings, library


@pytest.fixture(scope="session", params=GENERATIONS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of the bindings and of the library made for them."""
    found = bindings(request.param)
    return found, library(found, tmp_path_factory.mktemp("library"))


@pytest.fixture
def engine(built: tuple[Path, Path], tmp_path: Path) -> Iterator[Engine]:
    made = Engine(tmp_path, *built)
    yield made
    made.stops_listening()
