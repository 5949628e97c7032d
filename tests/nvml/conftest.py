"""A library for each driver's branch, compiled once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pynvml as nv
import pytest

from tests.nvml.drivers import BRANCHES
from tests.nvml.standin import Driver, built


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    return cache(lambda branch: built(tmp_path_factory.mktemp(f"r{branch}"), branch))


@pytest.fixture
def driver(libraries: Callable[[int], Path], tmp_path: Path) -> Driver:
    """The newest, for a source's process."""
    return Driver(libraries(BRANCHES[-1]), tmp_path)


@pytest.fixture
def loaded(libraries: Callable[[int], Path], tmp_path: Path) -> Iterator[Callable[[int], Driver]]:
    """A driver's library in this very process, behind the real binding."""

    def load(branch: int = BRANCHES[-1]) -> Driver:
        driver = Driver(libraries(branch), tmp_path)
        driver.answers("")
        nv.nvmlLib = driver.here()
        nv._nvmlGetFunctionPointer_cache.clear()
        return driver

    yield load
    nv.nvmlLib = None
    nv._nvmlGetFunctionPointer_cache.clear()
