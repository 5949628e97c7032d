"""A fault in sentences: what would clear it, and what a person does next."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable

from agent.config.limits import Limits
from agent.config.settings import Mode
from agent.config.source_index import SECOND_WITNESS, SOURCES
from agent.diagnosis.dismissal import ends_when_cured
from agent.diagnosis.rules.dcgm import EXPLAINED_BY
from agent.model.fault import RELAPSING, Fault, Finding, Severity
from agent.model.names import DISMISS_ANNOTATION
from agent.model.remedy import Remedy

_BY_ITSELF = {
    Mode.OBSERVE: "mode observe: it is only reported, and nothing keeps pods away",
    Mode.TAINT: "the node is withdrawn under a permit; mode taint: its pods stay",
    Mode.EVICT: "the node is withdrawn under a permit and its pods are evicted as PodDisruptionBudgets allow",
}
_STAYS_WITHDRAWN = "mode observe: new pods stay away until the cure is proved, and no pod is moved"
# By the effect of the degraded node's taint: empty while there is none, None where it isn't known.
_NEW_PODS: dict[str | None, str] = {
    "": "",
    "PreferNoSchedule": ", new ones prefer other nodes",
    "NoSchedule": ", no new ones come",
    None: ", new ones prefer other nodes or stay away",
}
# What a rule alone can say better than its remedy.
_COOLING = "look at the node's cooling: fans, air flow, inlet temperature, and whether its neighbours are hot too"
_POWER = "look at the rack's and the node's power supplies: the brake is their signal, not the GPU's"
_SLOT = "when its pods have left, power the node off and seat the card, its riser or cable anew"
_LINKS = "look at 'nvidia-smi nvlink --status' here and at the other end; seat or replace the bridge, cable or board"
_FABRIC = "look at 'systemctl status nvidia-fabricmanager' and its log, then at 'nvidia-smi -q' under Fabric"
_PROBE = "look at the agent's pod: the log of its container 'sources' says why, and /state names what is missing"
_DRIVER = (
    "look at 'dmesg' and 'nvidia-smi' on the node: a driver that was upgraded under running programs wants a reboot"
)
_ENGINE = (
    "look at DCGM's engine, nv-hostengine or the pod nvidia-dcgm: does 'dcgmi discovery -l' answer on the node? An "
    "nvvs that a killed engine left holds its port and answers nothing until SIGKILL ends it"
)
_UNUSED = "look at 'lspci -d 10de:' and 'dmesg' on the node, and at what the agent's container 'sources' may open"
_PLUGIN = "look at the device plugin's or DRA driver's pod on the node: does it run, and what does its log say of GPUs?"
_COMPARE = (
    "compare 'dcgmi discovery -l' and 'dcgmi health -c' with 'nvidia-smi -q': restart the engine if it is the odd one"
)
_CABLE = "power the node off and connect the GPU's power cables: a reboot alone cures nothing"
_MODULES = "install the driver with NVIDIA's open kernel modules: no reboot makes this one work with the GPU"
_REFUSED = (
    "look at 'dmesg' and 'lspci -vv -d 10de:' on the node: does this driver release know the GPU, and did the BIOS map "
    "its memory?"
)
_ADDRESS = "let sources.dcgm.address lead to this node's engine: a Service for it needs internalTrafficPolicy: Local"
_WHICH = "ask 'nvidia-smi' on the node which GPU it is, and run nvidia-bug-report.sh there if it knows of none"
# Of a GPU that the driver's words do not name.
OF_SOME_GPU = dict.fromkeys(("gpu-lost", "gpu-reset-required", "gpu-init-failed"), _WHICH)
_RELEASE = "take bindings and library of the engine's release: by the image's DCGM, or the host's that the node mounts"
_NO_HEALTH = "look at 'dcgmi modules --list': the module Health is on the engine's denylist, or could not be loaded"
ADVICE = {
    **dict.fromkeys(
        (
            "temperature",
            "temperature-shutdown",
            "memory-temperature",
            "hw-thermal-slowdown",
            "sw-thermal-slowdown",
            "hw-slowdown",
        ),
        _COOLING,
    ),
    "power-brake": _POWER,
    **dict.fromkeys(("pcie-width", "pcie-replays", "pcie-fatal-errors", "gpu-count"), _SLOT),
    **dict.fromkeys(("nvlink-down", "nvlink-errors", "nvlink-crc", "nvlink-recovery-failed", "nvlink-ber"), _LINKS),
    **dict.fromkeys(("fabric-state", "fabric-health"), _FABRIC),
    **dict.fromkeys(("gpu-silent", *(row.silent for row in SOURCES.values())), _PROBE),
    **dict.fromkeys(("dcgm-dropped", "dcgm-disagrees"), _COMPARE),
    SOURCES[SECOND_WITNESS].silent: _ENGINE,
    **dict.fromkeys(("gpu-power-cable", "xid-54"), _CABLE),
    "gpu-needs-open-modules": _MODULES,
    "gpu-unusable": _REFUSED,
    "gpu-none": _UNUSED,
    **dict.fromkeys(("gpu-withheld", "pods-refused"), _PLUGIN),
    "dcgm-elsewhere": _ADDRESS,
    "dcgm-mismatch": _RELEASE,
    "dcgm-no-health": _NO_HEALTH,
    **dict.fromkeys(("driver-not-loaded", "driver-mismatch", "driver-hung"), _DRIVER),
}
# An incident of DCGM's is looked at like the fault whose symptom it is.
ADVICE |= {rule: ADVICE[heads[0]] for rule, heads in EXPLAINED_BY.items() if heads and heads[0] in ADVICE}


def clears(finding: Finding, limits: Limits, joined: Iterable[Fault] = ()) -> str:
    """What would end the fault. The dismissal names its ``joined`` symptoms: else they would stand by themselves."""
    ids = ",".join((finding.id, *(symptom.finding.id for symptom in joined)))
    word = f"a person's dismissal: annotation gpu-health-agent/dismiss={ids} on the node"
    dismissal = f"or {word}"
    if finding.drill:
        return f"the drill's end: its annotation gpu-health-agent/drill goes or expires; {dismissal}"
    if finding.clear_s == 0:
        return f"its end, at once; {dismissal}"
    ends = finding.cure.row.ends
    seen = "with every GPU answering" if not finding.pci else "with the GPU answering"
    proof = f"{ends}, proved {seen} and the driver asking for nothing"
    if finding.clear_s is not None:
        witness = f", as {finding.witness} sees it" if finding.witness else ""
        sooner = f"{proof}; " if ends_when_cured(finding) else ""
        return f"{finding.clear_s:g} s without it{witness}; {sooner}{dismissal}"
    card = "another card in the slot" if finding.pci else ""
    if not ends or finding.rule == RELAPSING:
        return f"{card}; {dismissal}" if card else word
    return "; ".join(part for part in (f"{proof}, then {limits.soak_s:g} s well", card, dismissal) if part)


def next_step(
    fault: Fault, mode: str = Mode.EVICT, along: Collection[str] = (), effect: str | None = None, resets: bool = False
) -> str:
    """What happens by itself, and what a person does.

    ``along`` are the GPUs that a reset must name as well, ``effect`` is that of our taint; ``resets``:
    its GPU is reset once nobody uses it.
    """
    if fault.proved:
        return "the cure is proved; the fault ends by itself after the soak"
    degraded = fault.finding.severity is Severity.DEGRADED
    to_do = "its GPU is reset once nobody uses it" if resets and degraded else by_hand(fault, along)
    return f"{by_itself(fault, mode, effect)}; {to_do}"


def by_hand(fault: Fault, along: Collection[str] = ()) -> str:
    """What a person does."""
    finding = fault.finding
    if finding.drill:
        return "it is a drill, and asks for nothing"
    gpu = fault.uuid or finding.pci
    target = f" -i {','.join((gpu, *sorted(along)))}" if gpu else ", which names no GPU and so resets them all"
    known = ADVICE if finding.pci else {**OF_SOME_GPU, **ADVICE}
    return known.get(finding.rule) or finding.remedy.row.to_do.format(target=target)


def commands(fault: Fault, node: str, along: Collection[str] = ()) -> tuple[str, ...]:
    """What a person can paste into a shell, with all that it must name: the reset of the GPU, on its node and when its
    pods have left, and the dismissal of the whole incident."""
    finding, gpu = fault.finding, fault.uuid or fault.finding.pci
    ids = ",".join(fault.ids)
    dismissal = shlex.join(("kubectl", "annotate", "node", node or "NODE", f"{DISMISS_ANNOTATION}={ids}"))
    reset = shlex.join(("nvidia-smi", "--gpu-reset", "-i", ",".join((gpu, *sorted(along)))))
    known_better = finding.rule in ADVICE or finding.drill or fault.proved
    return (reset, dismissal) if finding.remedy is Remedy.RESET_GPU and gpu and not known_better else (dismissal,)


def by_itself(fault: Fault, mode: str, effect: str | None = None) -> str:
    """What happens without a person."""
    severity = fault.finding.severity
    if severity is Severity.NOTICE:
        return "no pod is moved for it"
    if severity is Severity.DEGRADED:
        new = "" if mode == Mode.OBSERVE and effect is None else _NEW_PODS.get(effect, _NEW_PODS[None])
        return f"running pods stay{new}"
    if fault.aside:
        return "seen only while the agent stood aside: it withdraws nothing until it is seen again"
    return _STAYS_WITHDRAWN if mode == Mode.OBSERVE and effect == "NoSchedule" else _BY_ITSELF[Mode(mode)]
