"""The act loop: look, plan, do each step; a failure is recorded and the next round is the retry."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import replace

from agent.config.settings import Config, Mode
from agent.diagnosis.judge import Orders
from agent.model.describe import describe
from agent.model.errors import CredentialsError, RefusedError, UnreachableError
from agent.model.fault import Severity, Verdict
from agent.model.hands import Hands
from agent.model.steps import AskCheckpoint, Delete, Evict, Report, Step, Wait
from agent.model.world import Clients, Local, World
from agent.remediation.idle_reset import resettable, wanted
from agent.remediation.other_controllers import released, upgrading
from agent.remediation.plan import plan
from agent.remediation.records import Attempt
from agent.remediation.repair import resets
from agent.remediation.stored import kept
from agent.runtime.drill_marks import valid
from agent.runtime.pod_gpus import Holders, Holding, held

_BUSY_S, _IDLE_S, _LONGEST_PAUSE_S = 5.0, 60.0, 30.0
_QUEUED_S = 30.0  # for a permit: a whole fleet may wait for one at once, and for weeks
_STEP_BACK_S = 0.1  # at most, after another was quicker: a hundred that look again at once would meet again
_FIRST_WORDS_S = 15.0  # a source that hangs from the start must not keep the others' faults from being acted on
_MOST_ROUNDS = 20  # in one go: a plan that never comes to rest is a bug, not a reason to flood the API server
_CONFLICT, _BUSY, _BROKEN = 409, 429, 500
_MOST_WORKLOADS = 1024

Tell = Callable[..., None]


class Actor:
    """One thread that writes to the cluster. It reads the judge's verdict and keeps no lock with it."""

    def __init__(self, config: Config, connect: Callable[[], Hands], dry_run: bool, tell: Tell) -> None:
        self._config, self._connect, self._dry_run, self._tell = config, connect, dry_run, tell
        self._hands: Hands | None = None
        self._wake, self._stop = threading.Event(), threading.Event()
        self._verdict: Verdict | None = None
        self._gather_until = 0.0
        self.world: World | None = None  # as last read
        self.looked_at = 0.0  # when that was, Unix seconds
        self.look_began = 0.0  # and when it had begun, monotonic seconds
        self._began = time.monotonic()
        self._resets: dict[str, tuple[float, float]] = {}
        self.tried: Mapping[str, Attempt] = {}  # resets of idle GPUs that cured nothing, by their faults' ids
        self._returned: Mapping[str, int] = {}  # workload → how often it came back before this life
        self._workloads: dict[str, str] = {}  # pod UID → namespace/Kind/name
        self._asked: set[str] = set()
        self._answered: set[str] = set()
        self._queued = False  # nothing is left to do but to wait for a permit, or for another mode
        self.failures = 0  # rounds in a row that failed
        self.planned: Callable[[Verdict, World, Local, tuple[Step, ...]], None] | None = None  # for a recording
        self.holding = Holding()
        self.aside = ""  # why no process of ours may hold a GPU now
        self.released = False  # and that none does
        self.clients: Clients = {}
        self.stored_text: str | None = None  # what the Node held when it was first read
        self.started = False  # the Node was read once
        self.steps: tuple[str, ...] = ()
        self.waits: tuple[Wait, ...] = (Wait("the Node was not read yet"),)
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.look_s = 0.0

    def start(self) -> None:
        threading.Thread(target=self._loop, name="act", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()

    def orders(self) -> Orders:
        """What the Node says to the judge, as last read."""
        world = self.world
        if world is None:
            return Orders()
        # A dry run rehearses nothing: what is not written could not be seen to happen.
        drill = "" if self._dry_run else valid(world.drill, time.time())
        return Orders(world.labels, dict(self._workloads), world.dismissed, self._resets, drill)

    def look(self) -> None:
        """At the Node, at once."""
        self._wake.set()

    def ask(self, pods: Set[str]) -> None:
        """Whose these pods are is asked of the cluster once, while they are still there to be asked for."""
        unknown = pods - self._workloads.keys() - self._asked
        if unknown:
            self._asked |= unknown
            self._wake.set()

    def requests(self) -> dict[str, int]:
        """Requests sent to the API server so far, by HTTP method."""
        return dict(self._hands.requests) if self._hands else {}

    def checkpoints(self) -> tuple[dict[str, int], float]:
        """How the evicted pods' checkpoints ended, and the seconds that were waited for them."""
        outcomes, waited_s = self._hands.checkpoints if self._hands else ({}, 0.0)
        return dict(outcomes), waited_s

    def judged(self, verdict: Verdict, changed: bool) -> None:
        """The judge's latest word; a changed one is acted on at once."""
        self._verdict = verdict
        if changed:
            self._wake.set()

    def _loop(self) -> None:
        while not self._stop.is_set():
            pause_s = self._round()
            # While the server is down the growing pause is not cut short by news.
            (self._stop if self.failures else self._wake).wait(pause_s)
            self._wake.clear()

    def _round(self) -> float:
        """Look, plan and do until nothing is left to do; seconds until the next round."""
        try:
            for _ in range(_MOST_ROUNDS):
                if not self._once():
                    break
            self._learn()
            self.failures = 0
        except (CredentialsError, RefusedError, UnreachableError) as error:
            self.failures += 1
            self._waiting((Wait(str(error)),))
            longest = min(_LONGEST_PAUSE_S, 2.0 ** min(self.failures - 1, 6))
            return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
        except Exception as error:  # noqa: BLE001 - a bug must not end the thread that untaints
            self.failed["bug"] += 1
            self._tell("unexpected error while acting; please report it", error=repr(error), exc_info=True)
            return _BUSY_S
        remaining_s = self._gather_until - time.monotonic()
        if remaining_s > 0:
            return min(_BUSY_S, remaining_s + 0.05)
        if self._queued:
            return _QUEUED_S * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, no secret
        return _BUSY_S if self.waits or self._standing() else _IDLE_S

    def _learn(self) -> None:
        """Whose the pods on the GPUs are, once everything else is done: no act waits for it."""
        asked = self._asked - self._answered
        if not asked or not self._hands:
            return
        self._answered |= asked  # a pod that is gone by now is not asked for again
        try:
            found = self._hands.workloads()
        except RefusedError as refused:
            self._tell("the workloads of GPU processes are not known", why=str(refused))
            return
        self._workloads = dict(list({**self._workloads, **found}.items())[-_MOST_WORKLOADS:])
        if len(self._answered) > _MOST_WORKLOADS:  # years of pods; what still runs is asked for again
            self._asked, self._answered = set(), set()

    def _standing(self) -> bool:
        return self.world is not None and self.world.withdrawn

    def _wants_permit(self, verdict: Verdict) -> bool:
        least = Severity.DEGRADED if self._config.policy.degraded_effect == "NoSchedule" else Severity.FATAL
        bad = any(fault.finding.severity >= least for fault in verdict.faults)
        idle = any(not self.clients.get(fault.uuid) for fault in wanted(verdict, self._config, self.tried))
        return (bad or idle) and self._config.mode is not Mode.OBSERVE

    def _holders(self, verdict: Verdict, world: World) -> Holders | None:
        """Asked for only while it decides which pods leave, or whether a GPU is idle."""
        leave = verdict.withdraw and any(pod.gpu and not pod.finished for pod in world.pods or ())
        idle = world.pods is not None and wanted(verdict, self._config, self.tried)
        return self.holding.now(bool(self.aside)) if leave or idle else None

    def _once(self) -> bool:
        """One round; whether it changed something and another look may find more to do."""
        hands = self._hands = self._hands or self._connect()
        verdict = self._verdict
        self._queued = False
        began = time.monotonic()
        wants = verdict is not None and self._wants_permit(verdict)
        closely = not self.started or self._standing() or wants
        try:
            world = self.world = hands.look(closely)
        except (RefusedError, UnreachableError):
            self.failed["look"] += 1
            raise
        look_s, self.looked_at, self.look_began = time.monotonic() - began, time.time(), began
        self._heed(world)
        self._restore(world)
        unheard = verdict is None or any(why.endswith("not heard yet") for why in verdict.blind)
        if verdict is None or (unheard and time.monotonic() - self._began < _FIRST_WORDS_S):
            self._waiting((Wait("every source must be heard once before anything is concluded"),))
            return False
        if verdict.withdraw:
            returns = dict(Counter(self._returned) + Counter(world.returns))
            world = replace(world, returns=returns)
        holders = self._holders(verdict, world)
        world = self.world = held(world, holders)
        up_s = int(time.monotonic() - self._began)
        local = Local(self._gathered(verdict), up_s, bool(self.aside) and self.released, self.clients, holders)
        steps = plan(verdict, world, self._config, local)
        if self.planned:
            self.planned(verdict, world, local, steps)
        waits = tuple(step for step in steps if isinstance(step, Wait))
        if self._dry_run:
            would = tuple(Wait(f"dry run: would {describe(s)}") for s in steps if not isinstance(s, Wait))
            self._waiting((*would, *waits))
            return False
        done, refused = self._do_all(hands, steps)
        if done:
            self.look_s = look_s
            self.holding.forget()
        self._waiting((*waits, *refused))
        waits_for = wants or verdict.withdraw or (waits and resettable(verdict.faults))
        self._queued = bool(waits_for) and not (done or refused or self._standing())
        return done

    def _do_all(self, hands: Hands, steps: tuple[Step, ...]) -> tuple[bool, tuple[Wait, ...]]:
        """Each step in order; the first that is refused ends the round."""
        done: list[Step] = []
        try:
            return self._do_each(hands, steps, done)
        finally:  # told after the writes, not between them: the taint waits for no log line
            for step in done:
                if not isinstance(step, Report):
                    self._tell("done", step=describe(step))
            if done:
                self.steps = tuple(describe(step) for step in done)

    def _do_each(self, hands: Hands, steps: tuple[Step, ...], done: list[Step]) -> tuple[bool, tuple[Wait, ...]]:
        again = False
        for step in steps:
            if isinstance(step, Wait):
                continue
            kind = type(step).__name__.lower()
            try:
                hands.do(step)
            except UnreachableError:
                self.failed[kind] += 1
                raise
            except RefusedError as refused:
                self.failed[kind] += 1
                if refused.status == _CONFLICT:
                    self._stop.wait(random.uniform(0.0, _STEP_BACK_S))  # noqa: S311 - jitter, no secret
                    return True, ()  # somebody else was quicker: look again
                said = f"could not {describe(step)}: {refused}"
                if refused.status == _BUSY or refused.status >= _BROKEN:  # the server's trouble, and not the step's
                    raise RefusedError(refused.status, said) from refused
                return False, (Wait(said),)
            self.done[kind] += 1
            done.append(step)
            # An eviction's effect is not there at once, and a refused one is asked again in a while.
            again = again or not isinstance(step, AskCheckpoint | Evict | Delete)
        return again, ()

    def _gathered(self, verdict: Verdict) -> bool:
        began = [f.began for f in verdict.fatal]
        self._gather_until = min(began) + self._config.drain.gather_s if began else 0.0
        return time.monotonic() >= self._gather_until

    def _heed(self, world: World) -> None:
        """What the Node's labels and our own records on it say to the sources and to the judge."""
        records = kept(world.stored)
        if not self.started or not records.drain:  # what the agent's last life counted in this drain
            self._returned = records.drain.returns if records.drain else {}
        self._resets, self.tried = resets(records), records.idle.tried
        acts = self._config.mode is Mode.EVICT and not self._dry_run
        waited = time.monotonic() - self._began >= self._config.repair.prove_s
        heard = self._verdict.heard if self._verdict else frozenset()
        self.aside = released(world.labels, records, None if waited else heard) if acts else upgrading(world.labels)

    def _restore(self, world: World) -> None:
        if self.started:
            return
        # From now on it looks with what was stored; the time before counts for no proof.
        self.stored_text, self.started, self._began = world.stored, True, time.monotonic()

    def _waiting(self, waits: tuple[Wait, ...]) -> None:
        told, self.waits = self.waits, waits
        for wait in waits:
            if wait not in told:
                self._tell("waiting", why=wait.why)
