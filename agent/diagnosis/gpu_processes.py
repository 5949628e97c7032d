"""Who holds a GPU, as far as it is seen now: no reset is tried while anybody does. Pure."""

from __future__ import annotations

from agent.diagnosis.history import History
from agent.model.world import Clients


def clients(history: History, now: float, silent_s: float) -> Clients:
    """By fresh readings only: what a GPU that answers nothing more had on it would be said for ever.

    Where the driver can't tell, nobody is named: nvidia-smi itself refuses to reset a GPU that is in use.
    """
    return {
        str(reading.values["uuid"]): _pids(reading.values.get("processes"), reading.values.get("pods"))
        for pci, reading in history.readings.items()
        if pci not in history.lost
        and pci not in history.resets
        and now - reading.arrived <= silent_s
        and "uuid" in reading.values
    }


def _pids(processes: object, pods: object) -> dict[str, str]:
    # Missing is a string as well, and no list of pids.
    pids = [pid for pid in str(processes).split(",") if pid.isdigit()]
    of = dict(pair.split("=", 1) for pair in str(pods).split(",") if "=" in pair)
    return {pid: of.get(pid, "") for pid in pids}
