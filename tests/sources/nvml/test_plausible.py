"""What a GPU can read at all, value by value; what a library answers beyond that is no reading."""

from __future__ import annotations

import math

import pytest

from agent.sources.nvml.plausible import implausible


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature_c", 255),
        ("temperature_c", -1),
        ("margin_c", -128),
        ("nvlink_count", 400_000),
        ("ecc_uncorrected_volatile", 9 * 10**18),
        ("pcie_replays", 2**32 - 1),
        ("remapped_rows_pending", 7),
        ("sm_clock_mhz", math.nan),
        ("sm_clock_mhz", math.inf),
        ("power_w", math.nan),
        ("uuid", "GPU-\udc80"),
        ("serial", ""),
    ],
)
def test_what_no_gpu_can_have_is_no_reading(name: str, value: float | str) -> None:
    assert implausible({name: value, "energy_j": 1.0}, {}, {}) == [name]
