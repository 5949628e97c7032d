"""``replay``: what the agent decided, or would have, from a recording or from a raw kernel log."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import cast

from agent.actions.kube import KubeClient
from agent.commands.evidence import texts
from agent.commands.setup import configured, lines_of, opened, undamaged
from agent.config.settings import Config
from agent.config.source_index import GPUS, KERNEL_LOG
from agent.diagnosis.judge import Memory, Orders, judge
from agent.diagnosis.resume import resumed
from agent.model.describe import describe
from agent.model.errors import UnreadableError, UsageError
from agent.model.fault import Verdict
from agent.model.observation import Observation, Signal, Value, parse_line
from agent.model.text import printable
from agent.recording.decisions import Decisions, in_json
from agent.recording.recording import Entry, Planned, Recording, Restored, Round
from agent.remediation.plan import plan
from agent.remediation.stored import restored
from agent.runtime.cycle import Cycle, turn
from agent.runtime.exchange import Judged
from agent.simulation.gpu import SimulatedGpu
from agent.simulation.in_memory_cluster import InMemoryCluster
from agent.simulation.scenario import PROFILES
from agent.sources.kmsg.lines import Facts, names
from agent.sources.kmsg.pasted import Paste, exported

_LATEST_VERDICTS = 64
_NODE = "node"
_POLL_S, _WATCHED_S, _SELDOM_S, _SETTLED_S = 5.0, 30.0, 60.0, 4 * 3600.0
_MOST_ROUNDS = 20


EXAMPLES = (
    ("gpu-health-agent replay run.jsonl", "what was decided"),
    ("gpu-health-agent replay evidence.tar.gz", "the same of each recording in an archive of 'evidence'"),
    ("gpu-health-agent replay run.jsonl --config other.yaml", "what another configuration would have decided"),
    ("gpu-health-agent replay dmesg.txt --profile a100-8", "what a kernel log would have led to"),
    ("journalctl -k | gpu-health-agent replay -", "the same of this machine's"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "a recording, an archive of 'evidence', a source's lines or a raw kernel log; - for stdin"
    parser.add_argument("file", metavar="FILE", help=what)
    parser.add_argument("--config", metavar="OTHER", help="another policy than the recording's own")
    parser.add_argument("--profile", default="h100-8", metavar="P", help="the healthy GPUs beside a raw kernel log")
    parser.add_argument("--json", action="store_true", help="one JSON object a line and change, the only form there is")


def run(arguments: argparse.Namespace) -> int:
    if arguments.profile not in PROFILES:
        raise UsageError(f"--profile: {arguments.profile!r} is none of {', '.join(PROFILES)}")
    config = configured(arguments.config) if arguments.config else None
    with contextlib.ExitStack() as stack:
        if arguments.file == "-":
            stream = cast(BufferedReader, sys.stdin.buffer)
        else:
            path = Path(arguments.file)
            if not path.is_file():
                raise UsageError(f"{path}: no such file")
            stream = stack.enter_context(opened(path))
        for name, text in texts(stream):
            if name:
                sys.stderr.write(f"gpu-health-agent: {name}\n")
            for decision in replay(undamaged(lines_of(text)), config, arguments.profile):
                sys.stdout.write(decision + "\n")
    return 0


def replay(lines: Iterable[str], config: Config | None, profile: str) -> Iterator[str]:
    """Decision lines. ``config`` None: the recording's own, or for a kernel log the defaults in mode evict."""
    source = iter(lines)
    first = next((line for line in source if line.strip()), "")
    together = _chain(first, source)
    if first.startswith('{"recording"'):
        yield from _recorded(Recording.open(together), config)
        return
    config = config or Config.model_validate({"mode": "evict"})
    if first.lstrip().startswith("{") and '"__REALTIME_TIMESTAMP"' not in first:  # which a journal's lines have
        yield from _Alone(config, ()).play(_said(together))
    else:
        if first.startswith("__CURSOR="):
            together = exported(together)
        gpus = PROFILES[profile]()
        known = {gpu.address for gpu in gpus}
        yield from _Alone(config, gpus).play(_logged(together, config.sources.kmsg.accept_userspace, known))


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    if first:
        yield first
    yield from rest


def ending(lines: Iterable[str], other: Config | None) -> tuple[Verdict, Config]:
    """The last verdict of a recording and the configuration it was judged by; UsageError if there is none."""
    recording = Recording.open(iter(lines))
    config = other or recording.config
    last = None
    for _, verdict in _judged(recording, config):
        last = verdict or last
    if last is None:
        raise UsageError("the recording ends before its first round")
    return last, config


def _recorded(recording: Recording, other: Config | None) -> Iterator[str]:
    config = other or recording.config
    verdicts: OrderedDict[float, Verdict] = OrderedDict()
    judged, planned = Decisions(), Decisions()
    for entry, verdict in _judged(recording, config):
        decision = None
        if verdict is not None:
            verdicts[verdict.at] = verdict
            if len(verdicts) > _LATEST_VERDICTS:
                verdicts.popitem(last=False)
            decision = judged.judged(verdict)
        elif isinstance(entry, Planned) and (then := _verdict_at(entry.at, verdicts)):
            # Another configuration may judge otherwise: its plan is made from its own verdict of that time.
            decision = planned.planned(then, plan(then, entry.world, config, entry.local).steps)
        if decision is not None:
            yield decision


def _judged(recording: Recording, config: Config) -> Iterator[tuple[Entry, Verdict | None]]:
    """Each entry of a recording, with the verdict where it is a round of the judge."""
    memory, orders = Memory(), Orders()
    for entry in recording:
        verdict = None
        if isinstance(entry, Restored):
            orders = entry.orders or orders
            memory = resumed(memory, restored(entry.stored, entry.t), config.policy, orders.labels, orders.aside)
        elif isinstance(entry, Round):
            orders = entry.orders or orders
            memory, verdict = judge(memory, entry.seen, entry.t, entry.wall, config.policy, recording.sources, orders)
        yield entry, verdict


def _verdict_at(at: float, verdicts: OrderedDict[float, Verdict]) -> Verdict | None:
    """That of a round which was left out is the one before it, but for its time."""
    exact = verdicts.get(at)
    before = next((v for known, v in reversed(verdicts.items()) if known <= at), None)
    return exact or (replace(before, at=at) if before else None)


def _said(lines: Iterable[str]) -> Iterator[Observation]:
    """What a source printed; its own clock is the only one there is."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                observation = parse_line(line, 0.0)
            except ValueError as error:
                raise UsageError(f"line {number}: {printable(str(error))[:300]}") from error
            yield replace(observation, arrived=observation.at)


def _logged(lines: Iterable[str], userspace: bool, gpus: set[str]) -> Iterator[Observation]:
    """A kernel log as people paste it, by its own clock. Says on standard error how much of it was understood.

    ``gpus`` are the addresses by which a port's error is known to be a GPU's; the log names more.
    """
    paste, facts = Paste(), Facts(lambda pci: gpus & {pci})
    for number, record in enumerate(paste.records(lines), 1):
        try:
            found = list(facts.of(record.text)) if record.kernel or userspace else []
        except ValueError:
            found = []
        if not found and names(record.text):
            paste.unclear += 1
        for signal, pci, value, values in found:
            gpus |= {pci} - {""} if signal is not Signal.SXID else set()
            raw = record.text[:500]
            yield Observation(
                record.at, KERNEL_LOG, signal, pci, value, values, raw, "replay", number, arrived=record.at
            )
    if not paste.taken:
        raise UnreadableError(
            f"none of {paste.lines} lines could be read as a kernel log record, so nothing is known of the GPUs: "
            "give what dmesg, journalctl -k, syslog or /dev/kmsg prints; logfmt is not read"
        )
    sys.stderr.write(
        f"gpu-health-agent: {paste.taken} of {paste.lines} lines were read as a kernel log; "
        f"{paste.unclear} that name NVRM, nvswitch or Xid were not understood\n"
    )


class _Alone:
    """A node without a recorded cluster: healthy GPUs beside the log, and a cluster in memory for the steps."""

    def __init__(self, config: Config, gpus: Iterable[SimulatedGpu]) -> None:
        self._config = config
        cluster = InMemoryCluster()
        for node in (_NODE, "another"):
            cluster.add_node(node)
        self._client = KubeClient(cluster, _NODE, config)
        at_once = config.drain.model_copy(update={"gather_s": 0.0})
        self._cycle = Cycle(config.model_copy(update={"drain": at_once}), 0.0)
        self._memory, self._decisions = Memory(), Decisions()
        self._values: dict[str, dict[str, Value]] = {gpu.address: _healthy(gpu) for gpu in gpus}
        self._expected = (KERNEL_LOG, GPUS) if self._values else ()
        self._now: float | None = None

    def play(self, events: Iterable[Observation]) -> Iterator[str]:
        batch: list[Observation] = []
        for event in events:
            if batch and event.arrived > batch[0].arrived:
                yield from self._round(batch)
                batch = []
            batch.append(event)
        yield from self._round(batch)
        end = self._now or 0.0
        for later in range(1, int(_WATCHED_S // _POLL_S) + 1):  # what the last lines led to
            at = end + later * _POLL_S
            yield from self._judged(at, self._polls(at))

    def _round(self, batch: list[Observation]) -> Iterator[str]:
        """What came at one instant, after the polls since the last."""
        at = batch[0].arrived if batch else 0.0
        polled = self._now if self._now is not None else at
        while self._values and polled + _POLL_S < at:
            quiet_s = 0.0 if self._now is None else polled - self._now
            if quiet_s > _SETTLED_S:  # whatever clears by itself has cleared
                break
            polled = min(at, polled + (_SELDOM_S if quiet_s > _WATCHED_S else _POLL_S))
            yield from self._judged(polled, self._polls(polled))
        for event in batch:
            if event.pci and event.signal in (Signal.XID, Signal.LOST) and self._values:
                model = next(iter(self._values.values()))
                self._values.setdefault(event.pci, {**model, "uuid": f"GPU-{event.pci}"})
        yield from self._judged(at, [*self._polls(at), *batch])
        self._now = at

    def _polls(self, at: float) -> list[Observation]:
        if not self._values:
            return []
        boot = "replay"
        return [
            Observation(at, KERNEL_LOG, Signal.ALIVE, boot_id=boot, arrived=at),
            *(Observation(at, GPUS, Signal.READING, pci, values=v, arrived=at) for pci, v in self._values.items()),
            Observation(at, GPUS, Signal.ALIVE, boot_id=boot, values={"gpu_count": len(self._values)}, arrived=at),
        ]

    def _judged(self, at: float, seen: list[Observation]) -> Iterator[str]:
        # The judge's clock never shows 0, which is before the first round.
        self._memory, verdict = judge(self._memory, seen, at + 1, at, self._config.policy, self._expected)
        if not self._decisions.changed(verdict):
            return
        done: list[str] = []
        for _ in range(_MOST_ROUNDS):
            last = turn(self._cycle, Judged(verdict), self._client, lambda _: None, lambda: at, lambda: at)
            self._cycle = last.cycle
            done += [describe(step) for step in last.done]
            if not last.done:
                break
        yield in_json(verdict, done)


def _healthy(gpu: SimulatedGpu) -> dict[str, Value]:
    return {
        "uuid": gpu.uuid,
        "name": gpu.name,
        "architecture": gpu.architecture,
        "recovery_action": 0,
        "ecc_uncorrected_volatile": 0,
        "energy_j": 1000.0,
    }
