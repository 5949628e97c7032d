"""Exercise: a node's GPUs turn bad, and the agent withdraws it: taint, checkpoint, the pods that leave and come."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from agent.drill.choice import Choice, UnfitError, app_of, choose
from agent.drill.cluster import Cluster, MissedError, node_path
from agent.drill.kit import Object
from agent.drill.outcome import Part
from agent.drill.scene import STAGE_S, Scene, within
from agent.drill.watch import Watch, ending
from agent.model.names import HARD_TAINT

SAVED = "checkpoint saved"
_FIT_S, _PERMIT_S, _RETURN_S = 60.0, 120.0, 120.0


def withdrawn_node(scene: Scene, part: Part) -> None:
    withdraw(scene, part, choose, scene.watched.whole)


def withdraw(
    scene: Scene, part: Part, choose_one: Callable[..., Choice], whole: Callable[[], bool], app: str = "training"
) -> Withdrawal:
    """From the choice to the figures. ``app``: whose pod there is asked to save; ``whole``: when all is well again."""
    choice = _choose(scene, choose_one)
    node, watched = choice.node, scene.watched
    scene.outcome.drilled += (node,)
    state = scene.wait(f"the agent on {node} tells its state", lambda: watched.state(node), 60)
    counted = int(state.get("checkpoints", {}).get("saved", 0))
    withdrawal = Withdrawal(scene.cluster, watched, part, choice, counted, whole, app)
    scene.say(f"node {node} is drilled: {', '.join(withdrawal.leaving.values())} will leave")
    scene.bear(node_path(node))
    try:
        _withdraw(scene, part, choice, withdrawal)
    finally:
        scene.shed(node_path(node))
    part.note("the drill's annotation is taken off", time.time(), [node])
    scene.wait(f"{HARD_TAINT} is off the node", lambda: not scene.cluster.tainted(node), _RETURN_S)
    part.note("the node is back in service", time.time(), [node])
    scene.say(f"node {node} is back in service")
    scene.wait("the evicted pods have ended", lambda: not withdrawal.leaving.keys() & watched.uids())
    _figures(scene, part, withdrawal.training)
    return withdrawal


def _choose(scene: Scene, choose_one: Callable[..., Choice]) -> Choice:
    """UnfitError, if it is not but for a moment."""
    end = time.monotonic() + _FIT_S
    while True:
        try:
            there, named = scene.cluster, scene.settings.node
            return choose_one(there.nodes(), there.all_pods(), there.agent_pods(), there.namespace, named)
        except UnfitError:
            if time.monotonic() > end:
                raise
        time.sleep(1)


def _withdraw(scene: Scene, part: Part, choice: Choice, withdrawal: Withdrawal) -> None:
    pods = [f"--pod={scene.cluster.namespace}/{name}" for name in withdrawal.leaving.values()]
    cards = [f"--card={uuid}={pci}" for uuid, pci in choice.cards.items()]
    scene.watched.follow(withdrawal.training)
    give = scene.inject if scene.settings.inject else scene.hand
    done = give(choice.node, "fault", [f"--nonce={scene.nonce}", *cards, *pods], meanwhile=withdrawal.see)
    part.note("fault", within(part.began, done["written"][0]["at"], time.time()), [choice.node])
    scene.say(f"marked Xid 74 in the kernel log of {choice.node}: {', '.join(w['pci'] for w in done['written'])}")
    await_on(scene, choice.node, "the node is tainted", withdrawal.see, _PERMIT_S)
    scene.say("tainted")
    for what in (SAVED, "first evicted", "all evicted pods are replaced on other nodes", "all are ready"):

        def happened(what: str = what) -> bool:
            # A checkpoint that was never saved misses its target; it doesn't hold the drill up.
            return withdrawal.see() and bool(part.at(what) or (what == SAVED and part.at("all are evicted")))

        await_on(scene, choice.node, what, happened)
        scene.say(what)
    part.notes.append(f"the agent counts {withdrawal.count} checkpoint{'s' * (withdrawal.count != 1)} as saved")


def await_on(scene: Scene, node: str, what: str, seen: Callable[[], bool], timeout_s: float = STAGE_S) -> None:
    """What did not come is explained by the agent's own word."""
    try:
        scene.wait(what, seen, timeout_s)
    except MissedError as missed:
        waits = "; ".join(scene.watched.state(node).get("waits", []))
        raise MissedError(f"{missed}; its agent waits for: {waits or 'nothing that it says'}") from missed


def _figures(scene: Scene, part: Part, training: Object) -> None:
    for first, then, target in (
        ("fault", "tainted", "taint-s"),
        ("tainted", SAVED, "checkpoint-s"),
        (SAVED, "all are evicted", "evicted-s"),
        ("all are evicted", "all evicted pods are replaced on other nodes", "placed-s"),
        ("all evicted pods are replaced on other nodes", "all are ready", "ready-s"),
    ):
        part.measure(f"{first} → {then}", part.between(first, then), scene.targets[target], "s")
    recovered_s, most = part.between("fault", "all are ready"), scene.targets
    part.measure("time to recover: fault → all are ready", recovered_s, most["recover-s"], "s")
    lost = scene.lost(training, part)
    part.measure("steps of work lost, with the checkpoint asked for", lost, most["steps-asked"], "")


class Withdrawal:
    """Writes the moments into the part as they are seen."""

    def __init__(
        self,
        cluster: Cluster,
        watched: Watch,
        part: Part,
        choice: Choice,
        counted: int,
        whole: Callable[[], bool],
        app: str = "training",
    ) -> None:
        self._cluster, self._watched, self._part, self._node = cluster, watched, part, choice.node
        self._whole = whole
        self.leaving = {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in choice.pods}
        self.training = next(pod for pod in choice.pods if app_of(pod) == app)
        there = cluster.pods()  # before any left
        self._there = {pod["metadata"]["uid"] for pod in there}
        apps = {app_of(pod) for pod in choice.pods}
        self._wanted = Counter(app_of(pod) for pod in there if not ending(pod) and app_of(pod) in apps)
        self._saved = 0  # the training's last checkpoint before the taint
        self._counted = counted  # checkpoints that the agent counted as saved until now
        self._saved_at: float | None = None  # when the training told of one
        self._left: float | None = None  # when it was seen evicted
        self.count = 0  # checkpoints that the agent counts since

    def see(self) -> bool:
        """Look once; whether the node was seen tainted by now."""
        saved = self._watched.steps.get(self.training["metadata"]["uid"], {}).get("saved_step", 0)
        if self._part.at("tainted") is None:
            if not self._cluster.tainted(self._node):
                self._saved = max(saved, self._saved)
                return False
            self._part.note("tainted", time.time(), [self._node])
        if saved > self._saved and self._saved_at is None and self._part.at("all are evicted") is None:
            self._saved_at = time.time()
        self._count()
        self._follow()
        return True

    def _count(self) -> None:
        """The agent's word decides: what a training saved of its own accord is none that was asked for.

        A pod is evicted once it has answered, and a quick one is gone before it can be heard telling of its last save:
        then it saved no later than it was seen to leave.
        """
        if self.count or (counted := self._watched.checkpoints(self._node)) is None:
            return
        self.count = max(0, counted - self._counted)
        if self.count:
            at = self._saved_at or self._left or time.time()
            self._part.note(SAVED, at, [self.training["metadata"]["name"]])

    def _follow(self) -> None:
        """The pods that leave, and those that take their places."""
        now, pods, part = time.time(), self._cluster.pods(), self._part
        staying = {pod["metadata"]["uid"] for pod in pods if not ending(pod)} & self.leaving.keys()
        if self._left is None and self.training["metadata"]["uid"] not in staying:
            self._left = now
        if len(staying) < len(self.leaving):
            part.note("first evicted", now, (self.leaving[uid] for uid in self.leaving.keys() - staying))
        if staying:
            return
        part.note("all are evicted", now, self.leaving.values())
        elsewhere = [pod for pod in pods if not ending(pod) and pod["spec"].get("nodeName") not in (None, self._node)]
        if self._wanted <= Counter(map(app_of, elsewhere)):
            came = [pod["metadata"]["name"] for pod in elsewhere if pod["metadata"]["uid"] not in self._there]
            part.note("all evicted pods are replaced on other nodes", now, came)
            if self._whole():
                part.note("all are ready", time.time())
