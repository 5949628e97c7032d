"""The only wiring: it starts the sources, judges what they say, passes verdicts to the act loop, and ends cleanly."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from agent.config.settings import Config
from agent.config.source_index import SECOND_WITNESS, SOURCES, Known, hold_gpus
from agent.diagnosis.gpu_processes import clients
from agent.diagnosis.judge import Memory, judge
from agent.diagnosis.resume import resumed
from agent.diagnosis.rules.disagreement import disagreements
from agent.diagnosis.seen import lately_s
from agent.model.fault import Fault, Reason, Severity, Status, Unseen, Verdict
from agent.model.observation import Failure, Observation, Signal
from agent.recording.recording import Recorder
from agent.remediation.idle_reset import wanted
from agent.remediation.stored import restored
from agent.runtime.absent_values import AbsentValues
from agent.runtime.actor import Actor, Tell
from agent.runtime.actor_view import view
from agent.runtime.backlog import Backlog
from agent.runtime.drill_marks import DrillMarks
from agent.runtime.exchange import Acted, Exchange
from agent.runtime.source_view import source_view
from agent.sources.process.supervisor import Sources
from agent.status.metrics import registry
from agent.status.server import Server
from agent.status.snapshot import Snapshot
from agent.status.state import state

_TICK_S = 1.0
_PATIENCE_S = 10.0  # for the first answer of the API server
_DRILL_MARKS_S = 0.05  # between looks at whether the Node was looked at
_STALLED_S = 30.0  # /healthz fails when the judge loop did not turn for so long
_ACT_STALLED_S = 300.0  # and when the act loop gave no sign for so long; its longest pause is a minute
_JUDGE = "judge"  # as /state names it among what is blind


class Daemon:
    """Judges in the calling thread; acting and HTTP have threads of their own."""

    def __init__(
        self,
        config: Config,
        node: str,
        actor: Actor | None,
        tell: Tell,
        sources: Sources,
        recorder: Recorder | None = None,
        act_stalled_s: float = _ACT_STALLED_S,
    ) -> None:
        """Without an ``actor`` it judges alone: nobody reads a Node, and nothing is written."""
        self._config, self._node, self._actor, self._tell, self._recorder = config, node, actor, tell, recorder
        self._exchange = actor.exchange if actor else Exchange()
        self._memory = Memory()
        self._sources, self._act_stalled_s = sources, act_stalled_s
        self._began = self._turned = time.monotonic()
        self._key: object = None
        self._restored = actor is None
        self.listener: Callable[[Observation], None] | None = None  # for a narrator
        self.judged: Callable[[Verdict], object] | None = None  # for one that waits for a verdict
        self._second = ""
        self._drill_marks, self._backlog, self._absent = DrillMarks(), Backlog(), AbsentValues(tell)
        if actor is None:
            self._backlog.join(None, self._began)
        self.snapshot: Snapshot | None = None

    def run(self, stop: threading.Event) -> None:
        """Until ``stop``. Nothing on the node changes because the agent ends."""
        if self._actor:
            self._actor.start()
        try:
            self._arrange(self._exchange.acted, time.monotonic())
            while not stop.is_set():
                self._turn()
        finally:
            if self._actor:
                self._actor.stop()
            self._sources.close()

    def alive(self) -> bool:
        """Whether both loops turn; if not, the kubelet starts the agent anew.

        That is safe while it acts too: it is a kill after some write, and the next life goes on with what the Node and
        the Leases say, the kernel log from the stored position on. An API server that is gone or hangs stalls nothing,
        for every request ends: what does is a bug, a thread that died, or a call of this machine that does not return.
        """
        acts = self._actor is None or self._actor.age_s < self._act_stalled_s
        return acts and time.monotonic() - self._turned < _STALLED_S

    def ready(self) -> bool:
        """Whether it judges, has read its Node once, and once had its mode's rights.

        A roll-out whose agents can't act stops at the first. A later refusal is told and makes no agent unready: a
        webhook that fails for a while must not.
        """
        able = self._actor is None or self._actor.able
        return self.snapshot is not None and self._restored and able

    def _turn(self) -> None:
        """Wait for the sources, then judge what they said by what the Node says, which is read once."""
        wait_s = self._turned + _TICK_S - time.monotonic()
        seen = self._sources.turn(min(wait_s, _DRILL_MARKS_S) if self._drill_marks.waits else wait_s)
        acted, now = self._exchange.acted, time.monotonic()
        news = self._restore(acted, now)
        seen = self._admitted([*news, *self._backlog.admitted(seen, now)], acted, now)
        if acted.keep_off:
            holders = hold_gpus(self._sources.names)
            seen = [o for o in seen if o.source not in holders]
            seen += [
                Observation(time.time(), name, Signal.FAILED, value=Failure.KEEP_OFF, raw=acted.keep_off, arrived=now)
                for name in self._sources.names
                if name in holders
            ]
        if seen or now - self._turned >= _TICK_S:
            self._judge(seen, acted, now)
            self._turned = now
        self._arrange(acted, now)

    def _arrange(self, acted: Acted, now: float) -> None:
        """Which sources may run, and from where those that begin go on; the act thread hears who holds the GPUs."""
        may = frozenset(name for name in self._sources.names if self._may_run(name, now, acted))
        history = self._memory.history
        self._sources.want(may, Known(history.boot_id, history.kernel_seq, frozenset(history.cards)))
        closed = acted.keep_off and self._sources.ended(hold_gpus(self._sources.names))
        self._exchange.judged = replace(
            self._exchange.judged,
            released=acted.look_began if closed else None,
            clients=clients(history, now, lately_s(history, self._config.policy.silent_s)),
        )

    def _admitted(self, seen: list[Observation], acted: Acted, now: float) -> list[Observation]:
        """Without what a drill says, unless the Node bears that drill."""
        drill_marks = self._drill_marks
        if not (drill_marks.waits or any(one.drill for one in seen)):
            return seen
        before, looked = drill_marks.dropped, acted.look_began if self._actor else now
        seen = drill_marks.admitted(seen, now, acted.orders(time.time()).drill, looked)
        if drill_marks.asks(now):
            self._exchange.news.set()
        if drill_marks.dropped > before == 0:  # once: whoever may write to the kernel log writes as often as they like
            self._tell("a drill's kernel record was dropped: this Node does not bear its nonce, or not any more")
        return seen

    def _may_run(self, name: str, now: float, acted: Acted) -> bool:
        """Whether it may run. Those that hold GPUs wait for the Node a while: a reset may be under way."""
        if not SOURCES[name].holds_gpus:
            return True
        return not acted.keep_off and (self._actor is None or acted.started or now - self._began > _PATIENCE_S)

    def _restore(self, acted: Acted, now: float) -> list[Observation]:
        """Take over the last life's faults, once the Node was read; the records that its kernel position makes news."""
        if self._restored or not acted.started:
            return []
        orders, stored = acted.orders(time.time()), restored(acted.stored, now)
        self._memory = resumed(self._memory, stored, self._config.policy, orders.labels, orders.aside)
        if self._recorder:
            self._recorder.restored(acted.stored, now, orders)
        if acted.stored is not None:
            self._tell("resumed", faults=sorted(self._memory.faults), kernel_seq=self._memory.history.kernel_seq)
        self._restored = True
        return self._backlog.join(stored, now)

    def _judge(self, seen: list[Observation], acted: Acted, now: float) -> None:
        if self.listener:
            for observation in seen:
                self.listener(observation)
        before, memory = self.snapshot.verdict if self.snapshot else None, self._memory
        try:
            wall = time.time()
            orders = acted.orders(wall)
            self._memory, verdict = judge(
                self._memory, seen, now, wall, self._config.policy, self._sources.names, orders
            )
        except Exception as error:  # noqa: BLE001 - a rule's bug must neither end the agent nor cure anything
            self._misjudged(before, error)
            return
        key = (
            verdict.status,
            verdict.remedy,
            tuple((f.finding.id, f.finding.severity, f.proved) for f in verdict.faults),
            verdict.boot_id,
            bool(verdict.blind),
        )
        if self._recorder:  # before a plan is made of it: a replay reads the lines in this order
            self._recorder.judged(now, wall, seen, orders, verdict)
        self._pass_on(verdict, changed=key != self._key)  # first of all: the taint waits for no log line
        self._key = key
        self._tell_changes(before, verdict)
        for fault in sorted(self._memory.dismissed - memory.dismissed):
            stands = "" if fault in memory.faults else " that does not stand"
            self._tell(f"a person dismissed a fault{stands}", fault=fault)
        self.snapshot = self._show(verdict, acted, now)
        if self.judged:
            self.judged(verdict)

    def _pass_on(self, verdict: Verdict, changed: bool) -> None:
        """To the act thread, which looks at once at what changed, and at whose a pod is that nobody knows."""
        before, pods = self._exchange.judged, frozenset(self._memory.history.pods.values())
        self._exchange.judged = replace(before, verdict=verdict if self._restored else None, pods=pods)
        if (changed and self._restored) or pods - before.pods:
            self._exchange.news.set()

    def _misjudged(self, before: Verdict | None, error: Exception) -> None:
        """Keep the last good verdict, and say that it is the last."""
        reason = Reason(Unseen.MISJUDGED, f"unexpected {type(error).__name__}; please report it")
        if self.snapshot and before and before.blind.get(_JUDGE) != reason:
            self._tell(reason.sentence(_JUDGE), level="error", error=repr(error), exc_info=True)
            status = Status.UNKNOWN if before.status is Status.HEALTHY else before.status
            verdict = replace(before, status=status, blind={**before.blind, _JUDGE: reason})
            self.snapshot = replace(self.snapshot, verdict=verdict)

    def _tell_changes(self, before: Verdict | None, verdict: Verdict) -> None:
        old = {f.finding.id: f for f in before.faults} if before else {}
        new = {f.finding.id: f for f in verdict.faults}
        for key in new.keys() - old.keys():
            bad = new[key].finding.severity > Severity.NOTICE
            self._tell("fault confirmed", level="warning" if bad else "info", **_facts(new[key]))
        for key in old.keys() - new.keys():
            self._tell("fault cleared", **_facts(old[key]))
        for key in new.keys() & old.keys():
            if new[key].proved and not old[key].proved:
                self._tell("cure proved, soaking", fault=key, soak_s=self._config.policy.soak_s)
        self._absent.look(self._memory.history)
        failed = self._memory.history.failed.get(SECOND_WITNESS)
        why = failed.raw if failed else ""
        if why != self._second:
            self._second = why
            event = "the second witness can't see" if why else "the second witness sees"
            self._tell(event, source=SECOND_WITNESS, why=why)
        if before is None or before.status is not verdict.status or before.blind != verdict.blind:
            self._tell("status", status=str(verdict.status), blind=list(verdict.blind_lines))

    def _show(self, verdict: Verdict, acted: Acted, now: float) -> Snapshot:
        history, silent_s = self._memory.history, self._config.policy.silent_s
        return Snapshot(
            node=self._node,
            mode=self._config.mode,
            verdict=verdict,
            readings={
                # What is lost or was not read lately has no value now, and must leave no stale series.
                pci: reading
                for pci, reading in history.readings.items()
                if pci not in history.lost and now - reading.arrived <= lately_s(history, silent_s)
            },
            disagreements=tuple((pci, signal) for pci, signal, *_ in disagreements(history, silent_s)),
            failed_reads=dict(self._absent.failed),
            xids={key: (tally.count, tally.last_at) for key, tally in history.tallies.items()},
            resets=frozenset(one.finding.id for one in wanted(verdict, self._config, acted.failed_resets))
            if self._actor
            else frozenset(),
            sources=tuple(source_view(one, verdict, history, now) for one in self._sources.statuses),
            act_age_s=self._actor.age_s if self._actor else None,
            **(view(acted, self._config, self._restored, verdict.boot_id) if self._actor else {}),
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


def _facts(fault: Fault) -> dict[str, str]:
    finding = fault.finding
    return {
        "fault": finding.id,
        "severity": finding.severity.name.lower(),
        "remedy": finding.remedy,
        "message": finding.message,
        "evidence": finding.evidence.raw,
    }
