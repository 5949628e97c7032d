"""The act loop's thread: it drives one cycle after the other, with pauses between them, and tells what it did."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from agent.config.settings import Config
from agent.model.cluster_client import ClusterClient
from agent.model.describe import describe, kind
from agent.model.errors import CredentialsError, RefusedError, UnreachableError
from agent.model.steps import Delete, Evict, On, Report, Step, TakePermit, Wait
from agent.recording.recording import Recorder
from agent.runtime.cycle import Cycle, Planned, Turn, turn
from agent.runtime.exchange import Exchange
from agent.runtime.node_watch import NodeWatch
from agent.runtime.patience import LONGEST_S, pause_s
from agent.runtime.pod_gpus import Ask, PodGpus
from agent.runtime.told_once import ToldOnce

_BUSY_S, _IDLE_S, _LONGEST_PAUSE_S = 5.0, 60.0, 30.0
_TELLS_S = 1.0  # after an eviction: its pod is told why while it is still there
_TRIAL_S = 30.0  # after a refusal the next trial comes no sooner
_STEP_BACK_S = 0.1  # at most, after another was quicker: a hundred that look again at once would meet again
_MOST_ROUNDS = 20  # in one go: a plan that never comes to rest is a bug, not a reason to flood the API server
_MOST_WORKLOADS = 1024

Tell = Callable[..., None]


class Actor:
    """One thread that writes to the cluster. What it knows of the judge, and tells it, is in the exchange."""

    def __init__(
        self,
        config: Config,
        connect: Callable[[], ClusterClient],
        dry_run: bool,
        tell: Tell,
        ask: Ask | None = None,
        recorder: Recorder | None = None,
        life: str = "",
        how: Callable[[], Mapping[str, str]] | None = None,
    ) -> None:
        """``ask``: the kubelet, which pod holds which GPU, and ``how`` its pods are; UnaskedError.

        ``life``: a name of this one among the agents of the node; empty: it is the only one.
        """
        self._connect, self._tell, self._recorder = connect, tell, recorder
        self._client: ClusterClient | None = None
        self._stop = threading.Event()
        self._pod_gpus = PodGpus(ask, tell, how=how)
        self._watch = NodeWatch(lambda: self._client, lambda: self.exchange.news.set(), tell)
        self._cycle = Cycle(config, time.monotonic(), dry_run, life)
        self._last_trial = float("-inf")
        self._asked: frozenset[str] = frozenset()  # pods of which was asked whose they are
        self._done: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._turned = time.monotonic()
        self._told_once = ToldOnce()
        self._unrest: tuple[Wait, ...] = ()  # somebody undoes what is written
        self._unoffered = ""  # why what DRA drivers offer is not known, as last told
        self.exchange = Exchange()
        self.did: Callable[[Step], object] | None = None  # for a narrator

    def start(self) -> None:
        threading.Thread(target=self._loop, name="act", daemon=True).start()
        self._watch.start()

    def stop(self) -> None:
        self._stop.set()
        self._watch.stop()
        self.exchange.news.set()

    @property
    def able(self) -> bool:
        """Whether the last trial found every right that its mode needs; a dry run needs none."""
        return self._cycle.dry_run or self.exchange.acted.lacks == ()

    @property
    def age_s(self) -> float:
        """Seconds since it began or ended a round, or asked the API server for something; the judging thread reads it.

        Its longest pause is a minute, a request takes 10 s and the kubelet's answer 15 s: more is no loop that turns.
        """
        return time.monotonic() - max(self._turned, self._client.asked_at if self._client else 0.0)

    def _loop(self) -> None:
        while not self._stop.is_set():
            pause_s = self.round()
            self._turned = time.monotonic()
            # While the server is down the growing pause is not cut short by news.
            (self._stop if self.exchange.acted.failures else self.exchange.news).wait(pause_s)
            self.exchange.news.clear()

    def round(self) -> float:
        """Look, plan and do until nothing is left to do; seconds until the next round."""
        held: tuple[Wait, ...] = ()
        try:
            for _ in range(_MOST_ROUNDS):
                last = self._turn()
                if last.trouble:
                    held = self._held()
                    raise last.trouble
                if not (last.again or last.cut):
                    break
            self._rests(last)
            self._learn()
            self._trial()
            self._show(failures=0)
        except (CredentialsError, RefusedError, UnreachableError) as error:
            failures = self.exchange.acted.failures + 1
            self._show((Wait(str(error)), *held), failures=failures)
            longest = min(_LONGEST_PAUSE_S, 2.0 ** min(failures - 1, 6))
            asked_s = min(error.wait_s, _LONGEST_PAUSE_S) if isinstance(error, RefusedError) else 0.0
            return asked_s + longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret
        except Exception as error:  # noqa: BLE001 - a bug must not end the thread that untaints
            self._failed["bug"] += 1
            self._show((Wait(f"unexpected {type(error).__name__} while acting; please report it"),))
            self._tell(
                "unexpected error while acting; please report it", level="error", error=repr(error), exc_info=True
            )
            return _BUSY_S
        if any(isinstance(step, Evict | Delete) for step in last.done):
            return _TELLS_S
        if last.gathers_s > 0 and last.cycle.standing:
            return min(_BUSY_S, last.gathers_s + 0.05)
        if last.put_off_s:
            return min(last.put_off_s, LONGEST_S)
        if last.queued or self._unrest:
            longest_s = pause_s(last.cycle.world, last.cycle.standing, last.waits)
            return longest_s * random.uniform(0.75, 1.0)  # noqa: S311 - jitter, no secret
        if last.waits or last.cycle.standing:
            return _BUSY_S
        return _TRIAL_S if self.exchange.acted.lacks else _IDLE_S

    def _turn(self) -> Turn:
        self._turned = time.monotonic()
        client = self._client = self._client or self._connect()
        done: list[Step] = []
        try:
            one = turn(
                self._cycle,
                self.exchange.judged,
                client,
                self._pod_gpus.now,
                looked=self._looked,
                decided=self._decided,
                did=done.append,
            )
        finally:
            self._did(done)
        self._failed.update(one.failed)
        if one.again:
            self._pod_gpus.forget()
            self.exchange.acted = replace(self.exchange.acted, look_s=one.look_s)
        self._show(None if one.trouble else (*one.waits, *self._unrest))
        if one.overtaken:
            self._stop.wait(random.uniform(0.0, _STEP_BACK_S))  # noqa: S311 - jitter, no secret
        return one

    def _held(self) -> tuple[Wait, ...]:
        """Who is on the bad GPUs, while nobody can be asked to leave them."""
        verdict = self.exchange.judged.verdict
        bad = frozenset(fault.uuid for fault in verdict.fatal) - {""} if verdict else frozenset[str]()
        pods = self._pod_gpus.on(bad, bool(self._cycle.keep_off))
        return (Wait(f"pods on the bad GPUs, by their kubelet: {', '.join(pods)}"),) if pods else ()

    def _rests(self, last: Turn) -> None:
        """Whether nothing was left to write; whoever undoes it each time, a webhook say, is told of and not raced."""
        what = ", ".join(sorted({*map(kind, last.done), *last.failed}))
        why = f"after {_MOST_ROUNDS} looks in a row something is still to be written ({what}): somebody undoes it"
        first = f", or writes first each time{f' ({last.overtaken})' if last.overtaken else ''}"
        unrest = (Wait(why + first, On.REFUSED),) if last.again else ()
        if unrest != self._unrest:
            self._unrest = unrest
            self._show((*last.waits, *unrest))

    def _did(self, done: list[Step]) -> None:
        """Told after the writes, not between them: the taint waits for no log line."""
        self._done.update(kind(step) for step in done)
        for step in done:
            usual = isinstance(step, Report) or (isinstance(step, TakePermit) and step.confirms)
            self._tell("done", level="debug" if usual else "info", step=describe(step))
            if self.did and not isinstance(step, Report):
                self.did(step)
        if done:
            self.exchange.acted = replace(self.exchange.acted, steps=tuple(describe(step) for step in done))

    def _looked(self, cycle: Cycle) -> None:
        """Kept, and told to the judge, before anything is done about it."""
        self._cycle = cycle
        self.exchange.acted = replace(
            self.exchange.acted,
            started=cycle.started,
            stored=cycle.stored,
            world=cycle.world,
            looked_at=cycle.looked_at,
            look_began=cycle.look_began,
            # A dry run runs no drill: what is not written could not be seen to happen.
            drill=cycle.world.drill if cycle.world and not cycle.dry_run else None,
            keep_off=cycle.keep_off,
            aside=cycle.aside,
            resets=cycle.resets,
            failed_resets=cycle.failed_resets,
        )
        trouble = cycle.world.offer.trouble if cycle.world else ""
        if trouble and trouble != self._unoffered:
            self._tell("the node's ResourceSlices can't be read: what DRA drivers offer is not known", why=trouble)
        self._unoffered = trouble

    def _decided(self, one: Planned) -> None:
        self.exchange.acted = replace(self.exchange.acted, treatment=one.plan.treatment)
        if self._recorder:
            self._recorder.planned(one.verdict, one.world, one.local, one.plan.steps)

    def _show(self, waits: tuple[Wait, ...] | None = None, failures: int | None = None) -> None:
        """What is waited for, where it is said anew, and the counts."""
        acted, client = self.exchange.acted, self._client
        checkpoints, waited_s = client.checkpoints if client else ({}, 0.0)
        self.exchange.acted = replace(
            acted,
            waits=acted.waits if waits is None else waits,
            failures=acted.failures if failures is None else failures,
            done=dict(self._done),
            failed=dict(self._failed),
            requests=dict(client.requests) if client else {},
            checkpoints=dict(checkpoints),
            checkpoint_wait_s=waited_s,
        )
        for wait in self._told_once.news(waits or ()):
            self._tell("waiting", why=wait.why)

    def _trial(self) -> None:
        """Ask whether the mode's rights are there, after everything else; once they all were, no more."""
        lacks, now = self.exchange.acted.lacks, time.monotonic()
        if lacks == () or self._cycle.dry_run or not self._client or (lacks and now - self._last_trial < _TRIAL_S):
            return
        self._last_trial = now
        found = self._client.lacks(lambda: not self.exchange.news.is_set())
        if found is None:
            return
        self.exchange.acted = replace(self.exchange.acted, lacks=found)
        for wait in self._told_once.news(found):
            self._tell("refused", level="warning", why=wait.why)

    def _learn(self) -> None:
        """Whose the pods on the GPUs are, once everything else is done: no act waits for it."""
        known = self.exchange.acted.workloads
        unknown = self.exchange.judged.pods - known.keys() - self._asked
        if not unknown or not self._client:
            return
        self._asked |= unknown  # a pod that is gone by now is not asked for again
        try:
            found = self._client.workloads()
        except RefusedError as refused:
            self._tell("the workloads of GPU processes are not known", level="warning", why=str(refused))
            return
        workloads = dict(list({**known, **found}.items())[-_MOST_WORKLOADS:])
        self.exchange.acted = replace(self.exchange.acted, workloads=workloads)
        if len(self._asked) > _MOST_WORKLOADS:  # years of pods; what still runs is asked for again
            self._asked = frozenset()
