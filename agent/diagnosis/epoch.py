"""The counters that begin anew at a reset: one that falls proves none, all of them at once do. Pure.

``nvidia-smi -p 0`` takes the volatile ECC counts back, a replay counter may read 2^32-1 for one poll, and without
persistence mode all of them begin anew when the last client leaves: none of it is a reset.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent.diagnosis.history import number
from agent.model.observation import Observation

COUNTERS = ("energy_j", "ecc_uncorrected_volatile", "ecc_corrected_volatile", "pcie_replays")
_PERSISTENCE = "persistence_mode"
_MOST_W, _LATE_S = 2000.0, 5.0  # no GPU draws more; a reading may come so much later than it was taken


def counters(reading: Observation | None) -> dict[str, float]:
    """What a GPU's reading counts, and whether persistence mode was on."""
    return {name: value for name in (*COUNTERS, _PERSISTENCE) if (value := number(reading, name)) is not None}


def any_fell(before: Observation, after: Observation) -> bool:
    """Whether one of the counters fell between two readings; asked of each reading, so it copies nothing."""
    for name in COUNTERS:
        was, now = number(before, name), number(after, name)
        if was is not None and now is not None and now < was:
            return True
    return False


def sober(last: Mapping[str, float], earlier: Mapping[str, float]) -> dict[str, float]:
    """The last counts, but of the energy the smaller: it may have been absurd for one poll."""
    return {**last, **least({name: value for name, value in last.items() if name == "energy_j"}, earlier)}


def least(counted: Mapping[str, float], read: Mapping[str, float]) -> dict[str, float]:
    return {name: min(value, read.get(name, value)) for name, value in counted.items()}


def fell(counted: Mapping[str, float], read: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(name for name in COUNTERS if name in counted and name in read and read[name] < counted[name])


def began_anew(counted: Mapping[str, float], read: Mapping[str, float], seconds: float) -> bool:
    """Whether the GPU was reset, or its driver loaded, in the ``seconds`` since it had counted so far.

    Its energy is then little enough to have been used in that time, and whatever else it had counted fell as well.
    """
    lower = fell(counted, read)
    kept = counted.get(_PERSISTENCE) == read.get(_PERSISTENCE) == 1
    others = all(name in lower for name in COUNTERS if name in read and counted.get(name))
    return kept and others and "energy_j" in lower and read["energy_j"] <= _MOST_W * (seconds + _LATE_S)
