"""The only wiring: starts the sources, judges what they say, hands verdicts to the act loop, and ends cleanly."""

from __future__ import annotations

import selectors
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from agent.acting import Actor, Tell, view
from agent.config import Config
from agent.metrics import registry
from agent.model import Failure, Fault, Observation, Signal, Status, Verdict
from agent.policy.resume import resumed
from agent.policy.verdict import Memory, Orders, judge
from agent.recording import Recorder
from agent.server import Server
from agent.snapshot import Snapshot, SourceView
from agent.sources import Source
from agent.sources.pods import UnaskedError, who_holds
from agent.state import state

_TICK_S = 1.0
_HUNG_POLLS = 12  # a source that said nothing for so many polls is ended: 60 s at the default poll
_PATIENCE_S = 10.0  # for the first answer of the API server
_STALLED_S = 30.0  # /healthz fails when the judge loop did not turn for so long


class Daemon:
    """Judges in the calling thread; acting and HTTP have threads of their own."""

    def __init__(self, config: Config, node: str, actor: Actor | None, tell: Tell, sim_dir: Path | None = None) -> None:
        self._config, self._node, self._actor, self._tell = config, node, actor, tell
        self._memory = Memory()
        self._sources = {name: self._source(name, argv) for name, argv in self._commands(sim_dir).items()}
        self._selector = selectors.DefaultSelector()
        self._registered: dict[str, tuple[int, int]] = {}
        self._began = self._turned = time.monotonic()
        self._key: object = None
        self._restored = actor is None
        self.seen: Callable[[Observation], None] | None = None  # for a narrator
        self.judged: Callable[[Verdict], object] | None = None  # for one that waits for a verdict
        self._recorder: Recorder | None = None
        self._unasked = ""
        pods = config.sources.pods  # simulated GPUs are held by nobody, unless a test plays the kubelet too
        if actor and pods.enabled and (sim_dir is None or pods.socket.is_socket()):
            actor.holders = self._holders
        self.snapshot: Snapshot | None = None

    def run(self, stop: threading.Event) -> None:
        """Until ``stop``. Nothing on the node changes because the agent ends."""
        if self._actor:
            self._actor.start()
        try:
            while not stop.is_set():
                self._turn()
        finally:
            if self._actor:
                self._actor.stop()
            for source in self._sources.values():
                source.close()

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(self._sources)

    def record(self, recorder: Recorder) -> None:
        """From now on what is seen and decided is written down."""
        self._recorder = recorder
        if self._actor:
            self._actor.planned = recorder.planned

    def alive(self) -> bool:
        return time.monotonic() - self._turned < _STALLED_S

    def _source(self, name: str, argv: Callable[[], Sequence[str]]) -> Source:
        return Source(name, argv, hung_s=max(30.0, _HUNG_POLLS * self._config.poll_s))

    def _commands(self, sim_dir: Path | None) -> dict[str, Callable[[], Sequence[str]]]:
        """Each source's command line; the kernel log's is asked anew at each start, so that it resumes."""
        sources, poll = self._config.sources, ["--poll-s", str(self._config.poll_s)]
        python = [sys.executable, "-m"]
        commands: dict[str, Callable[[], Sequence[str]]] = {}
        if sim_dir is not None:
            (sim_dir / "kmsg").touch()  # the kernel log's source may be quicker than the simulation
            scenario = ["--scenario", sources.simulated.scenario or "idle", "--dir", str(sim_dir)]
            commands["nvml"] = lambda: [*python, "agent.sources.simulated", *scenario, *poll]
        elif sources.nvml.enabled:
            commands["nvml"] = lambda: [*python, "agent.sources.nvml", *poll]
        if sources.kmsg.enabled:
            path = str(sources.kmsg.path if sim_dir is None else sim_dir / "kmsg")
            boot = [] if sim_dir is None else ["--boot-id-file", str(sim_dir / "boot_id")]
            userspace = ["--accept-userspace"] if sources.kmsg.accept_userspace else []
            beat = ["--heartbeat-s", str(self._config.poll_s)]
            command = [*python, "agent.sources.kmsg", "--path", path, *boot, *beat, *userspace]
            commands["kmsg"] = lambda: [*command, *self._resume()]
        return commands

    def _resume(self) -> list[str]:
        history = self._memory.history
        if history.kernel_seq is None:
            return []
        return ["--after-boot-id", history.boot_id, "--after-seq", str(history.kernel_seq)]

    def _turn(self) -> None:
        self._restore()
        now = time.monotonic()
        aside = self._stand_aside()
        for name, source in self._sources.items():
            if self._may_start(name, now) and not (aside and name == "nvml"):
                source.tick(now)
            self._register(name, source)
        ready = self._selector.select(max(0.0, self._turned + _TICK_S - now))
        now = time.monotonic()
        seen = [o for key, _ in ready for o in self._sources[key.data].read(now)]
        if aside:
            seen = [o for o in seen if o.source != "nvml"]
            seen.append(Observation(time.time(), "nvml", Signal.FAILED, value=Failure.ASIDE, raw=aside, seen=now))
        if not seen and now - self._turned < _TICK_S:
            return
        self._judge(seen, now)
        self._turned = now

    def _may_start(self, name: str, now: float) -> bool:
        """The kernel log waits for its stored position. NVML waits as well, a while: a reset may be under way."""
        if self._actor is None:
            return True
        if name == "kmsg":
            return self._restored
        return self._actor.started or now - self._began > _PATIENCE_S

    def _stand_aside(self) -> str:
        """Why no process of ours may hold a GPU now; the one that does is ended."""
        why, nvml = (self._actor.aside if self._actor else ""), self._sources.get("nvml")
        if self._actor:
            self._actor.released = bool(why) and (nvml is None or nvml.close())
            self._actor.clients = {
                str(reading.values.get("uuid")): str(reading.values.get("processes") or "")
                for reading in self._memory.history.readings.values()
            }
        return why

    def _holders(self) -> Mapping[str, frozenset[str] | None]:
        """Called by the act thread. Where it can't be asked nobody's GPUs are known: every GPU pod leaves."""
        try:
            found = who_holds(self._config.sources.pods.socket)
            self._unasked = ""
            return found
        except UnaskedError as error:
            if str(error) != self._unasked:
                self._tell("which pod holds which GPU is not known; a GPU's remedy moves all GPU pods", why=str(error))
            self._unasked = str(error)
            return {}

    def _register(self, name: str, source: Source) -> None:
        fd, old = source.fileno(), self._registered.pop(name, None)
        new = None if fd is None else (fd, source.status.starts)  # a new process may get the old one's number
        if new != old:
            if old is not None:
                self._selector.unregister(old[0])
            if new is not None:
                self._selector.register(new[0], selectors.EVENT_READ, name)
        if new is not None:
            self._registered[name] = new

    def _restore(self) -> None:
        """Once, when the Node was first read: the faults and the kernel position of our last life."""
        if self._restored or self._actor is None or not self._actor.started:
            return
        text, now = self._actor.stored_text, time.monotonic()
        self._memory = resumed(self._memory, text, now, self._config.policy, self._actor.orders().labels)
        if self._recorder:
            self._recorder.restored(text, now, self._actor.orders())
        if text is not None:
            self._tell("resumed", faults=sorted(self._memory.faults), kernel_seq=self._memory.history.kernel_seq)
        self._restored = True

    def _judge(self, seen: list[Observation], now: float) -> None:
        if self.seen:
            for observation in seen:
                self.seen(observation)
        before = self.snapshot.verdict if self.snapshot else None
        try:
            orders, wall = self._actor.orders() if self._actor else Orders(), time.time()
            self._memory, verdict = judge(
                self._memory, seen, now, wall, self._config.policy, tuple(self._sources), orders
            )
        except Exception as error:  # noqa: BLE001 - a rule's bug must neither end the agent nor cure anything
            self._misjudged(before, error)
            return
        key = (
            verdict.status,
            verdict.remedy,
            tuple((f.finding.id, f.finding.severity) for f in verdict.faults),
            verdict.boot_id,
        )
        if self._actor and self._restored:  # first of all: the taint waits for no log line
            self._actor.judged(verdict, key != self._key)
        if self._actor:
            self._actor.ask(set(self._memory.history.pods.values()))
        self._key = key
        if self._recorder:
            self._recorder.judged(now, wall, seen, orders, verdict)
        self._tell_changes(before, verdict)
        self.snapshot = self._show(verdict, now)
        if self.judged:
            self.judged(verdict)

    def _misjudged(self, before: Verdict | None, error: Exception) -> None:
        """Keep the last good verdict, and say that it is the last."""
        why = f"judge: unexpected {type(error).__name__}; please report it"
        if self.snapshot and before and why not in before.blind:
            self._tell(why, error=repr(error), exc_info=True)
            status = before.status if before.status is Status.UNHEALTHY else Status.UNKNOWN
            self.snapshot = replace(self.snapshot, verdict=replace(before, status=status, blind=(*before.blind, why)))

    def _tell_changes(self, before: Verdict | None, verdict: Verdict) -> None:
        old = {f.finding.id: f for f in before.faults} if before else {}
        new = {f.finding.id: f for f in verdict.faults}
        for key in new.keys() - old.keys():
            self._tell("fault confirmed", **_facts(new[key]))
        for key in old.keys() - new.keys():
            self._tell("fault cleared", **_facts(old[key]))
        for key in new.keys() & old.keys():
            if new[key].proved and not old[key].proved:
                self._tell("cure proved, soaking", fault=key, soak_s=self._config.policy.soak_s)
        if before is None or before.status is not verdict.status or before.blind[:1] != verdict.blind[:1]:
            self._tell("status", status=str(verdict.status), blind=list(verdict.blind))

    def _show(self, verdict: Verdict, now: float) -> Snapshot:
        history = self._memory.history
        acted = view(self._actor) if self._actor else {}
        return Snapshot(
            node=self._node,
            mode=self._config.mode,
            verdict=verdict,
            readings={
                # What is lost or was not read lately has no value now, and must leave no stale series.
                pci: reading
                for pci, reading in history.readings.items()
                if pci not in history.lost and now - reading.seen <= self._config.policy.silent_s
            },
            xids={key: (tally.count, tally.last_at) for key, tally in history.tallies.items()},
            sources=tuple(_view(source, verdict, now) for source in self._sources.values()),
            **acted,
        )


def serve(config: Config, daemon: Daemon) -> Server:
    """HTTP over a daemon's snapshots, from before the first GPU is opened."""
    server = Server(
        config.http,
        registry(lambda: daemon.snapshot),
        lambda: state(daemon.snapshot, config.policy)
        if daemon.snapshot
        else {"status": "unknown", "faults": [], "waits": ["no verdict yet"]},
        daemon.alive,
        lambda: daemon.snapshot is not None,
    )
    server.start()
    return server


def _view(source: Source, verdict: Verdict, now: float) -> SourceView:
    status = source.status
    blind = next((why for why in verdict.blind if why.startswith(f"{status.name}: ")), "")
    return SourceView(
        name=status.name,
        up=status.running and not blind,
        age_s=None if status.last_seen is None else now - status.last_seen,
        starts=status.starts,
        garbage=status.garbage,
        pid=status.pid,
        trouble=status.trouble or blind,
    )


def _facts(fault: Fault) -> dict[str, str]:
    finding = fault.finding
    return {
        "fault": finding.id,
        "severity": finding.severity.name.lower(),
        "remedy": finding.remedy,
        "message": finding.message,
        "evidence": finding.evidence.raw,
    }
