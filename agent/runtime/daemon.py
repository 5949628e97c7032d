"""The only wiring: starts the sources, judges what they say, hands verdicts to the act loop, and ends cleanly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from agent.config.settings import Config
from agent.diagnosis.gpu_processes import clients
from agent.diagnosis.history import SECOND
from agent.diagnosis.judge import Memory, Orders, judge
from agent.diagnosis.resume import resumed
from agent.diagnosis.rules.dcgm import disagreements
from agent.model.fault import Fault, Status, Verdict
from agent.model.observation import Failure, Observation, Signal
from agent.recording.recording import Recorder
from agent.remediation.idle_reset import wanted
from agent.remediation.stored import restored
from agent.runtime.actor import Actor, Tell
from agent.runtime.actor_view import view
from agent.runtime.drill_marks import Rehearsal
from agent.sources.kubelet.pod_resources import Holders, UnaskedError
from agent.sources.process.source import SourceStatus
from agent.sources.process.supervisor import HOLD_GPUS, Known, Sources
from agent.status.metrics import registry
from agent.status.server import Server
from agent.status.snapshot import Snapshot, SourceView
from agent.status.state import state

_TICK_S = 1.0
_PATIENCE_S = 10.0  # for the first answer of the API server
_REHEARSAL_S = 0.05  # between looks at whether the Node was looked at
_STALLED_S = 30.0  # /healthz fails when the judge loop did not turn for so long


class Daemon:
    """Judges in the calling thread; acting and HTTP have threads of their own."""

    def __init__(self, config: Config, node: str, actor: Actor | None, tell: Tell, sources: Sources) -> None:
        self._config, self._node, self._actor, self._tell = config, node, actor, tell
        self._memory = Memory()
        self._sources = sources
        self._began = self._turned = time.monotonic()
        self._key: object = None
        self._restored = actor is None
        self.seen: Callable[[Observation], None] | None = None  # for a narrator
        self.judged: Callable[[Verdict], object] | None = None  # for one that waits for a verdict
        self._recorder: Recorder | None = None
        self._unasked = self._second = ""
        self._rehearsal = Rehearsal()
        if actor and config.sources.pods.enabled:
            actor.holding.ask = self._holders
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
            self._sources.close()

    def record(self, recorder: Recorder) -> None:
        """From now on what is seen and decided is written down."""
        self._recorder = recorder
        if self._actor:
            self._actor.planned = recorder.planned

    def alive(self) -> bool:
        return time.monotonic() - self._turned < _STALLED_S

    def ready(self) -> bool:
        """It judges, and has read its Node once: a rollout whose agents can't act stops at the first."""
        return self.snapshot is not None and self._restored

    def _turn(self) -> None:
        self._restore()
        now = time.monotonic()
        aside = self._actor.aside if self._actor else ""
        may = frozenset(name for name in self._sources.names if self._may_run(name, now, aside))
        history = self._memory.history
        self._sources.want(may, Known(history.boot_id, history.kernel_seq, frozenset(history.cards)))
        self._inform(aside)
        wait_s = self._turned + _TICK_S - now
        seen = self._sources.turn(min(wait_s, _REHEARSAL_S) if self._rehearsal.waits else wait_s)
        now = time.monotonic()
        seen = self._sifted(seen, now)
        if aside:
            seen = [o for o in seen if o.source not in HOLD_GPUS]
            seen += [
                Observation(time.time(), name, Signal.FAILED, value=Failure.ASIDE, raw=aside, seen=now)
                for name in self._sources.names
                if name in HOLD_GPUS
            ]
        if not seen and now - self._turned < _TICK_S:
            return
        self._judge(seen, now)
        self._turned = now

    def _sifted(self, seen: list[Observation], now: float) -> list[Observation]:
        """Without what a drill says, unless the Node bears that drill."""
        actor, rehearsal = self._actor, self._rehearsal
        if not (rehearsal.waits or any(one.drill for one in seen)):
            return seen
        before, looked = rehearsal.dropped, actor.look_began if actor else now
        seen = rehearsal.sift(seen, now, actor.orders().drill if actor else "", looked)
        if actor and rehearsal.asks(now):
            actor.look()
        if rehearsal.dropped > before == 0:  # once: whoever may write to the kernel log writes as often as they like
            self._tell("a drill's kernel record was dropped: this Node does not bear its nonce, or not any more")
        return seen

    def _may_run(self, name: str, now: float, aside: str) -> bool:
        """The kernel log waits for its stored position. NVML waits as well, a while: a reset may be under way."""
        if name in HOLD_GPUS and aside:
            return False
        if self._actor is None:
            return True
        if name == "kmsg":
            return self._restored
        return self._actor.started or now - self._began > _PATIENCE_S

    def _inform(self, aside: str) -> None:
        """The act thread waits until no process of ours holds a GPU, and names those of others."""
        if self._actor:
            self._actor.released = bool(aside) and self._sources.ended(HOLD_GPUS)
            self._actor.clients = clients(self._memory.history, time.monotonic(), self._config.policy.silent_s)

    def _holders(self) -> Holders | None:
        """Called by the act thread. Where it can't be asked nobody's GPUs are known: every GPU pod leaves."""
        try:
            found = self._sources.who_holds()
            self._unasked = ""
            return found
        except UnaskedError as error:
            if str(error) != self._unasked:
                self._tell("which pod holds which GPU is not known; a GPU's remedy moves all GPU pods", why=str(error))
            self._unasked = str(error)
            return None

    def _restore(self) -> None:
        """Once, when the Node was first read: the faults and the kernel position of our last life."""
        if self._restored or self._actor is None or not self._actor.started:
            return
        text, now = self._actor.stored_text, time.monotonic()
        self._memory = resumed(self._memory, restored(text, now), self._config.policy, self._actor.orders().labels)
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
                self._memory, seen, now, wall, self._config.policy, self._sources.names, orders
            )
        except Exception as error:  # noqa: BLE001 - a rule's bug must neither end the agent nor cure anything
            self._misjudged(before, error)
            return
        key = (
            verdict.status,
            verdict.remedy,
            tuple((f.finding.id, f.finding.severity) for f in verdict.faults),
            verdict.boot_id,
            bool(verdict.blind),
        )
        if self._recorder:  # before a plan is made of it: a replay reads the lines in this order
            self._recorder.judged(now, wall, seen, orders, verdict)
        if self._actor and self._restored:  # first of all: the taint waits for no log line
            self._actor.judged(verdict, key != self._key)
        if self._actor:
            self._actor.ask(set(self._memory.history.pods.values()))
        self._key = key
        self._tell_changes(before, verdict)
        self.snapshot = self._show(verdict, now)
        if self.judged:
            self.judged(verdict)

    def _misjudged(self, before: Verdict | None, error: Exception) -> None:
        """Keep the last good verdict, and say that it is the last."""
        why = f"judge: unexpected {type(error).__name__}; please report it"
        if self.snapshot and before and why not in before.blind:
            self._tell(why, error=repr(error), exc_info=True)
            status = Status.UNKNOWN if before.status is Status.HEALTHY else before.status
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
        failed = self._memory.history.failed.get(SECOND)
        why = failed.raw if failed else ""
        if why != self._second:
            self._second = why
            self._tell("the second witness can't see" if why else "the second witness sees", source=SECOND, why=why)
        if before is None or before.status is not verdict.status or before.blind != verdict.blind:
            self._tell("status", status=str(verdict.status), blind=list(verdict.blind))

    def _show(self, verdict: Verdict, now: float) -> Snapshot:
        history, silent_s = self._memory.history, self._config.policy.silent_s
        acted = view(self._actor, self._config.budget, self._restored) if self._actor else {}
        return Snapshot(
            node=self._node,
            mode=self._config.mode,
            verdict=verdict,
            readings={
                # What is lost or was not read lately has no value now, and must leave no stale series.
                pci: reading
                for pci, reading in history.readings.items()
                if pci not in history.lost and now - reading.seen <= silent_s
            },
            disagreements=tuple((pci, signal) for pci, signal, *_ in disagreements(history, silent_s)),
            xids={key: (tally.count, tally.last_at) for key, tally in history.tallies.items()},
            resets=frozenset(one.finding.id for one in wanted(verdict, self._config, self._actor.tried))
            if self._actor
            else frozenset(),
            sources=tuple(_view(one, verdict, history.failed.get(one.name), now) for one in self._sources.statuses),
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
        daemon.ready,
    )
    server.start()
    return server


def _view(status: SourceStatus, verdict: Verdict, failed: Observation | None, now: float) -> SourceView:
    blind = next((why for why in verdict.blind if why.startswith(f"{status.name}: ")), failed.raw if failed else "")
    return SourceView(
        name=status.name,
        up=status.running and status.last_seen is not None and not blind,
        age_s=None if status.last_seen is None else now - status.last_seen,
        starts=status.starts,
        garbage=status.garbage,
        pid=status.pid,
        trouble=(failed.raw if failed else "") or status.trouble or blind,  # its own words before its library's
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
