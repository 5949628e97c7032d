"""The three exercises, each with an end to every wait."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import ceil
from typing import Any

from agent.drill.choice import Choice, UnfitError, choose
from agent.drill.cluster import RENEW_S, Cluster, MissedError, node_path
from agent.drill.kit import LOAD, LOAD_PORT, Object, Settings
from agent.drill.outcome import (
    CHECKPOINT_S,
    CRASH,
    EVICTED_S,
    NODE,
    PLACED_S,
    POD,
    READY_S,
    RECOVER_S,
    STEPS_ASKED,
    TAINT_S,
    Outcome,
    Part,
)
from agent.drill.privileged_pod import finished, privileged_pod, report_of
from agent.drill.watch import REPLICAS, Watch
from agent.drill.withdrawal import SAVED, Withdrawal
from agent.model.names import HARD_TAINT

_START_S, _PERMIT_S, _STAGE_S, _RETURN_S = 300.0, 120.0, 300.0, 120.0
_FIT_S, _CALM_S, _AFTER_S = 60.0, 2.0, 2.0

Say = Callable[[str], None]


class Exercise:
    """The drill on one cluster, from the kit's start to the last figure."""

    def __init__(self, cluster: Cluster, settings: Settings, outcome: Outcome, say: Say) -> None:
        self._cluster, self._settings, self._outcome, self._say = cluster, settings, outcome, say
        self.nonce = secrets.token_hex(16)
        self._paths: list[str] = []  # what says that this drill is under way
        self._renewed = 0.0
        self._watched = Watch(cluster)
        self._agent: Object = {}

    def run(self, kit: list[Object]) -> None:
        """Everything in its order; MissedError and UnfitError end it."""
        self._start(kit)
        self._pod()
        self._node()
        self._crash()

    def _start(self, kit: list[Object]) -> None:
        for one in kit:
            if one["kind"] == "Job":  # last: the training goes beside a replica, so that both leave in one drill
                self._wait("the replicas have nodes", lambda: self._watched.placed("inference") >= REPLICAS, _START_S)
            self._cluster.apply(one)
            if one["kind"] == "Namespace":
                self._bear(self._cluster.home)
        self._say(f"kit in namespace {self._cluster.namespace}: {len(kit)} objects applied")
        self._wait("the training runs and the replicas and gateways are ready", self._watched.whole, _START_S)
        agents = self._cluster.agent_pods()
        if not agents:
            raise MissedError(f"no agent runs in namespace {self._cluster.agents}: install it first")
        self._agent = next(iter(agents.values()))
        nodes = [node for node in self._cluster.nodes() if node["metadata"]["name"] in agents]
        self._outcome.nodes = len(nodes)
        simulation = self._watched.simulation(self._agent)
        self._outcome.simulated_gpus = None if simulation is None else bool(simulation.get("scenario"))
        self._outcome.simulated_nodes = any(
            "kwok.x-k8s.io/node" in (n["metadata"].get("annotations") or {}) for n in nodes
        )
        runtimes = [n["status"].get("nodeInfo", {}).get("containerRuntimeVersion", "") for n in nodes]
        self._outcome.process_pods = any(runtime.startswith("process://") for runtime in runtimes)
        self._say(self._outcome.played)
        self._fits(simulation or {})
        self._window("calm")
        self._sleep(_CALM_S)

    def _fits(self, simulation: Object) -> None:
        """UnfitError where the fault would be written into a kernel log that no agent reads."""
        simulated = bool(simulation.get("scenario")) and simulation.get("kernel_log") is not False
        if self._settings.inject and not simulated:
            raise UnfitError("--inject: the agents there read no simulated GPUs with a kernel log of their own")
        if simulated and not self._settings.inject:
            raise UnfitError("the agents there read a simulated kernel log and not their nodes': add --inject")

    def _pod(self) -> None:
        part = self._begin(POD)
        # Not the one beside the training: that leaves with its node.
        kept = {pod["spec"].get("nodeName") for pod in self._watched.live("training")}
        victim = min(self._watched.ready("inference"), key=lambda pod: pod["spec"]["nodeName"] in kept)
        known = self._watched.uids()
        self._cluster.delete_pod(victim)
        uid, name = victim["metadata"]["uid"], victim["metadata"]["name"]
        part.note("deleted", time.time(), [name])
        self._say(f"pod {name} deleted")
        self._wait("another pod has a node", lambda: self._watched.placed("inference") >= REPLICAS, _STAGE_S)
        part.note("another pod has a node", time.time(), self._watched.new("inference", known))
        self._wait("all replicas are ready", lambda: len(self._watched.ready("inference")) >= REPLICAS, _STAGE_S)
        part.note("all replicas are ready", time.time())
        self._wait("the deleted pod has ended", lambda: uid not in self._watched.uids(), _STAGE_S)
        part.note("the deleted pod has ended", time.time(), [name])
        ready_s = part.between("deleted", "all replicas are ready")
        part.measure("deleted → all replicas are ready", ready_s, READY_S, "s")
        self._end(part)

    def _node(self) -> None:
        choice = self._choose()
        part = self._begin(NODE)
        self._outcome.node = choice.node
        state = self._wait(f"the agent on {choice.node} tells its state", lambda: self._watched.state(choice.node), 60)
        counted = int(state.get("checkpoints", {}).get("saved", 0))
        withdrawal = Withdrawal(self._cluster, self._watched, part, choice, counted)
        self._say(f"node {choice.node} is drilled: {', '.join(withdrawal.leaving.values())} will leave")
        self._bear(node_path(choice.node))
        try:
            self._withdraw(part, choice, withdrawal)
        finally:
            self._paths.remove(node_path(choice.node))
            self._cluster.release(self.nonce)
        part.note("the drill's annotation is taken off", time.time())
        self._wait(f"{HARD_TAINT} is off the node", lambda: not self._cluster.tainted(choice.node), _RETURN_S)
        part.note("the node is back in service", time.time())
        self._say(f"node {choice.node} is back in service")
        self._wait(
            "the evicted pods have ended", lambda: not withdrawal.leaving.keys() & self._watched.uids(), _STAGE_S
        )
        self._figures(part, withdrawal.training)
        self._end(part)

    def _choose(self) -> Choice:
        """UnfitError, if it is not but for a moment."""
        end = time.monotonic() + _FIT_S
        while True:
            try:
                there, named = self._cluster, self._settings.node
                return choose(there.nodes(), there.all_pods(), there.agent_pods(), there.namespace, named)
            except UnfitError:
                if time.monotonic() > end:
                    raise
            self._sleep(1)

    def _withdraw(self, part: Part, choice: Choice, withdrawal: Withdrawal) -> None:
        pods = [f"--pod={self._cluster.namespace}/{name}" for name in withdrawal.leaving.values()]
        cards = [f"--card={uuid}={pci}" for uuid, pci in choice.cards.items()]
        self._watched.follow(withdrawal.training)
        give = self._inject if self._settings.inject else self._hand
        done = give(choice.node, "fault", [f"--nonce={self.nonce}", *cards, *pods], meanwhile=withdrawal.see)
        part.note("fault", _within(part.began, done["written"][0]["at"], time.time()))
        self._say(f"marked Xid 74 in the kernel log of {choice.node}: {', '.join(w['pci'] for w in done['written'])}")
        try:
            self._wait("the node is tainted", withdrawal.see, _PERMIT_S)
        except MissedError as missed:
            waits = "; ".join(self._watched.state(choice.node).get("waits", []))
            raise MissedError(f"{missed}; its agent waits for: {waits or 'nothing that it says'}") from missed
        self._say("tainted")
        for what in (SAVED, "evicted", "all evicted pods are replaced on other nodes", "all are ready"):

            def happened(what: str = what) -> bool:
                # A checkpoint that was never saved misses its target; it doesn't hold the drill up.
                return withdrawal.see() and bool(part.at(what) or (what == SAVED and part.at("all are evicted")))

            self._wait(what, happened, _STAGE_S)
            self._say(what)
        part.notes.append(f"the agent counts {withdrawal.count} checkpoint{'s' * (withdrawal.count != 1)} as saved")

    def _figures(self, part: Part, training: Object) -> None:
        for first, then, target in (
            ("fault", "tainted", TAINT_S),
            ("tainted", SAVED, CHECKPOINT_S),
            (SAVED, "all are evicted", EVICTED_S),
            ("all are evicted", "all evicted pods are replaced on other nodes", PLACED_S),
            ("all evicted pods are replaced on other nodes", "all are ready", READY_S),
        ):
            part.measure(f"{first} → {then}", part.between(first, then), target, "s")
        part.measure("time to recover: fault → all are ready", part.between("fault", "all are ready"), RECOVER_S, "s")
        part.measure("steps of work lost, with the checkpoint asked for", self._lost(training, part), STEPS_ASKED, "")

    def _crash(self) -> None:
        part = self._begin(CRASH)
        (training,) = self._watched.live("training")
        uid = training["metadata"]["uid"]

        def unsaved() -> bool:
            said = self._watched.hear(training)
            return said.get("step", 0) - said.get("saved_step", 0) >= 2

        self._wait("the training has work that is not saved", unsaved, _STAGE_S)
        node = training["spec"]["nodeName"]
        self._watched.follow(training)
        done = self._hand(node, "kill", [f"--kill={uid}"])
        if not done["killed"]:
            raise MissedError(f"no process of {training['metadata']['name']} was found on {node}")
        most = ceil(self._settings.interval_s * self._watched.pace(uid))
        part.note("killed", _within(part.began, done["at"], time.time()), [training["metadata"]["name"]])
        self._say(f"training killed on {node} at step {self._watched.steps[uid]['step']}")
        self._wait(
            "another pod goes on",
            lambda: any(p["metadata"]["uid"] != uid and self._watched.hear(p) for p in self._watched.live("training")),
            _STAGE_S,
        )
        part.note("another pod goes on from the checkpoint", time.time(), self._watched.new("training", {uid}))
        part.measure("steps of work lost, without warning", self._lost(training, part), most, "")
        part.notes.append(f"{most} steps are an interval of {self._settings.interval_s:g} s between two checkpoints")
        recovered_s = part.between("killed", "another pod goes on from the checkpoint")
        part.measure("time to recover: killed → another pod goes on", recovered_s, RECOVER_S, "s")
        self._end(part)

    def _lost(self, old: Object, part: Part) -> float | None:
        """From the last step that the old pod told of to the one that its successor went on from."""
        uid = old["metadata"]["uid"]
        last = self._watched.steps.get(uid, {}).get("step")
        others = (pod for pod in self._watched.live("training") if pod["metadata"]["uid"] != uid)
        new = next((said for pod in others if (said := self._watched.hear(pod))), None)
        if last is None or new is None:
            return None
        part.notes.append(f"the training was at step {last}, its successor went on from step {new['restored_step']}")
        return float(max(0, last - new["restored_step"]))

    def _begin(self, name: str) -> Part:
        part = Part(name, time.time())
        self._outcome.parts.append(part)
        self._window(name)
        return part

    def _end(self, part: Part) -> None:
        self._sleep(_AFTER_S)
        asked = time.time()
        report = self._wait("the client's report", lambda: self._client("/report"), 30)
        ahead_s = report["now"] - (asked + time.time()) / 2
        part.served(next(w for w in report["windows"] if w["name"] == part.name), ahead_s)
        part.ended = time.time()
        for figure in part.figures:
            self._say(f"  {figure.name}: {figure.text} (at most {figure.target:g}){'' if figure.met else '  MISSED'}")

    def _window(self, name: str) -> None:
        self._wait("the client answers", lambda: self._client(f"/window?name={name}"), 60)

    def _client(self, path: str) -> Any:
        return self._cluster.ask_pod(self._cluster.namespace, LOAD, LOAD_PORT, path)

    def _hand(
        self, node: str, what: str, arguments: list[str], meanwhile: Callable[[], object] = lambda: None
    ) -> dict[str, Any]:
        pod = privileged_pod(node, self._cluster.agents, self._agent, what, arguments)
        path = f"/api/v1/namespaces/{self._cluster.agents}/pods"
        self._cluster.apply(pod)

        def words() -> dict[str, Any] | None:
            meanwhile()
            return finished(self._cluster.get(f"{path}/{pod['metadata']['name']}"))

        return dict(self._wait(f"the drill's pod on {node} has ended", words, 90))

    def _inject(self, node: str, what: str, arguments: list[str], meanwhile: Callable[[], object]) -> dict[str, Any]:
        """The same in the container of the agent there that simulates its GPUs."""
        pod = self._cluster.agent_pods()[node]
        names = [container["name"] for container in pod["spec"]["containers"]]
        container = "sources" if "sources" in names else names[0]
        command = ["python3", "-m", "agent.drill.on_node", "--simulated", *arguments]
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(self._cluster.run, pod, container, command)

            def ended() -> bool:
                meanwhile()
                return answer.done()

            self._wait(f"the {what} is injected on {node}", ended, 90)
            return report_of(answer.result())

    def _wait(self, what: str, ready: Callable[[], Any], timeout_s: float) -> Any:
        def renewed() -> Any:
            self._renew()
            return ready()

        return self._cluster.wait(what, renewed, timeout_s)

    def _bear(self, path: str) -> None:
        self._cluster.annotate(path, self.nonce)
        self._paths.append(path)

    def _renew(self) -> None:
        if time.monotonic() - self._renewed > RENEW_S:
            for path in self._paths:
                self._cluster.annotate(path, self.nonce)
            self._renewed = time.monotonic()

    def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def _within(earliest: float, at: float, latest: float) -> float:
    """A node's clock may differ from ours: what it tells lies between what we saw before and after."""
    return min(max(earliest, at), latest)
