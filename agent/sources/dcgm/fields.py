"""What is read through DCGM: one table row per field, and what its blank values mean."""

from __future__ import annotations

from typing import Any

from agent.model.observation import Missing, Value

XID = 230  # the last Xid: a gauge that stays, so its history is read; NVML's field 230 is the recovery action
# By number: the names changed in 4.6, the numbers never. Where NVML reads the same quantity the signal is the same.
FIELDS: dict[int, str] = {
    112: "clocks_event_reasons",
    140: "memory_temperature_c",
    150: "temperature_c",
    153: "margin_c",
    155: "power_w",
    170: "fabric_manager_status",
    171: "fabric_manager_error",
    174: "fabric_health_mask",
    175: "fabric_health_summary",
    202: "pcie_replays",
    235: "pcie_max_generation",
    236: "pcie_max_width",
    237: "pcie_generation",
    238: "pcie_width",
    240: "power_violation",  # the header and the code disagree about the unit of these four: only growth means anything
    241: "thermal_violation",
    243: "board_limit_violation",
    245: "reliability_violation",
    300: "ecc_mode",
    301: "ecc_mode_pending",
    310: "ecc_corrected_volatile",
    311: "ecc_uncorrected_volatile",
    312: "ecc_corrected_aggregate",
    313: "ecc_uncorrected_aggregate",
    346: "sram_threshold_exceeded",
    389: "remap_banks_without_spares",
    390: "retired_pages_sbe",
    391: "retired_pages_dbe",
    392: "retired_pages_pending",
    393: "remapped_rows_uncorrected",
    394: "remapped_rows_corrected",
    395: "remapped_rows_failure",
    396: "remapped_rows_pending",
    409: "nvlink_crc_flit_total",
    419: "nvlink_crc_data_total",
    429: "nvlink_replay_total",
    439: "nvlink_recovery_total",
    1501: "pcie_correctable_errors",
    1507: "memory_unrepairable",
    1523: "recovery_action",
}

_INT64, _INT32, _FP64, _TEXT = 0x7FFFFFFFFFFFFFF0, 0x7FFFFFF0, 140737488355328.0, "<<<"  # dcgmvalue.py
_NOT_SUPPORTED = 2  # added to a blank; 0 is plainly blank, 1 not found, 3 no permission
_OK, _UNSUPPORTED = 0, (-6, -13, -20, -32)  # NOT_SUPPORTED, UNKNOWN_FIELD, FUNCTION_NOT_FOUND, UNSUPPORTED_BY_API
_NOT_YET = (-14, -16)  # NO_DATA, NOT_WATCHED: the watch has not looked for the first time


def decoded(entry: Any, now: float, stale_s: float) -> Value:
    """A field's value; a blank is never a number, however fresh its time stamp. None: it was not read yet.

    What the engine has not renewed for ``stale_s`` is no reading of now, whatever it still answers.
    """
    if entry.status in _NOT_YET:
        return None
    if entry.status != _OK:
        return Missing.UNSUPPORTED if entry.status in _UNSUPPORTED else Missing.UNREADABLE
    value = plain(chr(entry.fieldType & 0xFF), entry.value)
    if not isinstance(value, Missing) and now - entry.ts / 1e6 > stale_s:
        return Missing.UNREADABLE
    return value


def plain(kind: str, union: Any) -> Value:
    """The member of the union that the field's type names, or why there is none."""
    if kind == "d":
        number = float(union.dbl)
        return number if number < _FP64 else _missing(number - _FP64)
    if kind in "it":
        count = int(union.i64)
        if count >= _INT64:
            return _missing(count - _INT64)
        return _missing(count - _INT32) if _INT32 <= count <= _INT32 + 0xF else count
    if kind == "s":
        return text(union, "str") or Missing.UNREADABLE
    return Missing.UNSUPPORTED  # a blob: none of ours


def text(structure: Any, name: str) -> str:
    """A string of the bindings'; empty for a blank one, and for bytes that are no text."""
    try:
        said = str(getattr(structure, name))
    except UnicodeDecodeError:
        return ""
    return "" if said.startswith(_TEXT) else said


def _missing(beyond: float) -> Missing:
    return Missing.UNSUPPORTED if beyond == _NOT_SUPPORTED else Missing.UNREADABLE
