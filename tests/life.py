"""A node's life in memory, for tests: its GPU breaks, Jobs run on it, and its agent can be killed at any write."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from agent.actions.kube import KubeClient
from agent.config.settings import Config
from agent.diagnosis.judge import Memory, Orders, judge
from agent.diagnosis.resume import resumed
from agent.model.errors import RefusedError, UnreachableError
from agent.model.fault import Verdict
from agent.model.names import HARD_TAINT
from agent.model.observation import Failure, Observation, Signal, Value
from agent.model.ownership import OPERAND_PAUSED
from agent.model.text import rfc3339
from agent.model.world import World
from agent.remediation.plan import Plan
from agent.remediation.records import Records
from agent.remediation.stored import load, restored
from agent.runtime.cycle import Cycle, Planned, Turn, turn
from agent.runtime.exchange import Judged
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.observe import GPU, OTHER, START, alive, fields, reading, xid

POLL_S = 10.0  # seldom, for what only waits to cost little
_LONGEST_TICKS = 20_000  # no life of a test is longer: one that waits for what never comes ends
UUID = f"GPU-{GPU}"
REMAPPED = 63  # the Xid of a memory row that waits for a reset, as a flag says as well
TEMPLATES = {"reset_gpu": "reset", "reboot_node": "reboot", "replace_node": "replace"}
CHECK = "node-check"
EVIDENCE = "collect-evidence"
CONFIG = Config.model_validate(
    {
        "mode": "evict",
        "policy": {"soak_s": 20},
        "budget": {"max_withdrawn": 1},
        "repair": {**TEMPLATES, "pause_s": 10, "prove_s": 60},
    }
)
RESETS = (95,)  # Xids after which the driver itself asks for a reset
OPERANDS = {"nvidia.com/gpu.deploy.device-plugin": "true", "nvidia.com/gpu.deploy.driver": "true"}
_OUTLIVE = (
    "now",
    "boot",
    "writes",
    "repairs",
    "ended",
    "reset",
    "clients",
    "resources",
    "pending",
    "began",
    "over",
    "uuids",
    "new",
    "log",
    "stepped_s",
)


def remedy_of(job: str) -> str:
    """Of the Job of this name, which ends with a hash, and of a later run with its number."""
    return re.sub(r"-[0-9a-f]{10}(-[0-9]+)?$", "", job.removeprefix("gpu-health-")).replace("-", "_")


class Killed(BaseException):
    """kill -9, right after a write arrived."""


@dataclass
class Life:
    """One node and its agent. ``cures``: whether a remedy of this name helps; ``kills``: after which writes to die.

    To die before a write is to die after the one before it: in between the agent only reads.
    """

    fault: int  # the Xid in the kernel log; 0: none
    name: str = field(default="n1", kw_only=True)
    config: Config = CONFIG
    cures: Callable[[str], bool] = lambda _: True
    exit_code: int = 0
    passes: bool = True  # the check before the return
    kills: Collection[int] = ()
    after: Callable[[int], None] = lambda _: None  # what else happens once so many writes were made
    api: Callable[..., tuple[int, Any]] | None = None
    cluster: InMemoryCluster = field(default_factory=InMemoryCluster)
    now: float = 1000.0
    boot: int = 1
    writes: int = 0
    repairs: list[str] = field(default_factory=list)  # begun
    ended: list[str] = field(default_factory=list)
    reset: list[str] = field(default_factory=list)  # the GPUs of each reset
    waits: tuple[str, ...] = ()
    gathered: bool = True
    clients: dict[str, dict[str, str]] = field(default_factory=dict)
    resources: dict[str, tuple[str, ...] | None] | None = None  # what PodResources tells; None: it can't be asked
    pending: set[str] = field(default_factory=set)  # GPUs with a memory row that waits for a reset to be remapped
    stepped_s: float = 0.0  # how far the node's wall clock was set ahead
    linked: bool = False  # its GPUs, older than Ampere, to each other
    forks: Callable[[tuple[int, ...]], bool] = lambda _: False  # whether to keep what a kill after these writes leaves
    left: list[tuple[tuple[int, ...], bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._settles()
        self._ticks = 0
        self.began: dict[str, float] = {}  # by the Job's UID
        self.over: dict[str, float] = {}
        self.uuids = {pci: f"GPU-{pci}" for pci in (GPU, OTHER)}
        self.new = dict.fromkeys((GPU, OTHER), 0.0)  # since when each GPU's counters count
        self.log: list[tuple[int, int, float, str, int]] = []  # the faults' records: boot, number, time, GPU, Xid
        self._begin()
        self.tick()  # healthy
        self.writes = 0
        if self.fault:
            self.breaks()

    def _settles(self) -> None:
        """What is there before its agent."""
        self.cluster.add_node("n1")
        self.cluster.add_node("n2")
        self.cluster.add_pod("research", "train", "n1", owner="Job")
        labels = {"metadata": {"labels": OPERANDS}}
        self.cluster("PATCH", "/api/v1/nodes/n1", labels, "application/merge-patch+json")
        templates(self.cluster)

    def _begin(self) -> None:
        """A new process of the agent: only the cluster remembers."""
        self.client = KubeClient(self._request, self.name, self.config, lambda: self.now, wall=self._wall)
        self.cycle = Cycle(self.config, self.now)
        self.last: Planned | None = None  # the last plan, and what it was made from
        self.memory, self.restored, self.read = Memory(), False, (0, 0)
        self.last_read: tuple[Any, Any] = {}, None  # clients and holders, as this life last read them

    def _request(self, method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        answer = (self.api or self.cluster)(method, path, *rest, **more)
        if method != "GET":
            self.writes += 1
            self.after(self.writes)
            if self.writes in self.kills:
                raise Killed
            if self.forks((*self.kills, self.writes)):
                self.left.append(((*self.kills, self.writes), self._outlives()))
        return answer

    def _outlives(self) -> bytes:
        """All that is there without its agent."""
        cluster = self.cluster
        kept = [getattr(self, name) for name in _OUTLIVE]
        return pickle.dumps((cluster._objects, cluster._version, cluster.evicted, kept))

    def _killed(self, kills: tuple[int, ...], left: bytes) -> Life:
        """The same life, had its agent died after these writes."""
        other = copy.copy(self)
        cluster = other.cluster = InMemoryCluster()
        cluster._objects, cluster._version, cluster.evicted, kept = pickle.loads(left)
        for name, value in zip(_OUTLIVE, kept, strict=True):
            setattr(other, name, value)
        other.kills, other.left = kills, []
        other._begin()
        other._permitted()
        return other

    def node(self) -> dict[str, Any]:
        return self.cluster.read("nodes", self.name)

    def tainted(self) -> bool:
        return any(t["key"] == HARD_TAINT for t in self.node()["spec"].get("taints") or ())

    def records(self) -> Records:
        text = (self.node()["metadata"].get("annotations") or {}).get("gpu-health-agent/faults")
        return load(text, 0.0).records if text else Records()

    def holders(self) -> list[str]:
        path = "/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases"
        return [lease["spec"]["holderIdentity"] for lease in self.cluster("GET", path)[1]["items"]]

    def breaks(self, pci: str = GPU, code: int = 0) -> None:
        """The kernel says so."""
        self.log.append((self.boot, len(self.log) + 2, self.now, pci, code or self.fault))
        self.pending |= {pci} if (code or self.fault) == REMAPPED else set()

    def reboots(self) -> None:
        """By a person's hand, or by a power cut."""
        self.boot += 1
        self.new = dict.fromkeys(self.new, self.now)
        self.pending = set()
        self._begin()

    def run(self, seconds: float, rests: bool = False) -> None:
        """``rests``: only until the node is back in service, its permit another's, or a person's."""
        for _ in range(int(seconds / POLL_S)):
            self.tick()
            decided = any(why.startswith("a person must decide: ") for why in self.waits)
            back = not self.tainted() and not any(self.holders())
            if rests and self.repairs and (decided or back):
                break
        else:
            return
        for _ in range(4 if rests else 0):  # kills at the very last writes
            self.tick()

    def tick(self) -> None:
        """One poll: the machine goes on, the judge judges, the agent acts until nothing is left to do."""
        self.now += POLL_S
        self._ticks += 1
        assert self._ticks < _LONGEST_TICKS, f"what was waited for never comes: {self.waits}, {self.repairs}"
        self._machine()
        try:
            self._agent()
        except Killed:
            self._begin()
        except (RefusedError, UnreachableError) as error:
            self.waits = (str(error),)
        self._permitted()

    def _permitted(self) -> None:
        assert not self.tainted() or any(h.startswith(f"{self.name}/") for h in self.holders()), (
            "a hard taint without a permit"
        )

    def _cycle(self) -> Cycle:
        """With the configuration as it is now."""
        drain = self.config.drain.model_copy(update={"gather_s": 0.0 if self.gathered else float("inf")})
        return replace(self.cycle, config=self.config.model_copy(update={"drain": drain}))

    def _agent(self) -> None:
        self.cycle = self._cycle()
        for _ in range(20):
            verdict = self._judge() if self.cycle.started else None
            if not self.released:
                self.last_read = self.clients, self.resources
            closed = self.cycle.look_began if self.released else None
            judged = Judged(verdict, released=closed, clients=self.last_read[0])
            last = turn(self.cycle, judged, self.client, lambda _: self.last_read[1], lambda: self.now, self._wall)
            news = last.cycle.keep_off != self.cycle.keep_off  # NVML is closed or opened within a poll
            self.cycle, self.waits = last.cycle, tuple(wait.why for wait in last.waits)
            self.last = last.planned or self.last
            self._turned(last)
            if last.trouble:
                raise last.trouble
            if verdict and not (last.again or last.cut or news):
                return

    def _turned(self, last: Turn) -> None:
        """For whoever wants to see each round."""

    def _wall(self) -> float:
        return START + self.now + self.stepped_s

    @property
    def released(self) -> bool:
        """Whether the agent's own processes hold no GPU."""
        return bool(self.cycle.keep_off)

    @property
    def planned(self) -> Plan:
        assert self.last
        return self.last.plan

    @property
    def verdict(self) -> Verdict:
        assert self.last
        return self.last.verdict

    @property
    def world(self) -> World:
        assert self.cycle.world
        return self.cycle.world

    def _restore(self) -> None:
        """As the judging thread does once the Node was read."""
        text = self.cycle.stored
        self.memory = resumed(self.memory, restored(text, self.now), self.config.policy, {})
        stored = load(text, 0.0) if text else None
        if stored and stored.boot_id == f"boot-{self.boot}":  # the kernel log is read on from there
            self.read = self.boot, stored.kernel_seq or 0
        self.restored = True

    def _judge(self) -> Verdict:
        if not self.restored:
            self._restore()
        boot = f"boot-{self.boot}"
        seen = [alive("kmsg", boot, 1)]
        if self.released:
            seen.append(Observation(0, "nvml", Signal.FAILED, value=Failure.KEEP_OFF, raw=self.cycle.keep_off))
        else:
            seen.append(alive("nvml", boot))
            links: dict[str, dict[str, Value]] = {
                pci: {"architecture": 5, "nvlink_peers": peer} if self.linked else {}
                for pci, peer in ((GPU, OTHER), (OTHER, GPU))
            }
            seen += [
                reading(
                    pci,
                    uuid=self.uuids[pci],
                    energy_j=max(0.0, self.now - since),
                    persistence_mode=1,
                    remapped_rows_pending=pci in self.pending,
                    recovery_action=int(self._asks(pci)),
                    **links[pci],
                )
                for pci, since in self.new.items()
            ]
        stamped = [Observation(**{**fields(o), "arrived": self.now, "at": self._wall()}) for o in seen]
        for boot_number, number, at, pci, code in self.log:
            if boot_number == self.boot and (boot_number, number) > self.read:
                told = xid(code, pci, "kmsg", boot_id=boot, seq=number)
                stamped.append(Observation(**{**fields(told), "arrived": self.now, "at": self._wall() + at - self.now}))
                self.read = boot_number, number
        orders = Orders(resets=self.cycle.resets, dismissed=self.world.dismissed, aside=self.cycle.aside)
        self.memory, verdict = judge(
            self.memory, stamped, self.now, self._wall(), self.config.policy, ("nvml", "kmsg"), orders
        )
        return verdict

    def _asks(self, pci: str) -> bool:
        """Whether the driver asks for a reset: until there was one, or a reboot, since the last Xid that takes it."""
        return any(code in RESETS and at >= self.new[pci] for *_, at, gpu, code in self.log if gpu == pci)

    def _machine(self) -> None:
        """Jobs run two polls long, and only where they may."""
        for job in self._jobs():
            if not job.get("status"):
                self._goes_on(job["metadata"]["name"], job["metadata"]["uid"], job)

    def _goes_on(self, name: str, uid: str, job: dict[str, Any]) -> None:
        if uid not in self.began:
            self.began[uid] = self.now
            self._starts(name, job)
            self._tells(name, "Running", {"running": {}})
        elif self.now - self.began[uid] >= 2 * POLL_S:
            self._ends(name, job)

    def _jobs(self) -> list[dict[str, Any]]:
        found = self.cluster("GET", "/apis/batch/v1/namespaces/gpu-health-agent/jobs")[1]["items"]
        return [job for job in found if job["spec"]["template"]["spec"]["nodeName"] == self.name]

    def _starts(self, name: str, job: dict[str, Any]) -> None:
        remedy = remedy_of(name)
        records = self.records()
        if remedy == "collect":
            assert records.collected, "evidence that was not reserved"
            assert (records.collected.job, self.tainted()) == (name, True)
            self.repairs.append(remedy)
            return
        assert records.begun, "a repair that was not reserved"
        assert records.begun[-1].stage.live, "a repair that was not reserved"
        reserved = records.validation.job if records.validation else records.attempts[-1].job
        assert reserved == name, "another repair than the reserved one"
        assert self.tainted(), "a repair without our taint"
        assert self.holds("train", job) is False, "a repair under a running pod"
        assert job["spec"]["template"]["spec"]["nodeName"] == self.name
        assert job["spec"]["ttlSecondsAfterFinished"] == 7 * 86400, "it must be there to be read, and not for ever"
        if remedy == "reset_gpu":
            assert self.node()["metadata"]["labels"]["nvidia.com/gpu.deploy.device-plugin"] == OPERAND_PAUSED
            self.reset.append(job["spec"]["template"]["metadata"]["annotations"]["gpu-health-agent/gpus"])
            named = set(self.reset[-1].split(","))
            bad = {self.uuids[pci] for pci in {pci for *_, pci, _ in self.log} | self.pending}
            assert named == set(self.uuids.values()) if self.linked else named <= bad
        self.repairs.append(remedy)

    def holds(self, pod: str, job: dict[str, Any]) -> bool:
        """Whether a pod of the namespace research may use what this Job acts on."""
        gpus = job["spec"]["template"]["metadata"]["annotations"]["gpu-health-agent/gpus"].split(",")
        held = (self.resources or {}).get(f"research/{pod}")
        whole = not any(one in job["metadata"]["name"] for one in ("-reset-gpu-", "-check-"))
        return pod in self.cluster.pods_on(self.name) and (whole or not held or bool({*held} & {*gpus}))

    def _ends(self, name: str, job: dict[str, Any]) -> None:
        """Once; a restored server is only told of it again."""
        uid, good = job["metadata"]["uid"], self.exit_code == 0 and (self.passes or "-check-" not in name)
        self._acts_once(uid, name, good)
        condition = {
            "type": "Complete" if good else "Failed",
            "status": "True",
            "lastTransitionTime": rfc3339(self.over[uid]),
        }
        self.cluster._store("jobs", "gpu-health-agent", {**job, "status": {"conditions": [condition]}})
        ended = {"exitCode": 0 if good else self.exit_code or 1, "finishedAt": rfc3339(self.over[uid])}
        self._tells(name, "Succeeded", {"terminated": ended})

    def _tells(self, name: str, phase: str, state: dict[str, Any]) -> None:
        """How the pod of this Job is, as the kubelet says."""
        if ("pods", "gpu-health-agent", f"{name}-pod") not in self.cluster._objects:
            self.cluster.add_pod("gpu-health-agent", f"{name}-pod", self.name, gpus=0, owner="Job")
        labels = {"batch.kubernetes.io/job-name": name, "gpu-health-agent/node-uid": self.node()["metadata"]["uid"]}
        path = f"/api/v1/namespaces/gpu-health-agent/pods/{name}-pod"
        body = {"metadata": {"labels": labels}, "status": {"phase": phase, "containerStatuses": [{"state": state}]}}
        self.cluster("PATCH", path, body, "application/merge-patch+json")

    def removed(self, name: str) -> None:
        """The Job of this name is, by a person, and its pod with it."""
        for kind, one in (("jobs", name), ("pods", f"{name}-pod")):
            self.cluster._objects.pop((kind, "gpu-health-agent", one), None)

    def _acts_once(self, uid: str, name: str, good: bool) -> None:
        if uid not in self.over:
            self.over[uid] = self._wall()
            self._acts(remedy_of(name), good)

    def _acts(self, remedy: str, good: bool) -> None:
        """What it did to the machine."""
        self.ended.append(remedy)
        if remedy == "reset_gpu" and good:
            gpus = {pci for pci, uuid in self.uuids.items() if uuid in self.reset[-1].split(",")}
            self.new |= dict.fromkeys(gpus, self.now)
            self.pending -= gpus if self.cures(remedy) else set()
        if remedy == "replace_node" and good and self.cures(remedy):
            self.uuids = {pci: f"{uuid}-new" for pci, uuid in self.uuids.items()}
        if remedy == "reboot_node" and good:
            self.reboots()  # the agent's own process went down with it
        if good and not self.cures(remedy) and self.fault:
            self.breaks()


def templates(cluster: InMemoryCluster) -> None:
    """Of the remedies, of the check and of the evidence."""
    for name in (*TEMPLATES.values(), CHECK, EVIDENCE):
        spec = {"containers": [{"name": "main", "image": "none"}]}
        job = {"spec": {"template": {"spec": spec}, "ttlSecondsAfterFinished": 60}}
        body = {"metadata": {"name": name}, "spec": {"suspend": True, "jobTemplate": job}}
        cluster._store("cronjobs", "gpu-health-agent", body)


def lives(life: Life, seconds: float, killed: Callable[[tuple[int, ...]], bool]) -> Iterator[Life]:
    """It, and each life whose agent is ``killed`` right after such writes: what two have in common is lived once."""
    life.forks = killed
    coming = [life]
    while coming:
        one = coming.pop()
        one.run(seconds, rests=True)
        yield one
        coming += [one._killed(*left) for left in one.left]
