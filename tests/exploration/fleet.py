"""A pool of nodes with their agents, along one made-up time: trouble comes and goes, then all of it ends."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random

from agent.config.settings import Budget, Config
from agent.model.names import STATE_LABEL
from agent.model.ownership import OPERAND_ON, OPERANDS
from tests.exploration.neighbours import Trouble
from tests.exploration.node import Node
from tests.exploration.promises import Promises
from tests.exploration.server import Manner, Server
from tests.exploration.trouble import SELECTORS, TROUBLES, helps
from tests.exploration.waits import Waits
from tests.exploration.watch import own_label, withdraws
from tests.exploration.wire import Wire
from tests.life import TEMPLATES, templates
from tests.observe import START

REST_S = 3 * 3600.0  # by when the last of a pool that was all ill is back: one drains at a time
_DEEPEST = 2  # rounds within rounds
_MANNERS = (
    Manner(),
    Manner(grace_s=300, ends_s=200),
    Manner(owner=""),
    Manner(annotations=(("gpu-health-agent/do-not-evict", "true"),)),
    Manner(annotations=(("gpu-health-agent/checkpoint", "annotation"),)),
    Manner(annotations=(("gpu-health-agent/checkpoint", "sigterm"),), grace_s=120, ends_s=100),
    Manner(tolerates=True),
    Manner(gpu=False),
    Manner(owner="DaemonSet", tolerates=True),
    Manner(
        annotations=(
            ("gpu-health-agent/checkpoint", "http:99999/no"),
            ("gpu-health-agent/checkpoint-timeout-s", "soon"),
        )
    ),
)


class Fleet:
    """One schedule, all of it from one seed."""

    def __init__(self, seed: int, kinds: tuple[str, ...], seconds: float = 2400.0) -> None:
        """``kinds`` of trouble, for so many ``seconds``."""
        self.seconds, self.chance = seconds, Random(seed)
        self.now, self.rounds, self.writes, self.begun, self.depth = 0.0, 0, 0, False, 0
        self.promises = Promises()
        self.server = Server(self.chance, lambda: self.now)
        self.in_force: dict[int, tuple[Budget, float]] = {}  # process → its budget, and until when it lived
        self.kills, self.outlives = 0.0, False  # chance of dying after a write; whether late requests outlive that
        self.stalls_s = 0.0  # for how long an agent may stand still in mid-round
        self.sleeps = False  # with its machine, whose monotonic clock stands still
        self.deadline_s = 120.0
        self.told: list[str] = []  # what came, for whoever reads a schedule that failed
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self.wire = Wire(self)
        self.waits = Waits(self)
        templates(self.server)
        self.config = self._config()
        self.kinds = kinds
        self.names = [f"n{number}" for number in range(self.chance.randint(3, 8))]
        self.nodes = [Node(self, name, self.config) for name in self.names]
        self.twins: list[Node] = []
        for namespace in ("research", "web"):
            for number in range(self.chance.randint(1, len(self.nodes))):
                self.server.manners[f"{namespace}/w{number}"] = self.chance.choice(_MANNERS)
                self.server.pod(namespace, f"w{number}", self.chance.choice(self.names))
        self.begun = True

    def _config(self) -> Config:
        chance = self.chance
        deadlines = dict.fromkeys(("contact_support", "reset_gpu", "reboot_node", "replace_node"), self.deadline_s)
        return Config.model_validate(
            {
                "mode": "evict",
                "policy": {"soak_s": 20, "relapses": 1000, "silent_s": 120},  # a node at rest is judged once a minute
                "recurrence": {"first_hold_s": 15, "hold_s": 30, "most_hold_s": 60, "watch_s": 120, "replace_after": 0},
                "budget": {
                    "pool_selector": SELECTORS[0],
                    "max_withdrawn": chance.choice((1, 2, 3, "40%")),
                    "max_draining": chance.choice((1, 1, 2)),
                    "per_hour": chance.choice((0, 0, 8)),
                },
                "drain": {
                    "deadline_s": deadlines,
                    "checkpoint_s": 60,
                    "on_deadline": chance.choice(("wait", "delete")),
                    "eviction": chance.choice(("api", "ask_then_delete")),
                },
                "repair": {**TEMPLATES, "pause_s": 10, "prove_s": 60, "reset_when_idle": chance.random() < 0.3},
            }
        )

    def explore(self) -> None:
        """Trouble for a while, then none: BrokenError if a promise was not kept."""
        troubles: list[tuple[float, str, Trouble]] = []
        while self.now < self.seconds:
            if self.chance.random() < 0.1:
                kind = "fault" if self.chance.random() < 0.3 else self.chance.choice(self.kinds)
                trouble = TROUBLES[kind](self)
                next(trouble)
                self.say(f"{kind} begins")
                troubles.append((self.now + self.chance.choice((20, 60, 300, 900, 2400)), kind, trouble))
            for one in [one for one in troubles if one[0] <= self.now]:
                troubles.remove(one)
                self._over(*one[1:])
            self._step()
        for _, kind, trouble in troubles:
            self._over(kind, trouble)
        helps(self)
        self.say("all trouble is over")
        until, helped = self.now + REST_S, self.now
        while not self.rests() and self.now < until:
            self._step()
            if self.now - helped > 600:  # a person looks after what waits for one
                helps(self)
                helped = self.now
        self.promises.keep("rest", self.rests(), self.restless())

    def _over(self, kind: str, trouble: Trouble) -> None:
        next(trouble, None)
        self.say(f"{kind} is over")

    def say(self, what: str) -> None:
        self.told.append(f"{self.now:7.0f} s  {what}")

    def _step(self) -> None:
        """The next agent's round."""
        node = self._next()
        self.passes(max(0.0, node.due - self.now) + 0.01)
        node.tick()

    def _next(self) -> Node:
        return min((one for one in (*self.nodes, *self.twins) if not (one.busy or one.asleep)), key=lambda one: one.due)

    def real(self, later_s: float = 0.0) -> float:
        """Unix seconds, as the API server has them."""
        return START + self.now + later_s

    def passes(self, seconds: float) -> None:
        """Time does: what is late arrives, pods end."""
        until = self.now + seconds
        while self._later and self._later[0][0] <= until:
            at, _, happens = heappop(self._later)
            self._set(max(at, self.now))
            happens()
        self._set(max(until, self.now))
        self.server.kubelets({node.name for node in self.nodes if node.asleep or node.stands or not node.up})
        self.server.controllers()
        for node in self.nodes:
            node.kubelet()
        self.wire.watch.seen()

    def _set(self, now: float) -> None:
        self.now = now
        for node in (*self.nodes, *self.twins):
            if node.asleep:
                node.ahead = node.now - now
            node.now = now + node.ahead

    def later(self, seconds: float, happens: Callable[[], None]) -> None:
        self._number += 1
        heappush(self._later, (self.now + seconds, self._number, happens))

    def between(self, node: Node, reads: bool) -> None:
        """Before any request of one agent others may have their rounds, and one more right now.

        It stands still for long before it reads alone: a write would be one that arrives later than any may. Whoever
        holds nothing does no harm by it.
        """
        stalls_s = self.stalls_s if reads and self.wire.watch.held(node) else 0.0
        if self.depth < _DEEPEST and self.chance.random() < (0.1 if stalls_s else 0.02):
            self.depth += 1
            until = self.now + self.chance.choice((0.1, 1.0, 15.0, stalls_s))
            asleep = [one for one in (*self.nodes, *self.twins) if one.name == node.name and stalls_s and self.sleeps]
            for one in asleep:
                one.asleep = True
            while self._next().due < until:
                self._step()
            self.passes(max(0.0, until - self.now))
            for one in asleep:
                one.asleep = False
            other = self.any_node()
            if not (other.busy or other.asleep):
                other.tick()
            self.depth -= 1

    def any_node(self) -> Node:
        return self.chance.choice(self.nodes)

    def adds(self, name: str) -> None:
        self.server.add_node(name)
        self.server.change("nodes", name, {"metadata": {"labels": dict.fromkeys(OPERANDS, OPERAND_ON)}})

    def next_process(self) -> int:
        self._number += 1
        return self._number

    def ends(self, process: int) -> None:
        if process in self.in_force:
            self.in_force[process] = self.in_force[process][0], min(self.now, self.in_force[process][1])

    def lives(self, process: int) -> bool:
        return self.in_force[process][1] > self.now

    def untwin(self, name: str) -> None:
        for twin in [one for one in self.twins if one.name == name]:
            self.ends(twin.process)
        self.twins = [one for one in self.twins if one.name != name]

    def rests(self) -> bool:
        return not self.restless()

    def restless(self) -> str:
        """What is not at rest yet."""
        there = {f"{one['metadata']['name']}/{one['metadata']['uid']}" for one in self.server.all("nodes")}
        pool = f"-{self.config.budget.pool}-"
        leases = [one for one in self.server.all("leases") if one["spec"].get("holderIdentity") in there]
        leases = [one for one in leases if pool in one["metadata"]["name"]]  # nobody goes by those of another
        said = [f"{one['metadata']['name']} is held by {one['spec']['holderIdentity']}" for one in leases]
        for node in self.nodes:
            raw = node.raw
            if raw is None:
                said.append(f"{node.name} is gone")
                continue
            labels = raw["metadata"]["labels"]
            rest = {**dict.fromkeys(OPERANDS, OPERAND_ON), STATE_LABEL: "healthy"}
            wrong = {key: value for key, value in labels.items() if own_label(key) and rest.get(key) != value}
            bad = [c["type"] for c in raw["status"]["conditions"] if c["type"] != "Ready" and c["status"] == "True"]
            if withdraws(raw) or wrong or bad or node.bad:
                said.append(f"{node.name}: {raw['spec'].get('taints')} {wrong} {bad} {node.bad} {node.waits}")
        return "; ".join(said)
