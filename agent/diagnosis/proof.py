"""Whether the cure of a latched fault is proved: by an act, never by silence or by one counter that falls. Pure.

A new process has not seen what was done meanwhile, and a restored API server forgets a repair, its Job included: the
GPU's counters, stored with the fault, still tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from agent.config.source_index import GPUS
from agent.diagnosis.epoch import COUNTERS, began_anew, counters, fell, least, sober
from agent.diagnosis.history import Epoch, History, number
from agent.model.fault import Fault, Reset
from agent.model.observation import Observation
from agent.model.remedy import Proof


def proved(fault: Fault, history: History, resets: Mapping[str, Reset]) -> bool:
    """Whether there was a reboot, a reset of this GPU or a reload of its driver since the last evidence.

    Of GPUs that were reset together each must be well again, and the node's own fault is cured when all of them are.
    """
    pci, proof = fault.finding.pci, fault.finding.cure.row.proof
    along = [gpu for gpu, card in history.cards.items() if card.uuid in resets] if history.uuid(pci) in resets else []
    gpus = {pci, *along} if pci else set(history.readings)
    if not gpus or any(not _is_well(gpu, fault.last, history) for gpu in gpus):
        return False
    boot_id = history.boots.get(GPUS, "")  # by the witness that reads the GPU well again, in that boot
    rebooted = bool(fault.boot_id and boot_id and fault.boot_id != boot_id)
    was_reset = all(
        _by_us(gpu, fault, history, resets)
        or _by_a_reload(gpu, fault, history)
        or _in_this_life(gpu, fault, history)
        or (gpu == pci and _before_this_life(fault, history))
        for gpu in gpus
    )
    return (rebooted and proof is not Proof.NOTHING) or (was_reset and proof is Proof.RESET)


def _is_well(pci: str, after: float, history: History) -> bool:
    """The GPU is there and answers again, and the driver asks for nothing."""
    reading = history.readings.get(pci)
    if reading is None or reading.arrived <= after or pci in history.lost:
        return False
    return not number(reading, "recovery_action")


def _by_us(pci: str, fault: Fault, history: History, resets: Mapping[str, Reset]) -> bool:
    """A reset of ours ended well after the last evidence and before the last reading.

    By this life's clock; what an earlier life saw again after the reset says so itself.
    """
    reset, reading = resets.get(history.uuid(pci)), history.readings.get(pci)
    if reset is None or reading is None:
        return False
    return fault.after != reset.job and not _outlived(fault, reset) and reset.known < reading.arrived


def _by_a_reload(pci: str, fault: Fault, history: History) -> bool:
    """The kernel loaded the driver after the last evidence, and the GPU was read by that one.

    By both clocks: the wall's may jump, and this life's knows nothing of evidence from an earlier one.
    """
    loaded, reading = history.loaded, history.readings[pci]
    if loaded is None:
        return False
    return fault.last < loaded.arrived < reading.arrived and fault.finding.evidence.at < loaded.at


def _in_this_life(pci: str, fault: Fault, history: History) -> bool:
    """All of its counters began anew, and a second reading says so too: the first may have been absurd.

    What came after the last word before the new counters may have come after the reset.
    """
    epoch, reading = history.epochs.get(pci), history.readings[pci]
    return epoch is not None and reading.arrived > epoch.began and _ended_after(epoch, fault, reading)


def _ended_after(epoch: Epoch, fault: Fault, reading: Observation) -> bool:
    fresh = began_anew(counters(epoch.ended), counters(reading), reading.arrived - epoch.ended.arrived)
    return fresh and epoch.word >= fault.last


def _before_this_life(fault: Fault, history: History) -> bool:
    """The same by what is stored with the fault, for a reset that no life of the agent watched.

    The first reading decides, before a repair is begun a second time; an energy of 0 may be no reading at all.
    """
    pci = fault.finding.pci
    reading = history.readings[pci]
    if pci in history.epochs or pci in history.fallen:
        return False  # this life saw them fall, and when
    now, since_s = counters(reading), reading.at - fault.finding.evidence.at
    return bool(now.get("energy_j")) and began_anew(fault.counters, now, since_s)


def outlived(fault: Fault, history: History, resets: Mapping[str, Reset]) -> Fault:
    """The fault with our reset after which it was seen again, which is then no cure of it in any life."""
    its = resets.get(fault.uuid or history.uuid(fault.finding.pci))
    reset = its if fault.finding.pci else next(iter(resets.values()))
    return replace(fault, after=reset.job) if reset and _outlived(fault, reset) else fault


def _outlived(fault: Fault, reset: Reset) -> bool:
    """Whether this life saw it after the reset; one that it has not seen itself is of an earlier life."""
    return 0 < fault.last >= reset.over


def counted(old: Fault | None, history: History, pci: str) -> Mapping[str, float]:
    """The GPU's counters at a fault, or when it came again: a reset before that doesn't cure it.

    What comes before this life has read its GPU, or while it can't, may have come after a reset that nobody watched.
    """
    if GPUS in history.failed:
        return {}
    now = counters(history.readings.get(pci))
    known = old is not None and old.counters
    return least(known, now) if known and now else sober(now, counters(history.before.get(pci)))


def watched(fault: Fault, history: History) -> Fault:
    """The fault with what its counters tell now: those that fell and proved nothing prove nothing later either."""
    pci = fault.finding.pci
    reading, epoch = history.readings.get(pci), history.epochs.get(pci)
    if reading is None or reading.arrived <= fault.last:
        return fault
    if (epoch and _ended_after(epoch, fault, reading)) or _before_this_life(fault, history):
        return fault  # proved once it is read again, every source speaks and the driver asks for nothing
    now = counters(reading)
    lower = {*fault.fell, *history.fallen.get(pci, ()), *fell(fault.counters, now)}
    known = least(fault.counters, now)
    if len(lower) == len(fault.fell) and known == fault.counters:
        return fault
    return replace(fault, counters=known, fell=tuple(name for name in COUNTERS if name in lower))
