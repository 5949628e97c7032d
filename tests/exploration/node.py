"""A node of the pool: its machine and one agent, with their own two clocks; a second agent is a copy that shares the
machine."""

from __future__ import annotations

import copy
from random import Random
from typing import TYPE_CHECKING, Any

from agent.config.settings import Config
from agent.model.errors import RefusedError, UnreachableError
from agent.model.fault import Severity
from agent.model.names import GPUS_ANNOTATION, HARD_TAINT
from agent.model.steps import On
from agent.remediation.taints import LEFT_FREE
from agent.runtime.cycle import Turn
from tests.exploration.wire import LATEST_S
from tests.life import POLL_S, Killed, Life, remedy_of
from tests.observe import GPU, OTHER, START

if TYPE_CHECKING:
    from tests.exploration.fleet import Fleet

FATAL = (95, 79, 74)  # Xids that a reset ends, a reboot, another card
_SILENT_ROUNDS, _MOST_TURNS = 3, 18
_RACE_S = 120.0  # what somebody else did to the machine so lately, an agent need not know yet


class Node(Life):
    """``now`` is its monotonic clock; its wall clock is off by ``skew`` seconds."""

    __hash__ = object.__hash__

    def __init__(self, fleet: Fleet, name: str, config: Config) -> None:
        self.fleet, self.chance = fleet, fleet.chance
        self.ahead, self.skew = fleet.chance.uniform(0, 1e6), 0.0
        self.ears = Random(name)  # how its watch on the Node fares; chance of its own, as it decides nothing of others'
        self.up = True  # the machine and its kubelet
        self.alive = True  # its agent
        self.busy = False  # within a round
        self.asleep = False  # and its clock stands still
        self.stands = False  # its kubelet does: no pod begins or ends, and nobody is told of one
        self.kubelet_due = 0.0  # when it looks next, by the fleet's time
        self.due = 0.0  # when its agent's next round is, by the fleet's time
        self.failures, self.silent, self.turns, self.process, self.second = 0, 0, 0, 0, False
        self.under: dict[str, float] = {}  # GPU → when its last reset began
        self.card = self.booted = self.pardoned = 0.0  # since when its cards are in; until when a person dismissed all
        linked = fleet.chance.random() < 0.2
        super().__init__(0, name=name, config=config, cluster=fleet.server, now=fleet.now + self.ahead, linked=linked)

    def __eq__(self, other: object) -> bool:
        return self is other

    def _settles(self) -> None:
        self.fleet.adds(self.name)

    def _begin(self) -> None:
        super()._begin()
        self.process = self.fleet.next_process()
        self.failures, self.silent = 0, 0
        self.uses = self.config
        self.fleet.in_force[self.process] = (self.config.budget, float("inf"))

    def twin(self) -> Node:
        """A second agent on this machine."""
        other = copy.copy(self)
        other.second = True
        other._begin()
        return other

    def _wall(self) -> float:
        return START + self.now - self.ahead + self.skew

    def dies(self) -> None:
        """Its agent does."""
        self.alive = False
        self.fleet.ends(self.process)

    def rises(self) -> None:
        if not self.alive:
            self._begin()
            self.alive, self.due = True, self.fleet.now

    def reboots(self) -> None:
        super().reboots()
        self.booted, self.stands = self.now, False
        self.fleet.untwin(self.name)

    def another_card(self) -> None:
        """By a person's hand, in each slot: for that the machine is switched off."""
        self.uuids = {pci: f"GPU-{pci}-{self.fleet.next_process()}" for pci in (GPU, OTHER)}
        self.card = self.now
        self.reboots()

    @property
    def raw(self) -> dict[str, Any] | None:
        return self.cluster._objects.get(("nodes", "", self.name))

    @property
    def bad(self) -> set[str]:
        """GPUs that nothing has cured, and that nobody calls well."""
        return {pci for *_, at, pci, code in self.log if code in FATAL and at >= max(self.new[pci], self.pardoned)}

    def was_bad(self, within_s: float = _RACE_S) -> bool:
        """Now, or so lately that its agent need not know. What a GPU says in its reset may be read after that."""
        reset = {pci: min(at, self.under.get(pci, at)) for pci, at in self.new.items()}
        cured = {95: reset, 79: dict.fromkeys(self.new, self.booted), 74: dict.fromkeys(self.new, self.card)}
        return any(
            at >= cured[code][pci] or cured[code][pci] >= self.now - within_s
            for *_, at, pci, code in self.log
            if code in FATAL
        )

    @property
    def proved(self) -> bool:
        """Whether its agent knows that all is cured."""
        return all(one.proved for one in self.memory.faults.values() if one.finding.severity is Severity.FATAL)

    def _request(self, method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        answer = self.fleet.wire.ask(self, method, path, *rest, **more)
        if method != "GET" and self.chance.random() < self.fleet.kills:
            raise Killed
        return answer

    def tick(self) -> None:
        """One round, and when the next one is."""
        if not self.fleet.begun:
            return
        if not (self.up and self.alive):
            self.due = self.fleet.now + 30
            return
        self.busy, self.waits, self.turns = True, (), 0
        try:
            self._holds()
            self._hears()
            self._agent()
            self.failures = 0
        except Killed:
            self.dies()
            self.fleet.later(self.chance.choice((0, 5, 60, 400)), self.rises)
        except (RefusedError, UnreachableError) as error:
            self.waits, self.failures = (str(error),), self.failures + 1
        finally:
            self.busy = False
        self.due = self.fleet.now + self._pause_s()

    def kubelet(self) -> None:
        """Its round, whatever its agent does."""
        if self.up and self.raw and not self.asleep and self.kubelet_due <= self.fleet.now:
            self.kubelet_due = self.fleet.now + POLL_S
            self._machine()

    def _machine(self) -> None:
        if not self.stands:
            return super()._machine()
        for job in self._jobs():  # what runs goes on
            uid = job["metadata"]["uid"]
            if uid in self.began and self.now - self.began[uid] >= 2 * POLL_S:
                self._acts_once(uid, job["metadata"]["name"], good=True)
        return None

    def _acts(self, remedy: str, good: bool) -> None:
        super()._acts(remedy, good)
        if remedy == "replace_node" and good:
            self.another_card()

    def _pause_s(self) -> float:
        """As the act loop's thread has it, but coarser where nothing is decided by it."""
        if self.failures:
            return float(min(30, 2**self.failures))
        if self.waits or self.cycle.standing:
            return self.chance.choice((5.0, 10.0, 20.0, 30.0))
        return 60.0 if self.bad == set() else 10.0

    def _hears(self) -> None:
        """By the watch: how the Node is, nothing new from a server that lags, or that it broke off."""
        luck, raw = self.ears.random(), self.raw
        version = raw["metadata"]["resourceVersion"] if raw and luck < 0.7 else ""
        self.client.heard(None if 0.7 <= luck < 0.9 else version)

    def _holds(self) -> None:
        """Who holds the GPUs: PodResources can't be asked now and then."""
        held = [one for one in self._pods() if _gpu(one)]
        gpus = {one["metadata"]["uid"]: (GPU, OTHER)[len(one["metadata"]["name"]) % 2] for one in held}
        self.resources = {
            f"{one['metadata']['namespace']}/{one['metadata']['name']}": (self.uuids[gpus[one["metadata"]["uid"]]],)
            for one in held
        }
        if self.chance.random() < 0.02:
            self.resources = None
        self.clients = {}
        for number, one in enumerate(held):
            uid = one["metadata"]["uid"]
            self.clients.setdefault(self.uuids[gpus[uid]], {})[str(number)] = uid

    def _pods(self) -> list[dict[str, Any]]:
        """Of workloads."""
        pods = (one for one in self.fleet.server.all("pods") if one["spec"]["nodeName"] == self.name)
        return [one for one in pods if (one["metadata"].get("labels") or {}).get("work")]

    def _turned(self, last: Turn) -> None:
        fleet, verdict = self.fleet, last.planned.verdict if last.planned else None
        fleet.rounds += 1
        mute = verdict is not None and verdict.fatal and not (last.waits or last.done or last.trouble)
        self.silent = self.silent + 1 if mute else 0
        faults = [fault.finding.id for fault in verdict.faults] if verdict else []
        fleet.promises.keep("voice", self.silent < _SILENT_ROUNDS, f"{self.name} stands still with {faults}")
        self.turns += 1
        fleet.promises.keep(
            "voice", self.turns < _MOST_TURNS, f"{self.name} comes to no rest: {last.done} {last.waits}"
        )
        if any(wait.on is On.PERMIT and " (draining permits," in wait.why for wait in last.waits):
            fleet.wire.watch.draining(self)
        idle = last.planned is not None and last.planned.plan.treatment is not None and last.planned.plan.treatment.idle
        fleet.waits.said(self, last.waits, LEFT_FREE if idle else 0)

    def _starts(self, name: str, job: dict[str, Any]) -> None:
        remedy = remedy_of(name)
        template = job["spec"]["template"]
        gpus = set(template["metadata"]["annotations"][GPUS_ANNOTATION].split(","))
        self._once(template["spec"]["nodeName"] == self.name, f"Job {name} is another node's")
        tainted = any(one["key"] == HARD_TAINT for one in self.node()["spec"].get("taints") or ())
        self._once(tainted or self.fleet.wire.watch.helped(self.name), f"Job {name} runs on a node in service")
        self._holds()
        if remedy != "check":
            before = self.fleet.wire.watch.asked[name] - _RACE_S  # what tolerates our taint comes at any time
            moves = [one for one in self._pods() if remedy == "reset_gpu" or not _daemon(one)]
            uids = [one["metadata"]["uid"] for one in moves]
            there = {uid for uid in uids if self.fleet.server.made[uid] < before}
            users = {one for gpu in gpus for one in (self.clients.get(gpu) or {}).values()}
            under = there & users if remedy == "reset_gpu" else there
            self._once(not under, f"Job {name} begins under {under}")
        if remedy == "reset_gpu":
            self.reset.append(",".join(sorted(gpus)))
        if remedy != "check":
            lately = self.was_bad(LATEST_S + _RACE_S)  # what was asked for before a cure may still arrive
            self._once(lately or self.pending, f"Job {name} repairs what is well")
            self.repairs.append(remedy)
        if remedy == "reset_gpu":
            self.under |= {pci: self.now for pci, uuid in self.uuids.items() if uuid in gpus}

    def _once(self, so: object, said: str) -> None:
        self.fleet.promises.keep("once", so, f"{self.name}: {said}")


def _daemon(pod: dict[str, Any]) -> bool:
    return any(one["kind"] == "DaemonSet" for one in pod["metadata"]["ownerReferences"])


def _gpu(pod: dict[str, Any]) -> bool:
    return bool(pod["spec"]["containers"][0]["resources"]["limits"])
