"""What every exercise goes by: the cluster, the client, the way onto a node, and waits that end."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from agent.drill.choice import app_of
from agent.drill.cluster import RENEW_S, Cluster, MissedError
from agent.drill.kit import LOAD, LOAD_PORT, Object, Settings
from agent.drill.outcome import Outcome, Part
from agent.drill.privileged_pod import finished, privileged_pod, report_of
from agent.drill.targets import TARGETS
from agent.drill.watch import REPLICAS, Watch, restarts

STAGE_S = 300.0
_LAST_ANSWERS_S = 30.0

Say = Callable[[str], None]


class Scene:
    """One drill under way."""

    after_s = 2.0  # what a window lasts beyond the last moment

    def __init__(
        self, cluster: Cluster, settings: Settings, outcome: Outcome, say: Say, targets: Mapping[str, float] = TARGETS
    ) -> None:
        self.cluster, self.settings, self.outcome, self.say, self.targets = cluster, settings, outcome, say, targets
        self.nonce = secrets.token_hex(16)
        self.watched = Watch(cluster)
        self.errands: tuple[Object, ...] = ()  # to be applied later, where the kit is the drill's own
        self.ranks: tuple[Object, ...] = ()  # the same, where there is an image for them
        self.agent: Object = {}  # the pod of one of the agents
        self._paths: list[str] = []  # what says that this drill is under way
        self._renewed = 0.0

    def begin(self, name: str, title: str, rate: float | None = None) -> Part:
        part = Part(name, title, time.time())
        self.outcome.parts.append(part)
        self.window(name, rate)
        return part

    def end(self, part: Part, rate: float | None = None, refuses: bool = False) -> None:
        """What clients saw. ``refuses``: where some requests fail in any case, for how long is what counts."""
        time.sleep(self.after_s)
        self.window("between")  # so that the last answers of this one can be waited for
        asked, window, ahead_s = 0.0, dict[str, Any](), 0.0

        def told() -> bool:
            nonlocal asked, window, ahead_s
            asked = time.time()
            report = self.report()
            if not report:
                return False
            ahead_s = report["now"] - (asked + time.time()) / 2
            window = next(one for one in report["windows"] if one["name"] == part.name)
            return not window["waiting"]

        self.wait("the client's report", told, _LAST_ANSWERS_S)
        part.served(window, ahead_s)
        asked_any, pause_s = bool(window["sent"]), 1 / (rate or self.settings.rate)
        if refuses:
            part.measure(
                "from the first failed request to the last",
                window["failing_s"] if asked_any else None,
                self.targets["refused-s"],
                "s",
            )
        else:
            failed = window["failed"] if asked_any else None  # no request at all is no success
            part.measure("requests failed", failed, self.targets["failed"], f"of {window['sent']}")
        gap_s, answer_s = (window["longest_gap_s"], window["longest_s"]) if asked_any else (None, None)
        part.measure("longest gap between two answers", gap_s, self.targets["gap-s"] + (pause_s if rate else 0), "s")
        part.measure("slowest answer", answer_s, self.targets["answer-s"], "s")
        part.ended = time.time()
        for figure in part.figures:
            self.say(f"  {figure.name}: {figure.text} (at most {figure.most}){'' if figure.met else '  MISSED'}")

    def window(self, name: str, rate: float | None = None) -> None:
        path = f"/window?name={name}&rate={rate or self.settings.rate:g}"
        self.wait("the client answers", lambda: self._client(path), 60)

    def report(self) -> Any:
        return self._client("/report")

    def _client(self, path: str) -> Any:
        return self.cluster.ask_pod(self.cluster.namespace, LOAD, LOAD_PORT, path)

    def replicas_ready(self) -> bool:
        return len(self.watched.ready("inference")) >= REPLICAS

    def kill(self, pod: Object, part: Part, returns: bool = False) -> None:
        """All its processes, without warning. One that ``returns`` is started anew in its place."""
        node, name, uid, before = (
            pod["spec"]["nodeName"],
            pod["metadata"]["name"],
            pod["metadata"]["uid"],
            restarts(pod),
        )
        done = self.hand(node, "kill", [f"--kill={uid}"])
        if not done["killed"]:
            raise MissedError(f"no process of {name} was found on {node}")
        part.note("killed", within(part.began, done["at"], time.time()), [name])
        self.say(f"{name} killed on {node}")
        if returns:
            pods = self.cluster.pods
            self.wait(
                f"{name} starts anew",
                lambda: any(one["metadata"]["uid"] == uid and restarts(one) > before for one in pods()),
            )
            part.note("starts anew", time.time(), [name])

    def hand(
        self, node: str, what: str, arguments: list[str], meanwhile: Callable[[], object] = lambda: None
    ) -> dict[str, Any]:
        """What only a pod on the node can do there."""
        pod = privileged_pod(node, self.cluster.agents, self.agent, what, arguments)
        path = f"/api/v1/namespaces/{self.cluster.agents}/pods"
        self.cluster.apply(pod)

        def words() -> dict[str, Any] | None:
            meanwhile()
            return finished(self.cluster.get(f"{path}/{pod['metadata']['name']}"))

        return dict(self.wait(f"the drill's pod on {node} has ended", words))

    def inject(self, node: str, what: str, arguments: list[str], meanwhile: Callable[[], object]) -> dict[str, Any]:
        """The same in the container of the agent there that simulates its GPUs."""
        pod = self.cluster.agent_pods()[node]
        names = [container["name"] for container in pod["spec"]["containers"]]
        container = "sources" if "sources" in names else names[0]
        command = ["python3", "-m", "agent.drill.on_node", "--simulated", *arguments]
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(self.cluster.run, pod, container, command)

            def ended() -> bool:
                meanwhile()
                return answer.done()

            self.wait(f"the {what} is injected on {node}", ended)
            return report_of(answer.result())

    def finish(self, pod: Object) -> None:
        """A pod of the kit that does one thing and ends."""
        name = pod["metadata"]["name"]
        self.cluster.apply(pod)

        def over() -> bool:
            phase = self.cluster.get(f"{self.cluster.home}/pods/{name}").get("status", {}).get("phase")
            if phase == "Failed":
                raise MissedError(f"pod {name} failed: its log says why")
            return bool(phase == "Succeeded")

        self.wait(f"pod {name} has ended", over, 90)

    def lost(self, old: Object, part: Part) -> float | None:
        """From the last step that the old training told of to the one that its successor went on from."""
        last = self.watched.steps.get(old["metadata"]["uid"], {}).get("step")
        new = self.successor(old)
        if last is None or new is None:
            return None
        part.notes.append(f"the training was at step {last}, its successor went on from step {new['restored_step']}")
        return float(max(0, last - new["restored_step"]))

    def successor(self, old: Object) -> dict[str, int] | None:
        """What another training says of itself than the old one."""
        uid = old["metadata"]["uid"]
        others = (pod for pod in self.watched.live(app_of(old)) if pod["metadata"]["uid"] != uid)
        return next((said for pod in others if (said := self.watched.hear(pod))), None)

    def wait(self, what: str, ready: Callable[[], Any], timeout_s: float = STAGE_S) -> Any:
        def renewed() -> Any:
            self._renew()
            return ready()

        return self.cluster.wait(what, renewed, timeout_s)

    def bear(self, path: str) -> None:
        """Say on an object that this drill is under way."""
        self.cluster.annotate(path, self.nonce)
        self._paths.append(path)

    def shed(self, path: str) -> None:
        self._paths.remove(path)
        self.cluster.release(self.nonce)

    def _renew(self) -> None:
        if time.monotonic() - self._renewed > RENEW_S:
            for path in self._paths:
                self.cluster.annotate(path, self.nonce)
            self._renewed = time.monotonic()


def within(earliest: float, at: float, latest: float) -> float:
    """A node's clock may differ from ours: what it tells lies between what we saw before and after."""
    return min(max(earliest, at), latest)
