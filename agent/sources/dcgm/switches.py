"""NVSwitches through DCGM: which there are, where they are, and which of their errors are new."""

from __future__ import annotations

from typing import Any

from agent.model.text import normalise_pci
from agent.sources.dcgm.bindings import Bindings
from agent.sources.dcgm.fields import plain

SWITCH = 3  # DCGM_FE_SWITCH
SXIDS = {856: 1, 857: 0}  # DCGM_FI_DEV_SXID_FATAL_ERROR, _NON_FATAL_ERROR; 1: the driver calls it fatal
_ADDRESS = (866, 867, 868, 869)  # domain, bus, device, function
_NO_SWITCHES = (-1, -6, -29, -33)  # BADPARAM, NOT_SUPPORTED, REQUIRES_ROOT, MODULE_NOT_LOADED
_SAME_US = 600_000_000
OVERLAP_US = 120_000_000  # an error's own time lies before the poll that finds it, and an engine may need 45 s for one


def listed(bindings: Bindings, handle: Any) -> set[int]:
    """The engine's numbers of the switches; an engine that has nothing to do with switches lists none."""
    try:
        return {int(number) for number in bindings.agent.dcgmGetEntityGroupEntities(handle, SWITCH, 0)}
    except bindings.structs.DCGMError as error:
        if error.value in _NO_SWITCHES:
            return set()
        raise


def address(bindings: Bindings, handle: Any, number: int) -> str:
    """Its PCI address; empty where the engine doesn't say: not every library behind it knows the switch's place."""
    if not all(bindings.fields.DcgmFieldGetById(field) for field in _ADDRESS):
        return ""
    pair = bindings.structs.c_dcgmGroupEntityPair_t()
    pair.entityGroupId, pair.entityId = SWITCH, number
    try:
        entries = bindings.agent.dcgmEntitiesGetLatestValues(handle, [pair], list(_ADDRESS), 1)  # LIVE_DATA
    except bindings.structs.DCGMError:
        return ""
    values = [plain(chr(entry.fieldType & 0xFF), entry.value) for entry in entries if not entry.status]
    numbers = [value for value in values if isinstance(value, int) and 0 <= value <= 0xFFFFFFFF]
    if len(numbers) < len(_ADDRESS):
        return ""
    domain, bus, device, function = numbers
    try:
        return normalise_pci(f"{domain:08x}:{bus:02x}:{device:02x}.{function}")
    except ValueError:
        return ""


class News:
    """Tells a new error from one that a gauge repeats.

    The engine reads a switch's last fatal error at each of its polls and stamps it with that poll's time, for as long
    as it stands (DcgmNvSwitchManagerBase::UpdateFatalErrorsAllSwitches); other errors come with their own time, at each
    poll again (NvSwitchData's ErrorData). So one of the same code soon after is the same. What the first looks bring
    stood before we came, however fresh its stamp, and is the kernel log's to tell.
    """

    def __init__(self, from_: float) -> None:
        """``from_``: monotonic seconds from which on an error is news."""
        self._from, self._last = from_, dict[tuple[int, int, int], int]()

    def new(self, switch: int, field: int, code: int, at_us: int, now: float) -> bool:
        key = switch, field, code
        last = self._last.get(key)
        self._last[key] = at_us if last is None else max(last, at_us)
        return now >= self._from and (last is None or at_us - last > _SAME_US)
