"""What a value can be at all. A library answers anything for a moment; what no GPU can have is no reading."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from agent.model.observation import Missing, Value

_LONGEST = 256  # characters of a name, a serial, or the addresses at the other ends of NVLinks


@dataclass(frozen=True, slots=True)
class Range:
    """From ``least`` to ``most``, and at most ``step`` more than at the reading before."""

    least: float
    most: float
    step: float = float("inf")
    sibling: str = ""  # the count that grows with this one


_FLAG = Range(0, 1)
_COUNT = Range(0, 1e12, step=1e6)
_HEAT_C = Range(0, 150)  # 255, -1: what a sensor that can't be read looks like
_OFFSET_C = Range(-100, 127)  # -128 is the smallest of a byte, and no margin
_LIMIT_C = Range(20, 150)

RANGES: Mapping[str, Range] = {
    "temperature_c": _HEAT_C,
    "memory_temperature_c": _HEAT_C,
    "temperature_shutdown_c": _LIMIT_C,
    "temperature_slowdown_c": _LIMIT_C,
    "temperature_mem_max_c": _LIMIT_C,
    "temperature_gpu_max_c": _LIMIT_C,
    "margin_c": _OFFSET_C,
    "shutdown_tlimit_c": _OFFSET_C,
    "slowdown_tlimit_c": _OFFSET_C,
    "mem_max_tlimit_c": _OFFSET_C,
    "gpu_max_tlimit_c": _OFFSET_C,
    "ecc_mode": _FLAG,
    "ecc_mode_pending": _FLAG,
    "persistence_mode": _FLAG,
    "mig_mode": _FLAG,
    "mig_mode_pending": _FLAG,
    "ecc_corrected_volatile": Range(0, 1e15, step=1e9),
    "ecc_corrected_aggregate": Range(0, 1e15, step=1e9),
    "ecc_uncorrected_volatile": Range(0, 1e12, step=1e6, sibling="ecc_uncorrected_aggregate"),
    "ecc_uncorrected_aggregate": Range(0, 1e12, step=1e6),
    "sram_threshold_exceeded": _FLAG,
    "sram_uncorrected_parity": _COUNT,
    "sram_uncorrected_secded": _COUNT,
    "remapped_rows_corrected": Range(0, 1e5),
    "remapped_rows_uncorrected": Range(0, 1e5),
    "remapped_rows_pending": _FLAG,
    "remapped_rows_failure": _FLAG,
    "remap_banks_without_spares": Range(0, 1e5),
    "retired_pages_pending": _FLAG,
    "power_w": Range(0, 1e4),
    "power_limit_w": Range(0, 1e4),
    "energy_j": Range(0, 1e15),
    "pcie_generation": Range(0, 16),
    "pcie_max_generation": Range(0, 16),
    "pcie_width": Range(0, 64),
    "pcie_max_width": Range(0, 64),
    "pcie_replays": Range(0, 2**32 - 2, step=1e8),
    "nvlink_count": Range(0, 64),  # each is asked for: a board has eighteen
    "recovery_action": Range(0, 255),
}


_TEXTS = {"uuid": "GPU-", "name": "", "serial": ""}  # how each begins; none is empty


def implausible(values: Mapping[str, Value], taken: Mapping[str, Value], refused: Mapping[str, Value]) -> list[str]:
    """The names of the values that can't be so: ``taken`` is what was last read, ``refused`` what was not believed.

    A jump is believed once it is read again, and its sibling, where it can be read, grew as well.
    """
    return [name for name, value in values.items() if _odd(name, value, values, taken, refused)]


def _odd(
    name: str, value: Value, values: Mapping[str, Value], taken: Mapping[str, Value], refused: Mapping[str, Value]
) -> bool:
    if isinstance(value, str):
        if isinstance(value, Missing) or name not in _TEXTS:
            return False
        return not (value and value.startswith(_TEXTS[name]) and value.isprintable() and len(value) <= _LONGEST)
    now, row = _number(value), RANGES.get(name)
    if now is None or row is None:
        return now is not None and not math.isfinite(now)
    if not row.least <= now <= row.most:
        return True
    if not _jumps(name, now, taken):
        return False
    again = _number(refused.get(name))
    if again is None or not 0 <= now - again <= row.step:
        return True
    sibling = _number(values.get(row.sibling))
    return sibling is not None and row.sibling in taken and not _jumps(row.sibling, sibling, taken)


def _jumps(name: str, now: float, taken: Mapping[str, Value]) -> bool:
    before = _number(taken.get(name))
    return before is not None and now - before > RANGES[name].step


def _number(value: Value) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
