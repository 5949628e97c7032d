"""These tests need a machine with a real NVIDIA GPU; elsewhere they say so and are left out."""

from __future__ import annotations

import ctypes

import pytest


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        pytest.skip("no NVIDIA driver on this machine: libnvidia-ml.so.1 can't be loaded")
