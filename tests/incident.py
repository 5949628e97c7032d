"""An incident: what a node with GPUs shows over time, and what the judge must make of it at each point.

A file's keys: ``story`` (one sentence), ``complaint`` (what it answers, where users of other agents asked),
``card`` (one of CARDS, h100), ``dcgm`` and ``trace`` (true: one more witness), ``poll_s`` (5), ``policy`` (limits),
``labels``, ``workloads`` ({pid: namespace/Kind/name}), ``timeline``.
Each step of the timeline has ``at`` (seconds) and any of:
  set {gpu: {signal: value}} · kernel [lines] · old [lines that were there at the first start] ·
  xid {gpu: code} by NVML's event · dcgm {gpu: [codes that its health check names], node: [...]} ·
  dcgm_xid {gpu: code} by DCGM's history, and in its health check for ever · dcgm_set {gpu: {signal: value}} ·
  trace [lines] by the driver's tracepoints ·
  dcgm_drops [gpus] · dcgm_says {name: value} of its engine · lost [gpus] · needs_reset [gpus] · back [gpus] ·
  missing {gpu: driver} ·
  forgotten [gpus that NVML lists no more as missing] · unread [gpus of which its polls say nothing, until back] ·
  slow seconds that a poll of NVML's takes ·
  hangs [gpus that polls leave out because a call into them hangs, until back] ·
  stops_at the gpu at which NVML's polls end, or null · silent [sources] · speaks [sources] ·
  failed {source: failure} · boot id · reset [gpus] · card {gpu: uuid} ·
  clock seconds to jump · restart true · dismiss [ids] ·
  offer {due: why there should be GPUs, withheld: {resource: count}} ·
  aside true or false, whether the GPUs are somebody else's
  expect: status, remedy, faults {id: severity} (all that stand), never_withdrawn (up to here), doubts
GPUs are numbers; polls of every source happen each ``poll_s`` in between.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from agent.config.limits import Limits
from agent.diagnosis.advice import next_step
from agent.diagnosis.epoch import COUNTERS
from agent.diagnosis.judge import Memory, Orders, judge
from agent.diagnosis.resume import resumed
from agent.diagnosis.rules import ROWS
from agent.model.fault import Verdict
from agent.model.observation import Failure, Missing, Observation, Signal, Value
from agent.model.world import Offer
from agent.remediation.records import Records
from agent.remediation.stored import dump, load, restored
from agent.sources.kmsg.lines import Facts
from agent.sources.trace.tracepoints import Reader

FOLDER = Path(__file__).parent / "incidents"
GPUS = ("0000:1b:00.0", "0000:43:00.0")
PORTS = {"0000:1a:01.0": GPUS[:1], "0000:42:01.0": GPUS[1:], "0000:00:01.0": GPUS}  # and the GPUs behind each
SOURCES = ("kmsg", "nvml")
# A name that was not filled in; a state that another fault beside it makes untrue; a line that can't be.
UNTRUE = re.compile(r"-i (?!GPU-\w|[0-9a-f]{4}:)|[{}]|\bNone\b|nothing has to be done|no pod is moved;|not produced")
_START = 1_760_000_000.0
_MARGIN: dict[str, Value] = {"margin_c": 40, "slowdown_tlimit_c": -2, "shutdown_tlimit_c": -9, "temperature_c": 45}
_DEGREES: dict[str, Value] = {
    "temperature_c": 45,
    "temperature_slowdown_c": 93,
    "temperature_shutdown_c": 96,
    "temperature_mem_max_c": 95,
    "margin_c": Missing.UNSUPPORTED,
}
_COMMON: dict[str, Value] = {
    "recovery_action": 0,
    "ecc_mode": 1,
    "ecc_mode_pending": 1,
    "ecc_uncorrected_volatile": 0,
    "ecc_uncorrected_aggregate": 0,
    "ecc_corrected_volatile": 0,
    "remapped_rows_pending": 0,
    "pcie_width": 16,
    "remapped_rows_failure": 0,
    "remapped_rows_uncorrected": 0,
    "sram_threshold_exceeded": 0,
    "pcie_max_width": 16,
    "pcie_replays": 0,
    "pcie_fatal_errors": 0,
    "persistence_mode": 1,
    "inforom_corrupt": 0,
    "hw_thermal_ns": 0,
    "sw_thermal_ns": 0,
    "hw_power_brake_ns": 0,
    "clocks_event_reasons": 1,
    "memory_temperature_c": 50,
}
_NVLINK: dict[str, Value] = {
    "nvlink_active": 18,
    "nvlink_replay": 0,
    "nvlink_recovery": 0,
    "nvlink_crc": 0,
    "nvlink_recovery_failed": 0,
    "fabric_state": 3,
    "fabric_health_mask": 0x1AA,
    "fabric_health_summary": 1,
}
_HIDDEN = dict.fromkeys(
    ("ecc_uncorrected_volatile", "ecc_corrected_volatile", "remapped_rows_pending", "remapped_rows_failure"),
    Missing.UNSUPPORTED,
)
CARDS: dict[str, dict[str, Value]] = {
    "h100": {"name": "NVIDIA H100 80GB HBM3", "architecture": 9, **_MARGIN, **_COMMON, **_NVLINK},
    "a100": {"name": "NVIDIA A100-SXM4-80GB", "architecture": 7, **_COMMON, **_DEGREES, **_NVLINK},
    "a100-mig": {"name": "NVIDIA A100-SXM4-80GB", "architecture": 7, **_COMMON, **_DEGREES, **_HIDDEN, "mig_mode": 1},
    "l40s": {"name": "NVIDIA L40S", "architecture": 8, **_MARGIN, **_COMMON},
    "rtx-pro-6000": {"name": "NVIDIA RTX PRO 6000 Blackwell Server Edition", "architecture": 10, **_MARGIN, **_COMMON},
    "t4": {
        "name": "Tesla T4",
        "architecture": 6,
        **_COMMON,
        **_DEGREES,
        "retired_pages_sbe": 0,
        "retired_pages_dbe": 0,
        "retired_pages_pending": 0,
    },
}


@dataclass
class Outcome:
    """How one incident went."""

    name: str
    faults: set[str] = field(default_factory=set)  # that the file expects, and that were found
    wrong: list[str] = field(default_factory=list)
    false_withdrawals: int = 0
    missed: int = 0


class Machine:
    """A node whose sources are polled along a made-up clock."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.limits = Limits.model_validate(data.get("policy") or {})
        self.poll_s = float(data.get("poll_s", 5))
        self.labels = data.get("labels") or {}
        self.workloads = {f"uid-{pid}": name for pid, name in (data.get("workloads") or {}).items()}
        pods = ",".join(f"{pid}=uid-{pid}" for pid in data.get("workloads") or {})
        self.memory, self.now, self.jumped = Memory(), 0.0, 0.0
        self.values: dict[int, dict[str, Value]] = {
            i: {**CARDS[data.get("card", "h100")], "uuid": f"GPU-{i}", "index": i, "energy_j": 1000.0, "pods": pods}
            for i in range(len(GPUS))
        }
        self.boot, self.seq = "boot-1", 0
        self.lost: set[int] = set()
        self.needs_reset: set[int] = set()
        self.missing: dict[int, str] = {}
        self.forgotten: set[int] = set()
        self.unread: set[int] = set()
        self.hangs: set[int] = set()
        self.slow_s = 0.1
        self.stops_at: int | None = None
        self.silent: set[str] = set()
        self.failed: dict[str, str] = {}
        self.dismissed: frozenset[str] = frozenset()
        self.aside = False
        self.offer = Offer()
        self.facts = Facts(lambda address: PORTS.get(address, [gpu for gpu in GPUS if gpu == address]))
        self.sources = (*SOURCES, *(more for more in ("dcgm", "trace") if data.get(more)))
        self.trace = Reader()
        self.incidents: dict[Any, list[Any]] = {}
        self.by_xid: list[tuple[int, int]] = []
        self.otherwise: dict[int, dict[str, Value]] = {}
        self.dropped: set[int] = set()
        self.of_the_engine: dict[str, Value] = {}

    @property
    def wall(self) -> float:
        return _START + self.now + self.jumped

    def round(self, *seen: Observation) -> Verdict:
        stamped = [replace(o, at=self.wall, arrived=1000 + self.now) for o in seen]
        orders = Orders(self.labels, self.workloads, self.dismissed, offer=self.offer, aside=self.aside)
        self.memory, verdict = judge(
            self.memory, stamped, 1000 + self.now, self.wall, self.limits, self.sources, orders
        )
        return verdict

    def poll(self) -> Verdict:
        """What each source says at a poll, as far as it speaks."""
        return self.round(*self._said())

    def _said(self) -> Iterator[Observation]:
        for source in self.sources:
            if source in self.failed:
                if source == "nvml" and self.stops_at is not None:
                    yield from self._heard(source)
                failure = Failure(self.failed[source])
                yield Observation(0, source, Signal.FAILED, value=failure, raw=f"{source}: {failure}")
            elif source not in self.silent:
                yield from self._heard(source)

    def _heard(self, source: str) -> Iterator[Observation]:
        if source == "kmsg":
            yield Observation(0, "kmsg", Signal.ALIVE, boot_id=self.boot, seq=self.seq)
            return
        if source == "dcgm":
            yield from self._witnessed()
            return
        if source == "trace":
            yield Observation(0, "trace", Signal.ALIVE)
            return
        here = [i for i in self.values if i not in self.missing]
        for i in here:
            if i == self.stops_at:
                return
            if i in self.hangs:
                raw = f"the driver does not answer: reading name of GPU {GPUS[i]} has not returned"
                yield Observation(0, "nvml", Signal.FAILED, GPUS[i], Failure.HUNG, raw=raw)
            if i in self.unread | self.hangs:
                continue
            if not isinstance(used := self.values[i]["energy_j"], Missing):
                self.values[i]["energy_j"] = float(str(used)) + 1
            if i in self.needs_reset:
                yield Observation(0, "nvml", Signal.RESET_REQUIRED, GPUS[i], raw="NVML error 16: a reset is required")
            elif i in self.lost:
                yield Observation(0, "nvml", Signal.LOST, GPUS[i], raw="NVML error 15: the GPU is lost")
            else:
                yield Observation(0, "nvml", Signal.READING, GPUS[i], values=dict(self.values[i]))
        missing = ",".join(f"{GPUS[i]}={driver}" for i, driver in self.missing.items() if i not in self.forgotten)
        heartbeat: dict[str, Value] = {"gpu_count": len(here), "on_bus": len(here), "missing": missing}
        heartbeat["poll_ms"] = 1000 * self.slow_s
        yield Observation(0, "nvml", Signal.ALIVE, boot_id=self.boot, values=heartbeat)

    def _witnessed(self) -> Iterator[Observation]:
        """DCGM's words: a health check that counts at each of its polls."""
        check: dict[str, Value] = {"check": self.now, "health": 20, "system": 0x10, "severity": 2}
        for i in self.values.keys() - self.dropped:
            values: dict[str, Value] = {**self.values[i], **self.otherwise.get(i, {})}
            yield Observation(0, "dcgm", Signal.READING, GPUS[i], values=values)
        for where, codes in self.incidents.items():
            for code in codes:
                pci = "" if where == "node" else GPUS[where]
                yield Observation(0, "dcgm", Signal.HEALTH, pci, code, check, raw=f"DCGM code {code} for GPU 32767")
        for i, xid in self.by_xid:
            latched = {**check, "system": 0xFFFFFFFF, "xid": xid}
            yield Observation(0, "dcgm", Signal.HEALTH, GPUS[i], 120 if xid == 79 else 101, latched, raw=f"XID {xid}")
        yield Observation(0, "dcgm", Signal.ALIVE, values={"check": self.now, **self.of_the_engine})

    def kernel(self, text: str, past: bool = False) -> Iterator[Observation]:
        self.seq += 1
        for signal, pci, value, values in self.facts.of(text):
            yield Observation(0, "kmsg", signal, pci, value, values, text[:500], self.boot, self.seq, past)

    def happen(self, step: Mapping[str, Any]) -> Verdict:
        """One step of the timeline, judged at once."""
        for gpu, values in (step.get("set") or {}).items():
            known = {"unsupported": Missing.UNSUPPORTED, "unreadable": Missing.UNREADABLE}
            self.values[gpu].update({k: known.get(v, v) if isinstance(v, str) else v for k, v in values.items()})
        self.needs_reset = (self.needs_reset | set(step.get("needs_reset", ()))) - set(step.get("reset", ()))
        for gpu in step.get("reset", ()):
            read = (name for name in (*COUNTERS, "recovery_action") if not isinstance(self.values[gpu][name], Missing))
            self.values[gpu].update(dict.fromkeys(read, 0))
        for gpu, uuid in (step.get("card") or {}).items():
            self.values[gpu]["uuid"] = uuid
        self.lost = (self.lost | set(step.get("lost", ()))) - set(step.get("back", ()))
        for gpu in step.get("back", ()):
            self.missing.pop(gpu, None)
            self.unread.discard(gpu)
            self.hangs.discard(gpu)
        self.missing.update(step.get("missing") or {})
        self.forgotten |= set(step.get("forgotten", ()))
        self.unread |= set(step.get("unread", ()))
        self.slow_s = step.get("slow", self.slow_s)
        self.hangs |= set(step.get("hangs", ()))
        self.stops_at = step.get("stops_at", self.stops_at)
        self.silent = (self.silent | set(step.get("silent", ()))) - set(step.get("speaks", ()))
        for source in step.get("speaks", ()):
            self.failed.pop(source, None)
        self.failed.update(step.get("failed") or {})
        if "offer" in step:
            self.offer = Offer(**step["offer"])
        if "aside" in step:
            self.aside = step["aside"]
            held = {source: "aside" for source in self.sources if source != "kmsg"}
            others = {source: why for source, why in self.failed.items() if why != "aside"}
            self.failed = {**others, **held} if self.aside else others
        self.incidents.update(step.get("dcgm") or {})
        self.by_xid += [(gpu, code) for gpu, code in (step.get("dcgm_xid") or {}).items()]
        for gpu, values in (step.get("dcgm_set") or {}).items():
            self.otherwise.setdefault(gpu, {}).update(values)
        self.of_the_engine = step.get("dcgm_says", self.of_the_engine)
        self.dropped = (self.dropped | set(step.get("dcgm_drops", ()))) - set(step.get("back", ()))
        if "boot" in step:
            self.boot, self.seq = step["boot"], 0
        self.jumped += step.get("clock", 0)
        if "dismiss" in step:
            self.dismissed = frozenset(step["dismiss"])
        if step.get("restart"):
            self._restart()
        events = [o for text in step.get("old", ()) for o in self.kernel(text, past=True)]
        events += [o for text in step.get("kernel", ()) for o in self.kernel(text)]
        events += [o for line in step.get("trace", ()) for o in self.trace.take(line)]
        events += [
            Observation(0, "nvml", Signal.XID, GPUS[gpu], value=code, raw=f"NVML event: Xid {code}")
            for gpu, code in (step.get("xid") or {}).items()
        ]
        events += [
            Observation(0, "dcgm", Signal.XID, GPUS[gpu], value=code, raw=f"DCGM field 230: Xid {code}")
            for gpu, code in (step.get("dcgm_xid") or {}).items()
        ]
        return self.round(*events, *self._said())

    def _restart(self) -> None:
        """kill -9 and a new start: only what the Node stores comes back."""
        verdict = self.round()
        text = dump(verdict, verdict.kernel_seq, verdict.at, Records())
        self.memory = resumed(Memory(), restored(text, 1000 + self.now), self.limits, self.labels)


def read(path: Path) -> dict[str, Any]:
    """An incident file, by libyaml: there are many."""
    return dict(yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader))


def play(path: Path) -> Outcome:
    """Run an incident file."""
    data = read(path)
    machine, outcome = Machine(data), Outcome(path.stem)
    withdrawn = False
    for step in data["timeline"]:
        while machine.now + machine.poll_s < step["at"]:
            machine.now += machine.poll_s
            withdrawn |= machine.poll().withdraw
            machine.now += 1
            withdrawn |= machine.round().withdraw
            machine.now -= 1
        machine.round()  # as the daemon judges in between, though nothing came
        machine.now = float(step["at"])
        verdict = machine.happen(step)
        withdrawn |= verdict.withdraw
        if "expect" in step:
            _compare(step["at"], step["expect"], verdict, withdrawn, outcome)
    return outcome


def _compare(at: float, expect: Mapping[str, Any], verdict: Verdict, withdrawn: bool, outcome: Outcome) -> None:
    found = {f.finding.id: f.finding.severity.name.lower() for f in verdict.faults}
    got: dict[str, Any] = {
        "status": str(verdict.status),
        "remedy": str(verdict.remedy),
        "faults": found,
        "never_withdrawn": not withdrawn,
        "doubts": [doubt for f in verdict.faults for doubt in f.doubts],
    }
    for key, wanted in expect.items():
        if got[key] != wanted:
            outcome.wrong.append(f"at {at} s: {key}: expected {wanted}, got {got[key]}")
    for one in verdict.standing:
        row, seen = ROWS.get(one.finding.rule), one.finding
        if row and not (seen.evidence.source in row.witnesses and ("gpu" if seen.pci else "node") in row.scope):
            outcome.wrong.append(f"at {at} s: {seen.id} by {seen.evidence.source}, which its row does not name")
    told = (text for f in verdict.faults for text in (f.finding.message, next_step(f), *f.doubts))
    outcome.wrong += [
        f"at {at} s: untrue or unfinished: {text}" for text in told if UNTRUE.search(re.sub("“[^”]*”", "", text))
    ]
    stored = dump(verdict, 1, 0.0, Records())
    read = load(stored, 0.0)
    if dump(replace(verdict, standing=read.faults, onsets=read.onsets, cards=read.cards), 1, 0.0, Records()) != stored:
        outcome.wrong.append(f"at {at} s: what is stored is read as something else, and would be written each round")
    wanted_faults = expect.get("faults", found)
    outcome.missed += len(wanted_faults.keys() - found.keys())
    outcome.faults |= wanted_faults.keys() & found.keys()
    if verdict.withdraw and (expect.get("never_withdrawn") or expect.get("status") in ("healthy", "degraded")):
        outcome.false_withdrawals += 1


def main() -> int:
    """``make incidents``: one line each, and what they add up to."""
    outcomes = [play(path) for path in sorted(FOLDER.glob("*.yaml"))]
    for outcome in outcomes:
        print(f"{'WRONG' if outcome.wrong else 'ok':<6}{outcome.name}")
        for wrong in outcome.wrong:
            print(f"      {wrong}")
    faults = sum(len(outcome.faults) for outcome in outcomes)
    withdrawals, missed = sum(o.false_withdrawals for o in outcomes), sum(o.missed for o in outcomes)
    print(f"{len(outcomes)} incidents, {faults} faults found, {withdrawals} false withdrawals, {missed} missed")
    return int(any(outcome.wrong for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
